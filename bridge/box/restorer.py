"""Keeping the desired state over a loss of the store.

A store that comes back empty or older than it was gives no orders: each Box journals the newest
version of every service's record that it sees, and writes it back where the store has an older
one or none. All Boxes do, each by compare-and-set, so the highest version among the living wins.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from bridge.box.fleet import Fleet
from bridge.box.journal import Journal
from bridge.box.model import ServiceRecord
from bridge.errors import Conflict

_log = logging.getLogger(__name__)


def is_lost(kept: ServiceRecord, there: ServiceRecord | None) -> bool:
    """Whether the store has lost `kept`, which was journaled: what is `there` is older, or None."""
    return there is None or there.version < kept.version


class Restorer:
    """See the module. `settle` is for how many seconds other Boxes may take to write theirs."""

    def __init__(self, fleet: Fleet, journal: Journal, settle: float) -> None:
        self._fleet = fleet
        self._journal = journal
        self._settle = settle
        self.on_loss: Callable[[], None] = lambda: None

    def saw(self, name: str, record: ServiceRecord | None) -> None:
        """The fleet's record of a service as the store has it now, None for no more."""
        kept = self._journal.services.get(name)
        if kept is not None and is_lost(kept, record):
            self.on_loss()
        elif record is not None:
            self._journal.keep_service(name, record)

    async def restore(self) -> None:
        """Write back what the store has lost. The views must be live. Raises BusError."""
        lost = [name for name in self._journal.services if await self._write_back(name)]
        if lost:
            _log.warning("the store had lost %s: written back from the journal", ", ".join(lost))
            await asyncio.sleep(self._settle)

    async def _write_back(self, name: str) -> bool:
        """Whether the store had an older record than the journal, or none."""
        services = self._fleet.services
        while True:
            kept, there = self._journal.services[name], services.get(name)
            if name in services.unreadable:
                return False  # a newer Box wrote it: not lost
            if not is_lost(kept, there.value if there else None):
                return False
            try:
                await services.update(name, kept, services.revision(name))
            except Conflict as exc:
                if exc.last is not None:
                    await services.wait_for(exc.last)  # another Box was faster
                continue
            return True
