"""moe-lint: the all-reduce after the experts runs exactly once."""
