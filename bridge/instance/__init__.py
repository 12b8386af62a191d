"""For programs that run inside an instance: announcing themselves to gateways."""
