"""TODO scheduler."""
