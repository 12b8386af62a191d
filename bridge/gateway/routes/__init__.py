"""The route table: the endpoints of each service that take traffic now, and their changes."""

from bridge.gateway.routes.index import Change, Delete, Put, Resync, Route
from bridge.gateway.routes.table import Changes, RouteTable

__all__ = [
    "Change",
    "Changes",
    "Delete",
    "Put",
    "Resync",
    "Route",
    "RouteTable",
]
