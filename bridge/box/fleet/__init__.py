"""What the Boxes share in JetStream: views, decisions, claims, leases, orders and rollouts."""
