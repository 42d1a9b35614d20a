"""The engine: token ids in, token ids out, for many requests at once.

Kept empty of imports on purpose: `request`, `pages`, `scheduler` and `client` load no torch, so a server process that only
talks to the engine process stays small.
"""
