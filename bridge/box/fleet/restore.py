"""Restoring the desired state, and orders for hosts, after a loss of the store.

Each Box journals the newest version that it sees of every service's record and of every order for
a host. Where the store comes back with an older version, or without one, the Box writes its own
back. Every Box does so by compare-and-set, so the highest version among the live Boxes wins.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from msgspec import Struct

from bridge.box.fleet.view import FleetListener, FleetView
from bridge.box.journal.journal import Journal
from bridge.box.state.records import HostOrder, ServiceRecord
from bridge.bus.jetstream.kv_view import KeyValueView
from bridge.errors import BusError, Conflict
from bridge.subjects import cordon_key

_log = logging.getLogger(__name__)

V = TypeVar("V", ServiceRecord, HostOrder)


def is_lost(journaled: V, stored: V | None) -> bool:
    """Whether the store has lost `journaled`: it has an older version, or None."""
    return stored is None or stored.version < journaled.version


class Restorer(FleetListener):
    """See the module. Calls `on_loss` at each change that shows a loss.

    Other Boxes have `settle` seconds to write their records back. A Box that does not `decide`
    writes nothing, and waits until the others have written.
    """

    def __init__(
        self,
        fleet: FleetView,
        journal: Journal,
        settle: float,
        on_loss: Callable[[], None],
        *,
        decides: bool = True,
    ) -> None:
        self._fleet = fleet
        self._journal = journal
        self._settle = settle
        self._on_loss = on_loss
        self._decides = decides

    def service_changed(self, service: str, record: ServiceRecord | None) -> None:
        self._changed(self._services(), service, record)

    def order_changed(self, host: str, order: HostOrder | None) -> None:
        self._changed(self._orders(), host, order)

    async def restore(self) -> None:
        """Write back what the store has lost. The views must be live. Raises BusError, also on a
        Box that does not decide while the store lacks something.
        """
        if not self._decides:
            if lost := [*_lost(self._services()), *_lost(self._orders())]:
                what = ", ".join(lost)
                raise BusError(f"the store has lost {what}: a Box that decides must write it back")
            return
        if lost := await self.write_back():
            _log.warning("the store had lost %s: written back from the journal", ", ".join(lost))
            await asyncio.sleep(self._settle)

    async def write_back(self) -> list[str]:
        """Write back without waiting for other Boxes; returns the names of what was lost."""
        services, orders = self._services(), self._orders()
        lost = [name for name in list(services.journaled) if await _write_back(services, name)]
        return lost + [
            f"the order for {host}"
            for host in list(orders.journaled)
            if await _write_back(orders, host)
        ]

    def _changed(self, bucket: _Bucket[V], name: str, stored: V | None) -> None:
        journaled = bucket.journaled.get(name)
        if journaled is not None and is_lost(journaled, stored):
            self._on_loss()
        elif stored is not None:
            bucket.write_journal(name, stored)

    def _services(self) -> _Bucket[ServiceRecord]:
        journal = self._journal
        return _Bucket(self._fleet.services, str, journal.services, journal.keep_service)

    def _orders(self) -> _Bucket[HostOrder]:
        journal = self._journal
        return _Bucket(self._fleet.orders, cordon_key, journal.orders, journal.keep_order)


class _Bucket(Struct, Generic[V], frozen=True):
    """One bucket's view, the key of a name in it, and what the journal has of it."""

    records: KeyValueView[V]
    key: Callable[[str], str]
    journaled: Mapping[str, V]
    write_journal: Callable[[str, V], None]


def _lost(bucket: _Bucket[V]) -> list[str]:
    """The names whose journaled record the store has lost. A newer Box may write unreadable ones,
    which are not lost.
    """
    return [
        name
        for name, journaled in bucket.journaled.items()
        if (key := bucket.key(name)) not in bucket.records.unreadable
        and is_lost(journaled, found.value if (found := bucket.records.get(key)) else None)
    ]


async def _write_back(bucket: _Bucket[V], name: str) -> bool:
    """Whether the store had an older record than the journal, or no record."""
    records, key = bucket.records, bucket.key(name)
    while True:
        journaled, stored = bucket.journaled[name], records.get(key)
        if key in records.unreadable:
            return False  # a newer Box wrote it: not lost
        if not is_lost(journaled, stored.value if stored else None):
            return False
        try:
            await records.update(key, journaled, records.revision(key))
        except Conflict as exc:
            if exc.last is not None:
                await records.wait_for(exc.last)  # another Box was faster
            continue
        return True
