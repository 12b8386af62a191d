"""TODO timeline."""
