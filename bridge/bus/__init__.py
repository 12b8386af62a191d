"""Everything that touches NATS. No other package imports `nats`."""
