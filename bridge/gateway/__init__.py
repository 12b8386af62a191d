"""What a gateway uses: it scales services, follows their events and routes requests to instances.

This package itself imports nothing, so that `bridge.gateway.errors` stays free of NATS. The clients
are `client.ScaleClient` and `operator.Operator`; `events`, `routes` and `relay` are packages.
"""
