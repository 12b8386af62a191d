"""TODO jetstream."""
