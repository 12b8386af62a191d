"""Telling the fleet what happened to an instance, in order, and losing none of it.

For one instance the order is always: its event is journaled, then stored in the stream, then its
slot record says so, then its registration follows. The instance itself never waits for the bus:
it tells its `InstancePublication` and goes on; the story catches up when the bus is there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime

from msgspec.structs import replace

from bridge.box.journal.entry import JournalEntry
from bridge.box.journal.journal import Journal
from bridge.box.journal.outbox import Outbox
from bridge.box.runtimes.process_identity import ProcessIdentity
from bridge.box.state.lifecycle import ENDED, Life
from bridge.box.state.records import HostIdentity, SlotRecord
from bridge.bus.core.connection import Connection
from bridge.bus.jetstream.kv_view import KeyValueView, Record
from bridge.bus.registrations import Registrations
from bridge.errors import BusError, Conflict
from bridge.protocol import (
    InstanceDeregistration,
    InstanceEvent,
    InstanceInfo,
    InstanceRegistration,
)
from bridge.subjects import slot_key

_log = logging.getLogger(__name__)


class PublicationContext:
    """What all stories of one host share."""

    def __init__(
        self,
        me: HostIdentity,
        connection: Connection,
        journal: Journal,
        outbox: Outbox,
        slots: KeyValueView[SlotRecord],
        registry: Registrations,
    ) -> None:
        self.me = me
        self.connection = connection
        self.journal = journal
        self.outbox = outbox
        self.slots = slots
        self.registry = registry


class InstancePublication:
    """What is known of one instance, on its way to everybody; `run` takes it there.

    `record` is the slot's record if it already says what `entry` says, as after a claim, else
    None. `lost` is called with a reason when another host turns out to hold the slot.
    """

    def __init__(
        self,
        teller: PublicationContext,
        entry: JournalEntry,
        record: Record[SlotRecord] | None = None,
        *,
        lost: Callable[[str], None],
        traceparent: str = "",
    ) -> None:
        self.entry = entry
        self.traceparent = traceparent
        self._teller = teller
        self._key = slot_key(entry.life.info.service, entry.slot)
        self._revision = record.revision if record else 0
        self._told = _facts(record.value.info) if record else None
        self._synced = record is not None
        self._lost = lost
        self._sent = 0 if self.id in teller.journal.undelivered else entry.life.seq
        self._registration: InstanceRegistration | InstanceDeregistration | None = None
        self._work = asyncio.Event()
        self._idle = asyncio.Event()
        self._owned = True
        teller.outbox.listen(self.id, self._event_stored)
        self._stir()

    @property
    def id(self) -> str:
        return self.entry.life.info.id

    @property
    def life(self) -> Life:
        """The instance as it is now."""
        return self.entry.life

    # ── what the instance tells ──────────────────────────────────────────────────────────

    def tell(self, life: Life, event: InstanceEvent | None = None) -> None:
        """`life` as it stands now, and the event that made it so."""
        news = event is not None or _facts(life.info) != _facts(self.life.info)
        self.entry = replace(self.entry, life=life)
        if news:
            self._teller.journal.put(self.entry, event, traceparent=self.traceparent)
            self._stir()

    async def begin(self) -> None:
        """Write down that there shall be an instance; returns when that is on disk."""
        self._teller.journal.put(self.entry)
        await self.written()

    async def started(self, identity: ProcessIdentity, port: int) -> None:
        """Write down which process it is; returns when that is on disk."""
        self.entry = replace(self.entry, identity=identity, port=port)
        self._teller.journal.put(self.entry)
        await self.written()

    def leaves(self, reason: str) -> None:
        """Remember why it is to go, with what is told next."""
        self.entry = replace(self.entry, leaving=reason)

    async def written(self) -> None:
        """Return when all that was told is on this host's disk."""
        await self._teller.journal.wait_written()

    def register(self, registration: InstanceRegistration | InstanceDeregistration) -> None:
        """What gateways shall know, once what was told so far is stored."""
        self.entry = replace(self.entry, registered=True)
        self._registration = registration
        self._teller.journal.put(self.entry)
        self._stir()

    # ── what the supervisor orders ───────────────────────────────────────────────────────

    def supersede(self) -> None:
        """Another instance of this host has the slot now: leave its record alone."""
        self._owned = False
        self._stir()

    def reassert(self) -> None:
        """Write the slot's record again if it is not as this story left it: the store may have
        lost it, or come back with an older one.
        """
        slots = self._teller.slots
        if self._synced and not as_left(slots, self._key, self._revision, self._told):
            self._told, self._synced = None, False
            self._stir()

    def counts(self, failures: int, retry_at: datetime) -> None:
        """It is the last of so many that have failed running in its slot, which waits till then."""
        self.entry = replace(self.entry, failures=failures, retry_at=retry_at)
        self._teller.journal.put(self.entry)

    def close(self) -> None:
        """The instance has ended and all is told: of this story the journal alone is left."""
        self._teller.outbox.forget(self.id)
        self._teller.registry.forget(self.id)

    def forget(self) -> None:
        """Nor does it count any more: it leaves no trace on this host."""
        self._teller.journal.forget(self.id)

    async def settled(self) -> None:
        """Return when everything told is out."""
        await self._idle.wait()

    async def run(self) -> None:
        """Send what is told until cancelled."""
        while True:
            await self._work.wait()
            self._work.clear()
            await self._write_slot()
            if self._all_stored:
                await self._send_registration()
                if not self._work.is_set():
                    self._idle.set()

    # ── inside ───────────────────────────────────────────────────────────────────────────

    def _stir(self) -> None:
        self._idle.clear()
        self._work.set()

    @property
    def _all_stored(self) -> bool:
        """Whether every event told so far is in the stream; the outbox tells when it is."""
        return self._sent >= self.life.seq

    def _event_stored(self, seq: int) -> None:
        self._sent = seq
        self._work.set()

    async def _write_slot(self) -> None:
        """Bring the slot's record up to the life, for as long as the slot is this instance's.

        Leaves off when another event was told meanwhile: that must be stored first.
        """
        teller = self._teller
        while self._owned and self._all_stored and _facts(self.life.info) != self._told:
            life = self.life
            record = SlotRecord(
                host=teller.me.host,
                host_id=teller.me.host_id,
                config=self.entry.config,
                seq=life.seq,
                info=life.info,
                demand=self.entry.demand,
            )
            try:
                await teller.connection.wait_connected()
                if not self._synced:
                    await self._sync(None)
                    continue
                self._revision = await teller.slots.update(self._key, record, self._revision)
                # Its record may come back before its acknowledgement, and look like another's.
                self._told, self._synced = _facts(life.info), True
            except Conflict as exc:
                await self._sync(exc.last)
            except BusError as exc:
                _log.debug("slot %s not written, trying again: %s", self._key, exc)
                await asyncio.sleep(0.2)

    async def _sync(self, seq: int | None) -> None:
        """Find out how the slot's record stands: as this instance left it, or written by others;
        missing, as after a loss of the store; or by an own write with a lost acknowledgement.
        """
        slots = self._teller.slots
        await slots.wait_live()
        if seq:
            await slots.wait_for(seq)
        self._synced = True
        record = slots.get(self._key)
        if record is None:
            self._revision = slots.revision(self._key)
            # What has ended claims nothing any more.
            self._told = _facts(self.life.info) if self.life.info.state in ENDED else None
        elif self._teller.me.holds(record.value):
            self._revision = record.revision
            self._told = _facts(record.value.info)
        else:
            self._owned = False
            self._lost(f"slot {self._key} was taken by {record.value.host}")

    async def _send_registration(self) -> None:
        wanted, self._registration = self._registration, None
        if isinstance(wanted, InstanceRegistration):
            await self._teller.registry.register(wanted)
        elif wanted is not None:
            await self._teller.registry.deregister(wanted)


def as_left(slots: KeyValueView[SlotRecord], key: str, revision: int, told: object) -> bool:
    """Whether a slot's record is as it was left. Revisions alone do not say so: a store that was
    lost counts anew.
    """
    record = slots.get(key)
    there = _facts(record.value.info) if record else None
    return slots.revision(key) == revision and there == told


def _facts(info: InstanceInfo) -> tuple[object, ...]:
    """What a slot record tells that is worth a write: state and health, never load."""
    return info.id, info.state, info.ready_at, info.endpoint, info.health.healthy
