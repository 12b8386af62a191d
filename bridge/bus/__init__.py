"""Everything that touches NATS; no other package imports `nats`.

This package itself imports nothing: `bridge.bus.leases` is pure, and its users stay free of NATS.
Import from the packages below: `core` (the connection), `jetstream` (streams and buckets),
`service` (request endpoints) and `diagnostics` (checks for `box-bridge doctor`).
"""
