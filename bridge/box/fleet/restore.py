"""Restoring the desired state, and orders for hosts, after a loss of the store.

Each Box journals the newest version that it sees of every service's record and of every order for
a host. Where the store comes back with an older version, or without one, the Box writes its own
back. Every Box does so by compare-and-set, so the highest version among the live Boxes wins.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from typing import Final, Generic, TypeVar

from msgspec import Struct

from bridge.box.fleet.listener import FleetListener
from bridge.box.fleet.view import FleetView
from bridge.box.journal.journal import Journal
from bridge.box.state.records import HostOrder, ServiceRecord, follows
from bridge.bus.jetstream.kv_view import KeyValueView
from bridge.errors import BusError, Conflict, CutOff
from bridge.log_limit import LimitedLog, cause_of
from bridge.subjects import cordon_key

_log = logging.getLogger(__name__)

_RETRY: Final = 0.5  # seconds between attempts
_LOOK: Final = 0.5  # seconds between looks at the services that are held

V = TypeVar("V", ServiceRecord, HostOrder)


def is_lost(journaled: V, stored: V | None) -> bool:
    """Whether the store has lost `journaled`: it has an older version, or None.

    A journaled version out of the reach of the stored one was never decided: it is no loss.
    """
    if stored is None:
        return True
    return stored.version < journaled.version and follows(journaled.version, stored.version)


class Restorer(FleetListener):
    """See the module. Other Boxes have `settle` seconds to write their records back.

    The loss of one record, while the view is live, concerns its service or host alone: `run` writes
    it back, and until then nothing is decided for that service. Losses that a view shows when it
    becomes complete are those of a whole bucket: each calls `on_loss`, and `restore` writes all of
    them back. A Box that does not `decide` writes nothing, and waits until the others have written.
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
        self._lost_orders: set[str] = set()
        self._written: dict[str, float] = {}  # held services, and the loop's time of their writing
        self._wake = asyncio.Event()
        self._log = LimitedLog(_log)

    def service_changed(self, service: str, record: ServiceRecord | None) -> None:
        if self._changed(self._services(), service, record):
            self._written.pop(service, None)
            self._fleet.hold(service)
            self._wake.set()

    def order_changed(self, host: str, order: HostOrder | None) -> None:
        if self._changed(self._orders(), host, order):
            self._lost_orders.add(host)
            self._fleet.keep_order(host, self._journal.orders[host])
            self._wake.set()

    async def run(self) -> None:
        """Write single lost records back until cancelled; retry while the bus is out."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK if self._fleet.held else None):
                    await self._wake.wait()
            self._wake.clear()
            try:
                await self._write_lost()
            except CutOff:
                await asyncio.sleep(_RETRY)  # the connection has logged it
                self._wake.set()
            except BusError as exc:
                self._log.report(cause_of(exc), "a lost record is not written back yet: %s", exc)
                await asyncio.sleep(_RETRY)
                self._wake.set()

    async def _write_lost(self) -> None:
        """Write lost records back, and release the services for which other Boxes had the time.

        A record that the store refuses holds up no other. Raises the last refusal.
        """
        services, orders = self._services(), self._orders()
        refusals: list[BusError] = []
        for host in tuple(self._lost_orders):
            self._lost_orders.discard(host)
            text = "the store had lost the order for %s: written back"
            if not await self._try(orders, host, text, refusals):
                self._lost_orders.add(host)
        for service in self._fleet.held - self._written.keys():
            self._written[service] = time.monotonic()
            text = "the store had lost the record of %s: written back"
            if not await self._try(services, service, text, refusals):
                self._written.pop(service, None)
        due, lost = time.monotonic() - self._settle, {*_lost(services)}
        for service in [name for name, at in self._written.items() if at <= due]:
            del self._written[service]
            if service not in lost:
                self._fleet.release(service)
        if refusals:
            raise refusals[-1]

    async def _try(
        self, bucket: _Bucket[V], name: str, text: str, refusals: list[BusError]
    ) -> bool:
        """Write one record back, and log `text`; False, with the reason added, if it cannot be."""
        try:
            written = self._decides and await _write_back(bucket, name)
        except BusError as exc:
            refusals.append(exc)
            return False
        if written:
            self._log.report(text, text, name)
        return True

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

    def _changed(self, bucket: _Bucket[V], name: str, stored: V | None) -> bool:
        """Whether this alone was lost, and the rest of its bucket was not."""
        journaled = bucket.journaled.get(name)
        if journaled is not None and is_lost(journaled, stored):
            if bucket.records.live:
                return True
            self._on_loss()
        elif stored is not None:
            bucket.write_journal(name, stored)
        return False

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
