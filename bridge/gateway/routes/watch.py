"""Whether gateways route to the instances that a request was about: for a client that waits.

A Box reports an instance as Ready before gateways know it, and as gone while they may still route
to it. The watch reads the routes of one service as a gateway does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from collections.abc import Set as AbstractSet

from bridge.bus.core.connection import Connection
from bridge.errors import StoreUnsuitable
from bridge.gateway.routes.table import RouteTable

_log = logging.getLogger(__name__)


class RouteWatch:
    """The routes of `service` while `run` works; `on_change` is called after each change.

    A NATS user that may not read the streams of routes gets a warning, and counts every instance as
    routed and every withdrawal as done: what the Boxes report must do.
    """

    def __init__(self, connection: Connection, service: str, on_change: Callable[[], None]) -> None:
        self._connection = connection
        self._service = service
        self._on_change = on_change
        self._table: RouteTable | None = None
        self._denied = False

    async def run(self) -> None:
        """Keep the routes current until cancelled."""
        try:
            async with RouteTable.open(self._connection, self._service) as table:
                self._table = table
                async for _ in table.changes():
                    self._on_change()
        except StoreUnsuitable as exc:
            self._denied = True
            _log.warning("routes are not checked, only what the Boxes report: %s", exc)
            self._on_change()

    def unrouted(self, ready: AbstractSet[str]) -> AbstractSet[str]:
        """The instances of `ready` to which gateways do not route, or not as far as is known."""
        return set() if self._denied else ready - self._routed()

    def blocker(self, instance_id: str) -> str:
        """Why gateways do not route to an instance; "" if that is unknown."""
        known = None if self._table is None else self._table.blocker(self._service, instance_id)
        return known or ""

    def not_withdrawn(self, gone: AbstractSet[str]) -> AbstractSet[str]:
        """The instances of `gone` to which gateways still route."""
        if self._denied:
            return set()
        return set(gone) if self._table is None else gone & self._routed()

    def _routed(self) -> set[str]:
        table = self._table
        return {route.instance_id for route in table.endpoints(self._service)} if table else set()
