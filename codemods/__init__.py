"""Rewrites: `FixPlan` x source text -> edits. `commands` holds them as libcst commands."""
