"""The relay: it delivers instance events to an HTTP endpoint, at least once, as CloudEvents."""

from bridge.gateway.relay.delivery_queue import Backoff
from bridge.gateway.relay.relay import Counts, Notice, Relay, RelayConfig

__all__ = [
    "Backoff",
    "Counts",
    "Notice",
    "Relay",
    "RelayConfig",
]
