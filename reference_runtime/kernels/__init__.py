"""The numeric kernels behind the reference layers, one interface over several implementations."""
