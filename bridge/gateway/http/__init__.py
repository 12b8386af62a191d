"""The gateway daemon: the fleet over HTTP, for gateways that people already run."""
