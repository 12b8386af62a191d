"""One connection to NATS: it reconnects, sends requests and hands messages to handlers."""

from bridge.bus.core.connection import Connection, Watcher
from bridge.bus.core.listener import Listener
from bridge.bus.core.message import Handler, Message
from bridge.bus.core.pending_request import PendingRequest

__all__ = [
    "Connection",
    "Handler",
    "Listener",
    "Message",
    "PendingRequest",
    "Watcher",
]
