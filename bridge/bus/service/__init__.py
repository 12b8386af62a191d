"""Request endpoints: a Responder answers requests, and `nats micro` discovers it (ADR-32)."""

from bridge.bus.service.discovery import Description
from bridge.bus.service.endpoint import Endpoint, Reply
from bridge.bus.service.responder import Responder

__all__ = [
    "Description",
    "Endpoint",
    "Reply",
    "Responder",
]
