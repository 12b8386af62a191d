"""TODO runner."""
