"""What others make of the same work: programs that run in an environment of their own."""
