"""The reference runtime: runs a tree's models on several ranks before and after a rewrite. Not built yet.

Nothing in the linter depends on it, and no command claims to run it.
"""
