"""This host's claims on slots: taking free ones, those of the dead, and giving its own up.

Each is one compare-and-set, so the first to write wins. What is taken from a dead host is withdrawn
from gateways by whoever took it, and by nobody else.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container
from datetime import datetime

from msgspec.structs import replace

from bridge.box.fleet.decisions import Decisions
from bridge.box.fleet.view import FleetView
from bridge.box.scheduler.placement import demand, room, unfit
from bridge.box.scheduler.planner import avoiding
from bridge.box.state import lifecycle
from bridge.box.state.fleet_state import FleetState
from bridge.box.state.records import Decision, HostIdentity, ServiceRecord, SlotRecord
from bridge.bus.jetstream.kv_view import Record
from bridge.bus.registrations import Registrations
from bridge.ids import new_id
from bridge.protocol import InstanceDeregistration
from bridge.subjects import slot_key

_log = logging.getLogger(__name__)


class Claims:
    """Writes the slot records of `me`. `services` are those that this host lists.

    What is raised is what `Records` raises: Conflict when somebody was faster, other BusErrors.
    """

    def __init__(
        self,
        me: HostIdentity,
        fleet: FleetView,
        ledger: Decisions,
        registry: Registrations,
        services: Container[str],
        clock: Callable[[], datetime],
    ) -> None:
        self._me = me
        self._fleet = fleet
        self._ledger = ledger
        self._registry = registry
        self._services = services
        self._clock = clock

    def can_make(self, service: str, record: ServiceRecord) -> bool:
        """Whether this host can run the service as its record has it now."""
        me, listed = self._fleet.state.hosts.get(self._me.host), service in self._services
        if me is None or listed != (service in me.services) or not (listed or record.on_request):
            return False
        return not unfit(service, me, record.config)

    async def take(self, service: str, slot: int) -> Record[SlotRecord] | None:
        """Claim a slot that is free, or a dead host's. None if there is nothing to do any more."""
        record = self._fleet.state.services.get(service)
        if record is None or not self.can_make(service, record):
            return None
        if not self._is_due(service, slot):
            return None  # the plan is older than what is seen now
        key, slots = slot_key(service, slot), self._fleet.slots
        claim = self._claim(service, record)
        if slots.get(key) is None:
            return Record(claim, await slots.create(key, claim))
        lost = await self._of_the_dead(service, slot)
        if lost is None:
            return None
        claimed = Record(claim, await slots.update(key, claim, lost.revision))
        await self._withdraw(service, lost.value)
        return claimed

    def _is_due(self, service: str, slot: int) -> bool:
        """Whether the slot is still in the set, and this host has room for it, as it keeps for one
        whose claim the store has lost.
        """
        state, me = self._fleet.state, self._me.host
        if slot not in state.service_slots(service).wanted:
            return False
        return state.lost.get(service, {}).get(slot) == me or room(me, state.hosts[me], state) > 0

    async def discard(self, service: str, slot: int) -> None:
        """Delete a dead host's claim of a slot that is in no set."""
        lost = await self._of_the_dead(service, slot)
        if lost is not None:
            await self._fleet.slots.delete(slot_key(service, slot), lost.revision)
            await self._withdraw(service, lost.value)

    async def release(self, service: str, slot: int) -> None:
        """Delete this host's claim of a slot in which nothing lives, if the slot is still its."""
        key = slot_key(service, slot)
        record = self._fleet.slots.get(key)
        if record is not None and self._me.holds(record.value):
            await self._fleet.slots.delete(key, record.revision)

    async def give_up(self, service: str, slot: int) -> None:
        """Let another host try a slot in which instances keep failing here."""
        me = self._me.host

        def kept_off(fleet: FleetState) -> ServiceRecord | None:
            record = fleet.services.get(service)
            if record is None or slot not in record.slots:
                return None
            at = self._clock()
            note = f"slot {slot} keeps failing on {me}: another host tries"
            return replace(
                record,
                version=record.version + 1,
                avoid=avoiding(record, slot, me, at),
                decision=Decision(at=at, host=me, replicas=record.target, error=note, step=True),
            )

        if await self._ledger.amend(service, kept_off):
            _log.warning("%s fails again and again here: let go", slot_key(service, slot))
            await self.release(service, slot)

    def new_life(self, service: str) -> lifecycle.Life:
        """A life that begins now, with an id that no other instance has had."""
        return lifecycle.begin(new_id(service), service, self._clock())

    def _claim(self, service: str, record: ServiceRecord) -> SlotRecord:
        """A claim of this host's, with a new instance in it."""
        return SlotRecord(
            host=self._me.host,
            host_id=self._me.host_id,
            config=record.config_id,
            seq=0,
            info=self.new_life(service).info,
            demand=demand(record.config, self._fleet.state.hosts[self._me.host], service),
        )

    async def _of_the_dead(self, service: str, slot: int) -> Record[SlotRecord] | None:
        """The claim of `slot`, if who holds it is surely dead."""
        there = self._fleet.slots.get(slot_key(service, slot))
        if there is None or not await self._fleet.is_dead(there.value):
            return None
        return there

    async def _withdraw(self, service: str, lost: SlotRecord) -> None:
        _log.warning("host %s is lost, and %s with it", lost.host, lost.info.id)
        reason = f"host {lost.host} lost"
        await self._registry.deregister(
            InstanceDeregistration(instance_id=lost.info.id, service=service, reason=reason)
        )
        self._registry.forget(lost.info.id)  # it was never this host's to register
