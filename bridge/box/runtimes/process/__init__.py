"""TODO process."""
