"""How an instance is created and stopped: one package for each runtime, and what they share."""
