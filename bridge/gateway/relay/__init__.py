"""TODO relay."""
