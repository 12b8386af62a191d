"""Keeping what was ordered over a loss of the store: the desired state, and orders for hosts.

A store that comes back empty or older than it was gives no orders: each Box journals the newest
version of every service's record and of every order for a host that it sees, and writes it back
where the store has an older one or none. All Boxes do, each by compare-and-set, so the highest
version among the living wins.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from msgspec import Struct

from bridge.box.fleet.view import FleetView
from bridge.box.journal.journal import Journal
from bridge.box.state.records import HostOrder, ServiceRecord
from bridge.bus.jetstream.kv_view import KeyValueView
from bridge.errors import Conflict
from bridge.subjects import cordon_key

_log = logging.getLogger(__name__)

V = TypeVar("V", ServiceRecord, HostOrder)


def is_lost(kept: V, there: V | None) -> bool:
    """Whether the store has lost `kept`, which was journaled: what is `there` is older, or None."""
    return there is None or there.version < kept.version


class Restorer:
    """See the module. `settle` is for how many seconds other Boxes may take to write theirs."""

    def __init__(self, fleet: FleetView, journal: Journal, settle: float) -> None:
        self._fleet = fleet
        self._journal = journal
        self._settle = settle
        self.on_loss: Callable[[], None] = lambda: None

    def saw(self, name: str, record: ServiceRecord | None) -> None:
        """The fleet's record of a service as the store has it now, None for no more."""
        self._saw(self._services(), name, record)

    def saw_order(self, host: str, order: HostOrder | None) -> None:
        """The order for `host` as the store has it now, None for no more."""
        self._saw(self._orders(), host, order)

    async def restore(self) -> None:
        """Write back what the store has lost. The views must be live. Raises BusError."""
        if lost := await self.write_back():
            _log.warning("the store had lost %s: written back from the journal", ", ".join(lost))
            await asyncio.sleep(self._settle)

    async def write_back(self) -> list[str]:
        """As `restore`, but give others no time; returns the names of what was lost."""
        services, orders = self._services(), self._orders()
        return [name for name in list(services.kept) if await _write_back(services, name)] + [
            f"the order for {host}" for host in list(orders.kept) if await _write_back(orders, host)
        ]

    def _saw(self, kind: _Kind[V], name: str, there: V | None) -> None:
        kept = kind.kept.get(name)
        if kept is not None and is_lost(kept, there):
            self.on_loss()
        elif there is not None:
            kind.keep(name, there)

    def _services(self) -> _Kind[ServiceRecord]:
        journal = self._journal
        return _Kind(self._fleet.services, str, journal.services, journal.keep_service)

    def _orders(self) -> _Kind[HostOrder]:
        journal = self._journal
        return _Kind(self._fleet.orders, cordon_key, journal.orders, journal.keep_order)


class _Kind(Struct, Generic[V], frozen=True):
    """What is kept of one bucket: its view, the key of a name, what the journal has."""

    records: KeyValueView[V]
    key: Callable[[str], str]
    kept: Mapping[str, V]
    keep: Callable[[str, V], None]


async def _write_back(kind: _Kind[V], name: str) -> bool:
    """Whether the store had an older record than the journal, or none."""
    records, key = kind.records, kind.key(name)
    while True:
        kept, there = kind.kept[name], records.get(key)
        if key in records.unreadable:
            return False  # a newer Box wrote it: not lost
        if not is_lost(kept, there.value if there else None):
            return False
        try:
            await records.update(key, kept, records.revision(key))
        except Conflict as exc:
            if exc.last is not None:
                await records.wait_for(exc.last)  # another Box was faster
            continue
        return True
