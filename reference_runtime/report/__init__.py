"""Reports of a run: each module has `render(RunReport) -> str`."""
