"""Scores of a model on held-out generated conversations: what is asked, how an answer counts, and the report.

Owns no model and no engine: `runner.evaluate` takes anything that turns prompt ids into generated ids.
"""
