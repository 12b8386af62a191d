"""This host's claims on slots: claiming free slots and dead hosts' slots, and giving slots up.

Each of these is one compare-and-set, so the first write wins. The Box that takes a slot from a dead
host withdraws the old instance from gateways; no other Box does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container
from datetime import datetime

from msgspec.structs import replace

from bridge.box.fleet.decisions import Decisions
from bridge.box.fleet.view import FleetView
from bridge.box.scheduler.placement import demand, room, run_blocker
from bridge.box.scheduler.planner import with_avoidance
from bridge.box.state import lifecycle
from bridge.box.state.fleet_state import FleetState
from bridge.box.state.records import NO_OFFER, Decision, HostIdentity, ServiceRecord, SlotRecord
from bridge.bus.jetstream.kv_view import Record
from bridge.bus.registrations import Registrations
from bridge.ids import new_id
from bridge.protocol import InstanceDeregistration
from bridge.subjects import slot_key

_log = logging.getLogger(__name__)


class Claims:
    """Writes the slot records of `me`. `services` are those that this host lists.

    Its methods raise Conflict when another Box was faster, and other BusErrors.
    """

    def __init__(
        self,
        me: HostIdentity,
        fleet: FleetView,
        decisions: Decisions,
        registrations: Registrations,
        services: Container[str],
        clock: Callable[[], datetime],
    ) -> None:
        self._me = me
        self._fleet = fleet
        self._decisions = decisions
        self._registrations = registrations
        self._services = services
        self._clock = clock

    def can_make(self, service: str, record: ServiceRecord) -> bool:
        """Whether this host can run the service by its current record."""
        me, listed = self._fleet.state.hosts.get(self._me.host), service in self._services
        if me is None or listed != (service in me.services) or not (listed or record.on_request):
            return False
        return not run_blocker(service, me, record.config)

    async def take(self, service: str, slot: int) -> Record[SlotRecord] | None:
        """Claim a slot that is free, or a dead host's. None if the plan is outdated."""
        record = self._fleet.state.services.get(service)
        if record is None or not self.can_make(service, record):
            return None
        if not self._is_due(service, slot):
            return None
        key, slots = slot_key(service, slot), self._fleet.slots
        claim = self._claim(service, record)
        if slots.get(key) is None:
            return Record(claim, await slots.create(key, claim))
        dead = await self._dead_claim(service, slot)
        if dead is None:
            return None
        revision = await slots.update(key, claim, dead.revision)
        self._withdraw(service, dead.value)
        return Record(claim, revision)

    def _is_due(self, service: str, slot: int) -> bool:
        """Whether the slot is still in the set, and this host has room for it.

        A host keeps the room for a slot whose claim the store has lost.
        """
        state, me = self._fleet.state, self._me.host
        if slot not in state.service_slots(service).wanted:
            return False
        return state.lost.get(service, {}).get(slot) == me or room(me, state.hosts[me], state) > 0

    async def discard(self, service: str, slot: int) -> None:
        """Delete a dead host's claim of a slot that is in no set."""
        dead = await self._dead_claim(service, slot)
        if dead is not None:
            await self._fleet.slots.delete(slot_key(service, slot), dead.revision)
            self._withdraw(service, dead.value)

    async def release(self, service: str, slot: int) -> None:
        """Delete this host's claim of a slot without an instance, if it still has the claim."""
        key = slot_key(service, slot)
        record = self._fleet.slots.get(key)
        if record is not None and self._me.holds(record.value):
            await self._fleet.slots.delete(key, record.revision)

    async def give_up(self, service: str, slot: int) -> None:
        """Let another host try a slot in which instances keep failing here."""
        if await self.avoid(service, slot, self._me.host):
            _log.warning(
                "%s keeps failing here: given up for another host", slot_key(service, slot)
            )
            await self.release(service, slot)

    async def avoid(self, service: str, slot: int, host: str) -> bool:
        """Keep `slot` off `host`, on which its instances keep failing; whether that is stored."""

        def avoid_host(fleet: FleetState) -> ServiceRecord | None:
            record = fleet.services.get(service)
            if record is None or slot not in record.slots:
                return None
            at = self._clock()
            note = f"slot {slot} keeps failing on {host}: another host tries"
            return replace(
                record,
                version=record.version + 1,
                avoid=with_avoidance(record, slot, host, at),
                decision=Decision(
                    at=at, host=self._me.host, replicas=record.target, error=note, step=True
                ),
            )

        return await self._decisions.amend(service, avoid_host)

    def new_life(self, service: str) -> lifecycle.Life:
        """The lifecycle of a new instance, with an id that no other instance has had."""
        return lifecycle.begin(new_id(service), service, self._clock())

    def _claim(self, service: str, record: ServiceRecord) -> SlotRecord:
        """A claim of this host, with a new instance in it."""
        return SlotRecord(
            host=self._me.host,
            host_id=self._me.host_id,
            config=record.config_id,
            settings=self._fleet.state.hosts[self._me.host]
            .services.get(service, NO_OFFER)
            .settings,
            seq=0,
            info=self.new_life(service).info,
            demand=demand(record.config, self._fleet.state.hosts[self._me.host], service),
        )

    async def _dead_claim(self, service: str, slot: int) -> Record[SlotRecord] | None:
        """The claim of `slot`, if its holder is surely dead."""
        claim = self._fleet.slots.get(slot_key(service, slot))
        if claim is None or not await self._fleet.is_dead(claim.value):
            return None
        return claim

    def _withdraw(self, service: str, claim: SlotRecord) -> None:
        instance_id = claim.info.id
        _log.warning("host %s is lost, and %s with it", claim.host, instance_id)
        reason = f"host {claim.host} lost"
        self._registrations.withdraw(
            InstanceDeregistration(instance_id=instance_id, service=service, reason=reason)
        )
        self._registrations.forget(instance_id)  # this host never registered it
