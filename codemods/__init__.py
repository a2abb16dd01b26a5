"""Rewrites: `FixPlan` x source text -> edits. Each also runs alone: `python -m libcst.tool codemod codemods.…`."""
