"""Measurements that a user can repeat: each ends in a table and a JSON with machine, versions and command."""
