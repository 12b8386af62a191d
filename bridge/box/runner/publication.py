"""Publishing what happened to an instance, in order and without loss.

The usual order for one instance: its event is journaled, then stored in the stream, then its slot
record is written, then its registration is sent. The instance never waits for the bus: it updates
its `InstancePublication` and goes on. The publication catches up when the bus answers.

Safety does not wait for this order. A withdrawal ends the renewals at once and is sent at once. A
slot record waits for events, and a registration for both, only `PATIENCE` seconds while there is a
connection: a full stream delays events and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from bridge.box.journal.entry import JournalEntry
from bridge.box.journal.journal import Journal
from bridge.box.journal.outbox import Outbox
from bridge.box.runtimes.process_identity import ProcessIdentity
from bridge.box.state.lifecycle import ENDED, MAX_MESSAGE, Life
from bridge.box.state.records import HostIdentity, SlotRecord
from bridge.box.state.settings_id import settings_id
from bridge.bus.core.connection import Connection
from bridge.bus.jetstream.kv_view import KeyValueView, Record
from bridge.bus.registrations import Registrations
from bridge.errors import BusError, Conflict
from bridge.protocol import (
    InstanceDeregistration,
    InstanceEvent,
    InstanceInfo,
    InstanceRegistration,
    InstanceState,
)
from bridge.subjects import slot_key

_log = logging.getLogger(__name__)

PATIENCE: Final = 1.5  # seconds that the order of publishing is kept while a write is refused

_RETRY: Final = 0.2  # seconds before a slot record that could not be written is tried again
_SLOW_RETRY: Final = 1.0  # the same once the patience has ended
_ATTEMPT: Final = 5.0  # seconds for one attempt to write a slot record

SlotFacts = tuple[object, ...]


class PublicationContext(Struct, frozen=True, kw_only=True):
    """What the publications of one host share."""

    me: HostIdentity
    connection: Connection
    journal: Journal
    outbox: Outbox
    slots: KeyValueView[SlotRecord]
    registrations: Registrations


class InstancePublication:
    """The newest state of one instance; `run` publishes it.

    `record` is the slot's record if it already shows what `entry` has, as after a claim, else
    None. `on_lost` is called with a reason when another host turns out to hold the slot.
    """

    def __init__(
        self,
        context: PublicationContext,
        entry: JournalEntry,
        record: Record[SlotRecord] | None = None,
        *,
        on_lost: Callable[[str], None],
        traceparent: str = "",
    ) -> None:
        self.entry = entry
        self.traceparent = traceparent
        self._context = context
        self._on_lost = on_lost
        self._key = slot_key(entry.life.info.service, entry.slot)
        self._revision = record.revision if record else 0
        self._written = _facts_of(record.value) if record else None
        self._synced = record is not None
        self._stored_seq = 0 if self.id in context.journal.undelivered else entry.life.seq
        self._registration: tuple[InstanceRegistration, int] | None = None  # and its Box-Seq
        self._waiting_since: float | None = None
        self._work = asyncio.Event()
        self._idle = asyncio.Event()
        self._owns_slot = True
        context.outbox.listen(self.id, self._event_stored)
        self._wake()

    @property
    def id(self) -> str:
        return self.entry.life.info.id

    @property
    def life(self) -> Life:
        """The instance as it is now."""
        return self.entry.life

    # ── called by the instance ───────────────────────────────────────────────────────────

    def update(self, life: Life, event: InstanceEvent | None = None) -> None:
        """The instance is `life` now; `event` is the change that led to it, if there was one."""
        before = self._facts
        self.entry = replace(self.entry, life=life)
        if event is not None and event.to_state is InstanceState.FAILED:
            self.entry = replace(self.entry, failure=event.message)
        changed = event is not None or self._facts != before
        if changed:
            self._context.journal.put(self.entry, event, traceparent=self.traceparent)
            self._wake()

    async def write_intent(self) -> None:
        """Journal that the instance is to be created; returns when that is on disk."""
        self._context.journal.put(self.entry)
        await self.wait_written()

    async def record_process(self, identity: ProcessIdentity, port: int) -> None:
        """Journal which process the instance is; returns when that is on disk."""
        self.entry = replace(self.entry, identity=identity, port=port)
        self._context.journal.put(self.entry)
        await self.wait_written()

    def set_leaving(self, reason: str) -> None:
        """Keep the reason why the instance ends; the next update journals it."""
        self.entry = replace(self.entry, leaving=reason)

    async def wait_written(self) -> None:
        """Return when every update so far is on this host's disk."""
        await self._context.journal.wait_written()

    def register(self, metadata: dict[str, str]) -> None:
        """Register the instance with gateways once every update so far is stored."""
        info = self.life.info
        assert info.endpoint is not None
        registration = InstanceRegistration(
            instance_id=info.id,
            service=info.service,
            endpoint=info.endpoint,
            metadata=metadata,
            started_at=info.created_at,
        )
        self._registration = registration, self.life.seq
        self._note_registered()
        self._wake()

    def withdraw(self, reason: str) -> None:
        """Make gateways stop routing to the instance, at once and for good."""
        info, reason = self.life.info, reason[:MAX_MESSAGE]
        self._registration = None
        self._context.registrations.withdraw(
            InstanceDeregistration(instance_id=info.id, service=info.service, reason=reason)
        )
        self._note_registered()

    def _note_registered(self) -> None:
        """Journal that gateways may know the instance."""
        if not self.entry.registered:
            self.entry = replace(self.entry, registered=True)
            self._context.journal.put(self.entry)

    async def wait_withdrawn(self) -> None:
        """Return when no withdrawal of the instance waits to be stored."""
        stored = asyncio.Event()
        self._context.registrations.after_withdrawal(self.id, stored.set)
        await stored.wait()

    # ── called by the supervisor ─────────────────────────────────────────────────────────

    def supersede(self) -> None:
        """Leave the slot's record alone: another instance of this host has the slot now."""
        self._owns_slot = False
        self._wake()

    def reassert(self) -> None:
        """Write the slot's record again if it is not as this publication wrote it last.

        The store may have lost the record, or come back with an older one.
        """
        slots = self._context.slots
        if self._synced and not is_as_written(slots, self._key, self._revision, self._written):
            self._written, self._synced = None, False
            self._wake()

    def record_failure(self, failures: int, retry_at: datetime) -> None:
        """Journal the consecutive failures in the slot, and when the next instance is due."""
        self.entry = replace(self.entry, failures=failures, retry_at=retry_at)
        self._context.journal.put(self.entry)
        self._wake()

    def close(self) -> None:
        """The instance has ended: only its journal entry and its unsent events are left."""
        self._context.outbox.forget(self.id)
        self._context.registrations.forget(self.id)

    def forget(self) -> None:
        """Remove the journal entry as well, once the withdrawal is stored."""
        journal = self._context.journal
        self._context.registrations.after_withdrawal(self.id, partial(journal.forget, self.id))

    async def wait_published(self) -> None:
        """Return when every update so far is out, or its patience has ended."""
        await self._idle.wait()

    async def run(self) -> None:
        """Publish every update until cancelled."""
        pause: float | None = None
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._work.wait()
            await self._context.connection.wait_connected()
            self._work.clear()
            if self._waiting_since is None:
                self._waiting_since = time.monotonic()
            if self._may_go_on:
                await self._write_slot()
            done = self._all_stored and self._slot_is_current
            if done or self._is_overdue:
                await self._send_registration()
                if not self._work.is_set():
                    self._idle.set()
            if done:
                self._waiting_since = None
            if done or (self._is_overdue and self._slot_is_current):
                pause = None  # the next update wakes it, or an event that is stored
            else:
                pause = _SLOW_RETRY if self._is_overdue else _RETRY

    # ── the order of publishing ──────────────────────────────────────────────────────────

    def _wake(self) -> None:
        self._idle.clear()
        self._work.set()

    @property
    def _all_stored(self) -> bool:
        """Whether every event so far is in the stream."""
        return self._stored_seq >= self.life.seq

    @property
    def _is_overdue(self) -> bool:
        """Whether updates have waited for `PATIENCE` seconds, all of them with a connection."""
        if self._waiting_since is None:
            return False
        waited = time.monotonic() - self._waiting_since
        return min(waited, self._context.connection.back_for()) >= PATIENCE

    @property
    def _may_go_on(self) -> bool:
        """Whether what follows the events may be written."""
        return self._all_stored or self._is_overdue

    @property
    def _slot_is_current(self) -> bool:
        """Whether there is nothing to write into the slot's record."""
        return not self._owns_slot or self._facts == self._written

    @property
    def _facts(self) -> SlotFacts:
        return slot_facts(self.life.info, self.entry.failure, self.entry.retry_at)

    def _slot_record(self) -> SlotRecord:
        """The slot's record as it should be."""
        me, entry = self._context.me, self.entry
        return SlotRecord(
            host=me.host,
            host_id=me.host_id,
            config=entry.config,
            settings=settings_id(entry.service),
            seq=self.life.seq,
            info=self.life.info,
            demand=entry.demand,
            failure=entry.failure,
            retry_at=entry.retry_at,
            failures=entry.failures,
        )

    def _event_stored(self, seq: int) -> None:
        self._stored_seq = seq
        if self._waiting_since is not None:
            self._waiting_since = time.monotonic()  # the stream takes events
        self._work.set()

    async def _write_slot(self) -> None:
        """Bring the slot's record up to date, while this instance owns the slot.

        Returns early when a new event comes up, which is to be stored first, and when the bus does
        not take the record: then it is to be tried again.
        """
        try:
            async with asyncio.timeout(_ATTEMPT):
                while self._may_go_on and not self._slot_is_current:
                    if not self._synced:
                        await self._sync(None)
                        continue
                    try:
                        await self._update_slot()
                    except Conflict as exc:
                        await self._sync(exc.last)
        except TimeoutError:
            _log.debug("slot %s was not written in time", self._key)
        except BusError as exc:
            self._context.connection.metrics.count("slot_retry")
            _log.debug("slot %s was not written, retrying: %s", self._key, exc)

    async def _update_slot(self) -> None:
        record = self._slot_record()
        self._revision = await self._context.slots.update(self._key, record, self._revision)
        # The record may come back before its acknowledgement, and look like another's.
        self._written, self._synced = _facts_of(record), True

    async def _sync(self, seq: int | None) -> None:
        """Find out who wrote the slot's record last.

        It may be as this instance wrote it, another host's, missing after a loss of the store, or
        an own write whose acknowledgement was lost.
        """
        slots = self._context.slots
        await slots.wait_live()
        if seq:
            await slots.wait_for(seq)
        self._synced = True
        record = slots.get(self._key)
        if record is None:
            self._revision = slots.revision(self._key)
            # An instance that has ended claims nothing.
            self._written = self._facts if self.life.info.state in ENDED else None
        elif self._context.me.holds(record.value):
            self._revision = record.revision
            self._written = _facts_of(record.value)
        else:
            self._owns_slot = False
            self._on_lost(f"slot {self._key} was taken by {record.value.host}")

    async def _send_registration(self) -> None:
        registration, self._registration = self._registration, None
        if registration is not None:
            await self._context.registrations.register(registration[0], seq=registration[1])


def is_as_written(
    slots: KeyValueView[SlotRecord], key: str, revision: int, facts: SlotFacts | None
) -> bool:
    """Whether a slot's record is unchanged since it was written with `facts` at `revision`.

    The revision alone does not prove it: a store that lost its data counts from the start.
    """
    record = slots.get(key)
    current = _facts_of(record.value) if record else None
    return slots.revision(key) == revision and current == facts


def slot_facts(
    info: InstanceInfo, failure: str = "", retry_at: datetime | None = None
) -> SlotFacts:
    """The part of a slot record whose change is worth a write: state, health and failure, never
    load.
    """
    facts = (info.id, info.state, info.ready_at, info.endpoint, info.health.healthy)
    return *facts, failure, retry_at


def _facts_of(record: SlotRecord) -> SlotFacts:
    return slot_facts(record.info, record.failure, record.retry_at)
