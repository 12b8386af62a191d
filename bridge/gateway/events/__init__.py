"""Instance events: a stream for one reader, a hub for many, and durable delivery to workers."""

from bridge.gateway.events.durable import Delivery, DurableEvents
from bridge.gateway.events.filter import EventFilter, Services
from bridge.gateway.events.hub import EventHub, HubEvents
from bridge.gateway.events.stream import EventStream, Gap

__all__ = [
    "Delivery",
    "DurableEvents",
    "EventFilter",
    "EventHub",
    "EventStream",
    "Gap",
    "HubEvents",
    "Services",
]
