"""Telling the fleet what happened to an instance, in order, and losing none of it.

For one instance the order is always: its event is stored, then its slot record says so, then its
registration follows. The instance itself never waits for the bus: it tells its `Story` and goes
on; the story catches up when the bus is there.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from bridge.box.lifecycle import Life
from bridge.box.model import SlotRecord
from bridge.box.registry import Registry
from bridge.bus.connection import Connection
from bridge.bus.publisher import Publisher
from bridge.bus.records import Records
from bridge.errors import BusError, Conflict
from bridge.protocol import (
    InstanceDeregistration,
    InstanceEvent,
    InstanceInfo,
    InstanceRegistration,
    encode,
)
from bridge.subjects import BOX_HOST, BOX_SEQ, MSG_ID, TRACEPARENT, slot_key

_log = logging.getLogger(__name__)


class Teller:
    """What all stories of one host share."""

    def __init__(
        self,
        connection: Connection,
        publisher: Publisher,
        slots: Records[SlotRecord],
        registry: Registry,
        host: str,
    ) -> None:
        self.connection = connection
        self.publisher = publisher
        self.slots = slots
        self.registry = registry
        self.host = host


class Story:
    """The outbox of one instance; `run` empties it.

    `lost` is called once with a reason when another host turns out to hold the slot.
    """

    def __init__(
        self,
        teller: Teller,
        claim: SlotRecord,
        slot: int,
        revision: int,
        *,
        lost: Callable[[str], None],
        traceparent: str = "",
    ) -> None:
        self.traceparent = traceparent
        self._teller = teller
        self._claim = claim
        self._key = slot_key(claim.info.service, slot)
        self._revision = revision
        self._lost = lost
        self._events: deque[tuple[InstanceEvent, int]] = deque()
        self._told = _facts(claim.info)
        self._life = Life(info=claim.info)
        self._registration: InstanceRegistration | InstanceDeregistration | None = None
        self._work = asyncio.Event()
        self._idle = asyncio.Event()
        self._owned = True

    def tell(self, life: Life, event: InstanceEvent | None = None) -> None:
        """`life` as it stands now, and the event that made it so."""
        self._life = life
        if event is not None:
            self._events.append((event, life.seq))
        if event is not None or _facts(life.info) != self._told:
            self._stir()

    def register(self, registration: InstanceRegistration | InstanceDeregistration) -> None:
        """What gateways shall know, once what was told so far is stored."""
        self._registration = registration
        self._stir()

    async def settled(self) -> None:
        """Return when everything told is out."""
        await self._idle.wait()

    async def run(self) -> None:
        """Send what is told until cancelled."""
        while True:
            await self._work.wait()
            self._work.clear()
            await self._send_events()
            await self._write_slot()
            if not self._events:
                await self._send_registration()
            if not self._work.is_set():
                self._idle.set()

    def _stir(self) -> None:
        self._idle.clear()
        self._work.set()

    async def _send_events(self) -> None:
        teller = self._teller
        while self._events:
            event, seq = self._events[0]
            headers = {
                MSG_ID: f"{event.instance_id}.{seq}",
                BOX_SEQ: str(seq),
                BOX_HOST: teller.host,
            }
            if self.traceparent:
                headers[TRACEPARENT] = self.traceparent
            subject = teller.connection.subjects.events(event.service)
            await teller.publisher.publish(subject, encode(event), headers)
            teller.connection.metrics.events.inc()
            self._events.popleft()

    async def _write_slot(self) -> None:
        """Bring the slot's record up to the life, for as long as the slot is this host's.

        Leaves off when another event was told meanwhile: that must be stored first.
        """
        while self._owned and not self._events and _facts(self._life.info) != self._told:
            life = self._life
            record = SlotRecord(
                host=self._claim.host,
                host_id=self._claim.host_id,
                config=self._claim.config,
                seq=life.seq,
                info=life.info,
            )
            try:
                await self._teller.connection.wait_connected()
                self._revision = await self._teller.slots.update(self._key, record, self._revision)
                self._told = _facts(life.info)
            except Conflict as exc:
                await self._settle(exc)
            except BusError as exc:
                _log.debug("slot %s not written, trying again: %s", self._key, exc)
                await asyncio.sleep(0.2)

    async def _settle(self, conflict: Conflict) -> None:
        """Somebody else wrote the slot: its key went missing, or it has another owner now, or it
        was this host's own write whose acknowledgement was lost.
        """
        slots = self._teller.slots
        await slots.wait_live()
        if conflict.last:
            await slots.wait_for(conflict.last)
        record = slots.get(self._key)
        if record is None:
            self._revision = slots.revision(self._key)
        elif record.value.info.id == self._claim.info.id:
            self._revision = record.revision
        else:
            self._owned = False
            self._lost(f"slot {self._key} was taken by {record.value.host}")

    @property
    def revision(self) -> int:
        """The revision of the slot's record, as last written."""
        return self._revision

    async def _send_registration(self) -> None:
        wanted, self._registration = self._registration, None
        if isinstance(wanted, InstanceRegistration):
            await self._teller.registry.register(wanted)
        elif wanted is not None:
            await self._teller.registry.deregister(wanted)


def _facts(info: InstanceInfo) -> tuple[object, ...]:
    """What a slot record tells that is worth a write: state and health, never load."""
    return info.id, info.state, info.ready_at, info.endpoint, info.health.healthy
