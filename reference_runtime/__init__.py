"""The reference runtime: runs a tree's models on several ranks before and after a rewrite, and compares the numbers.

`launch.verify` is the way in. It needs no torch: whatever runs target code runs in a child process (`worker`).
"""
