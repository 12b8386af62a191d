"""The lease of this host: it shows that the host lives, and that its name is taken.

A record written from the same *place* belongs to this Box, or to an earlier process of it. A clone
of the machine, or a copy of the data directory, has the same host id in another place: it is
refused when it starts. Of two that already run, the one that took the lease later ends.

One foreign record under this host's name proves no second Box: an operator, or a restored bucket,
may have written it. The Box writes its own again at once, and plans nothing until then. It ends
only if the other one renews its record repeatedly.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from typing import Final

from msgspec.structs import replace

from bridge.box.fleet.fence import Fence
from bridge.box.fleet.listener import FleetListener
from bridge.box.state.records import HostRecord, Offer
from bridge.bus.jetstream.kv_view import KeyValueView, Record
from bridge.errors import BusError, CutOff, HostTaken, ProtocolError
from bridge.log_limit import LimitedLog, cause_of
from bridge.settings import Timing

_log = logging.getLogger(__name__)

_CHECK: Final = 0.1  # seconds between checks whether another host's lease has ended
_MIN_TIMEOUT: Final = 1.0  # seconds for one renewal, or a heartbeat where that is longer
_RENEWALS: Final = 2  # consecutive ones of another Box: it surely works under this name


class _Rival:
    """The other writer of this host's record, and how often it has renewed.

    Only renewals that follow each other within `pause` seconds count: a Box renews at each
    heartbeat.
    """

    def __init__(self, pause: float) -> None:
        self._pause = pause
        self._writer = ("", "")
        self._revision = 0
        self._renewals = 0
        self._seen_at = float("-inf")

    def count(self, stored: Record[HostRecord], now: float) -> int:
        """Take its record as it is stored now; returns its renewals so far."""
        writer = stored.value.host_id, stored.value.place
        if writer != self._writer or now - self._seen_at > self._pause:
            self._renewals = 0
        elif stored.revision != self._revision:
            self._renewals += 1
        self._writer, self._revision, self._seen_at = writer, stored.revision, now
        return self._renewals


class LeaseTerm:
    """Until when this host's lease surely lasts: `lease` seconds from before its last renewal.

    The `fence` follows it. `failure` is why the last renewal failed, "" after a success.
    """

    def __init__(self, lease: float, fence: Fence) -> None:
        self._lease = lease
        self._fence = fence
        self._renewed = float("-inf")
        self.failure = ""

    @property
    def held(self) -> bool:
        """Whether every other Box still counts this host as live."""
        return time.monotonic() - self._renewed < self._lease

    def blocker(self) -> str | None:
        """Why this host may already count as dead."""
        if self.held:
            return None
        why = f": {self.failure}" if self.failure else ""
        return f"this Box's own lease is not current{why}"

    def renew(self, since: float) -> None:
        """A renewal that was sent at `since` (monotonic) is stored."""
        self._renewed, self.failure = since, ""
        self._fence.extend(self._lease - (time.monotonic() - since))

    def end(self) -> None:
        """The lease is given back."""
        self._renewed = float("-inf")


class HostLease(FleetListener):
    """The host's own lease: `run` renews it. Each renewal writes `current(record)`."""

    def __init__(
        self,
        hosts: KeyValueView[HostRecord],
        name: str,
        record: HostRecord,
        timing: Timing,
        term: LeaseTerm,
        current: Callable[[HostRecord], HostRecord],
    ) -> None:
        self._hosts = hosts
        self._name = name
        self._record = record
        self._timing = timing
        self._term = term
        self._current = current
        self._log = LimitedLog(_log)
        self._changed = asyncio.Event()
        self._released = False
        self._rival = _Rival(2 * timing.heartbeat)

    def host_changed(self, host: str) -> None:
        if host == self._name:
            self._changed.set()

    async def wait_vacant(self) -> None:
        """Return when no other host has the name.

        Raises HostTaken if the name is live under another id, or under this id in another place.
        A record that an earlier process of this Box left behind does not count. A lease of another
        id may be left from a wiped data_dir, and one of another place from before a reboot, so
        these get the time to end.
        """
        await self._hosts.wait_live()
        deadline = time.monotonic() + self._timing.lease + 1.0
        first = self._hosts.get(self._name)
        while (current := self._hosts.get(self._name)) is not None:
            record = current.value
            if record.host_id == self._record.host_id and not self._is_elsewhere(record):
                return
            renewed = first is not None and current.revision != first.revision
            if renewed or time.monotonic() > deadline:
                raise self._taken_by(record)
            await self._wait_for_change(current.revision)

    async def take(self) -> None:
        """Write the host's record once its name is vacant. Raises HostTaken."""
        await self.wait_vacant()
        self._record = replace(self._record, since=self._hosts.seq)
        await self._renew()

    async def run(self) -> None:
        """Renew until cancelled, and at once when the record was overwritten or deleted.

        Raises HostTaken if another host renews under this name repeatedly, or one that has had this
        id in another place for longer.
        """
        pause = heartbeat = self._timing.heartbeat
        while True:
            await self._wait_due(pause)
            stored = self._hosts.get(self._name)
            if stored is not None and self._has_lost_to(stored.value):
                self._judge_rival(stored)
            pause = heartbeat / 4  # after a failure: a lease has no time to lose
            try:
                await self._renew()
                pause = heartbeat
            except CutOff:
                pass  # the connection has logged it
            except BusError as exc:
                self._term.failure = str(exc)
                self._hosts.count_failure("lease_retry")
                self._log.report(
                    cause_of(exc), "the lease of this host is not renewed, retrying: %s", exc
                )

    async def _wait_due(self, pause: float) -> None:
        """Return after `pause` seconds; after a quarter of a heartbeat if the record is not this
        Box's any more: two Boxes of one name must not answer each other without a pause.
        """
        earliest = time.monotonic() + min(pause, self._timing.heartbeat / 4)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                while self._released or self._is_own():
                    await self._changed.wait()
                    self._changed.clear()
                await asyncio.sleep(earliest - time.monotonic())

    def _is_own(self) -> bool:
        """Whether the view has this Box's own record."""
        stored = self._hosts.get(self._name)
        mine = self._record.host_id
        return (
            stored is not None
            and stored.value.host_id == mine
            and not self._is_elsewhere(stored.value)
        )

    def _judge_rival(self, stored: Record[HostRecord]) -> None:
        """Raise HostTaken once the writer of `stored` has renewed it repeatedly."""
        renewals = self._rival.count(stored, time.monotonic())
        if renewals >= _RENEWALS:
            raise self._taken_by(stored.value)
        self._hosts.count_failure("lease_overwritten")
        if not renewals:
            _log.warning(
                "the record of this host was overwritten by another id or place (%s, %s): this Box "
                "writes its own again, and ends if the other one renews",
                stored.value.host_id,
                stored.value.place or "no place",
            )

    async def renew_now(self) -> None:
        """Renew at once, as after a reconnect. Raises BusError."""
        await self._renew()

    async def offer(self, services: Mapping[str, Offer]) -> None:
        """Publish that this host offers exactly these services. Raises BusError: the next renewal
        publishes it then.
        """
        self._record = replace(self._record, services=dict(services))
        await self._renew()

    async def close(self) -> None:
        """Announce that this host is leaving, so that no more slots are placed on it."""
        self._record = replace(self._record, closing=True)
        with contextlib.suppress(BusError):
            await self._renew()

    async def release(self) -> None:
        """Give the lease back, for good."""
        self._term.end()
        self._released = True
        with contextlib.suppress(BusError):
            if (stored := self._hosts.get(self._name)) is not None:
                await self._hosts.delete(self._name, stored.revision)

    def _is_elsewhere(self, other: HostRecord) -> bool:
        return other.place not in ("", self._record.place)  # an older Box writes no place

    def _has_lost_to(self, other: HostRecord) -> bool:
        mine = self._record
        if other.host_id != mine.host_id:
            return True
        # Each of two clones sees the other's record: both must agree on which one ends.
        older = (other.since, other.place) < (mine.since, mine.place)
        return self._is_elsewhere(other) and older

    def _taken_by(self, other: HostRecord) -> HostTaken:
        if other.host_id != self._record.host_id:
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
        # A server that dies loses its acknowledgement. A renewal that is sent twice does no harm.
        timeout = max(self._timing.heartbeat, _MIN_TIMEOUT)
        await self._hosts.put(self._name, self._current(self._record), timeout=timeout)
        self._term.renew(started)

    async def _wait_for_change(self, revision: int) -> None:
        """Return when the name's record has changed, or after a second.

        The view does not show that a record has expired, so the store itself is read then.
        """
        for _ in range(10):
            await asyncio.sleep(_CHECK)
            current = self._hosts.get(self._name)
            if current is None or current.revision != revision:
                return
        with contextlib.suppress(ProtocolError):  # the record exists, whatever it contains
            if await self._hosts.read(self._name) is None:
                self._hosts.drop(self._name)
