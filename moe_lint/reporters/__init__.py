"""Outputs: one file each, a `render(Report) -> str`."""
