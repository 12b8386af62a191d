"""The lease of this host: it says that the host lives, and that its name is taken.

A record that was written from the same *place* is this Box's own, or its last life's. A clone of
the machine, or a copy of the data directory, has the same host id in another place: it is refused
when it starts. Of two that already run, the younger ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Final

from msgspec.structs import replace

from bridge.box.fleet.fence import Fence
from bridge.box.state.records import HostRecord
from bridge.bus.jetstream.kv_view import KeyValueView
from bridge.errors import BusError, HostTaken, ProtocolError
from bridge.settings import Timing

_CHECK: Final = 0.1  # seconds between looks at whether another's lease has ended
_LEAST_PATIENCE: Final = 1.0  # seconds for a renewal, at least; else a heartbeat


class HostLease:
    """The host's own lease: `run` renews it, `held` says whether it is surely not over.

    Each renewal tells what `current` makes of the record, and extends the `fence`.
    """

    def __init__(
        self,
        hosts: KeyValueView[HostRecord],
        name: str,
        record: HostRecord,
        timing: Timing,
        current: Callable[[HostRecord], HostRecord],
        fence: Fence,
    ) -> None:
        self._hosts = hosts
        self._name = name
        self._record = record
        self._timing = timing
        self._current = current
        self._fence = fence
        self._renewed = float("-inf")

    @property
    def held(self) -> bool:
        """Whether everybody still counts this host as live: reckoned from before the renewal."""
        return time.monotonic() - self._renewed < self._timing.lease

    async def vacant(self) -> None:
        """Return when nobody else has the name. Raises HostTaken if it is live under another id, or
        under this one in another place.

        What this host's last life left behind counts for nothing. A lease of another id may have
        been left by a wiped data_dir, one of another place by a life before the reboot, so these
        are waited for until they would have ended.
        """
        await self._hosts.wait_live()
        deadline = time.monotonic() + self._timing.lease + 1.0
        first = self._hosts.get(self._name)
        while (there := self._hosts.get(self._name)) is not None:
            if there.value.host_id == self._record.host_id and not self._is_elsewhere(there.value):
                return
            renewed = first is not None and there.revision != first.revision
            if renewed or time.monotonic() > deadline:
                raise self._taken_by(there.value)
            await self._gone_or_renewed(there.revision)

    async def take(self) -> None:
        """Announce the host, once its name is vacant. Raises HostTaken, as that does."""
        await self.vacant()
        self._record = replace(self._record, since=self._hosts.seq)
        await self._renew()

    async def run(self) -> None:
        """Renew until cancelled. Raises HostTaken if another host takes the name, or has this id
        in another place for longer.
        """
        pause = heartbeat = self._timing.heartbeat
        while True:
            await asyncio.sleep(pause)
            there = self._hosts.get(self._name)
            if there is not None and self._yields_to(there.value):
                raise self._taken_by(there.value)
            pause = heartbeat / 4  # a lease has no time to lose
            with contextlib.suppress(BusError):
                await self._renew()
                pause = heartbeat

    async def renew_now(self) -> None:
        """Renew out of turn, as after a reconnect; raises BusError."""
        await self._renew()

    async def close(self) -> None:
        """Say that this host is leaving, so that nothing more is placed on it."""
        self._record = replace(self._record, closing=True)
        with contextlib.suppress(BusError):
            await self._renew()

    async def release(self) -> None:
        """Give the lease back."""
        self._renewed = float("-inf")
        with contextlib.suppress(BusError):
            if (there := self._hosts.get(self._name)) is not None:
                await self._hosts.delete(self._name, there.revision)

    def _is_elsewhere(self, there: HostRecord) -> bool:
        return there.place not in ("", self._record.place)  # an older Box tells of none

    def _yields_to(self, there: HostRecord) -> bool:
        mine = self._record
        if there.host_id != mine.host_id:
            return True
        # Each of two clones sees the other's record: both must give the same answer to who ends.
        older = (there.since, there.place) < (mine.since, mine.place)
        return self._is_elsewhere(there) and older

    def _taken_by(self, there: HostRecord) -> HostTaken:
        if there.host_id != self._record.host_id:
            return HostTaken(
                f"host name {self._name!r} is live under another id: give this Box another "
                "name ([box] name), or stop the other one"
            )
        return HostTaken(
            f"host {self._name!r} is live on another machine, or in another data_dir, and this is "
            "a copy: give this Box another name ([box] name) and an empty data_dir, or stop the "
            "other one"
        )

    async def _renew(self) -> None:
        started = time.monotonic()
        # The answer is lost with the server that would have given it. Asked again, it does no harm.
        patience = max(self._timing.heartbeat, _LEAST_PATIENCE)
        await self._hosts.put(self._name, self._current(self._record), timeout=patience)
        self._renewed = started
        self._fence.extend(self._timing.lease - (time.monotonic() - started))

    async def _gone_or_renewed(self, revision: int) -> None:
        """Wait for news of the name: the view does not tell what expires, so ask now and then."""
        for _ in range(10):
            await asyncio.sleep(_CHECK)
            there = self._hosts.get(self._name)
            if there is None or there.revision != revision:
                return
        with contextlib.suppress(ProtocolError):  # whatever it says, it is there
            if await self._hosts.read(self._name) is None:
                self._hosts.drop(self._name)
