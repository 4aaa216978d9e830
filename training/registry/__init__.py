"""Versions of model sets: which exist, which is in production, and why it may be. Open
`registry.py` first.
"""
