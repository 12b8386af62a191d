"""What is not yet as it should be in a simulated fleet that is healed.

Each slot of a set runs once and is Ready, unless no host has room for it; nothing else runs, and no
rollout has a step left to take.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

from bridge.box.scheduler import rollout
from bridge.box.scheduler.placement import host_port, run_blocker
from bridge.box.state.lifecycle import SERVING
from bridge.box.state.records import ServiceRecord, SlotRecord
from bridge.subjects import parse_slot_key, slot_key

if TYPE_CHECKING:
    from tests.sim.checks import Checks
    from tests.sim.world import World


class Unsettled:
    """See the module."""

    def __init__(self, world: World, checks: Checks) -> None:
        self._world = world
        self._checks = checks

    def all(self) -> Iterator[str]:
        """What is not yet as it should be, with all healed."""
        world, now = self._world, self._world.kernel.now
        services = {key: e.value for key, e in world.buckets["services"].last.items()}
        claims = self._claims_by_service()
        running = {
            instance: host.name for host in world.hosts.values() for instance in host.running
        }
        for host in world.hosts.values():
            if host.in_trouble and not host.gone:
                yield f"{host.name} may not plan"
        for service, record in services.items():
            wanted = set(record.slots)
            for slot, claim in claims.pop(service, {}).items():
                where = running.get(claim.info.id)
                if where == claim.host and slot in wanted:
                    if claim.info.state in SERVING:
                        del running[claim.info.id]
                        continue
                elif slot in wanted and self._is_stuck(service, record, slot, claim):
                    continue
                yield f"{service}.{slot} of {claim.host} is {claim.info.state}, runs at {where}"
            yield from self._unplaced(service, record, now)
        for service in claims:
            yield f"{service} has claims and no record"
        for instance, name in running.items():
            yield f"{instance} runs on {name}, and is nobody's"

    def _claims_by_service(self) -> dict[str, dict[int, SlotRecord]]:
        claims: dict[str, dict[int, SlotRecord]] = defaultdict(dict)
        for key, entry in self._world.buckets["slots"].last.items():
            if entry.value is not None:
                service, slot = parse_slot_key(key)
                claims[service][slot] = entry.value
        return claims

    def _is_stuck(self, service: str, record: ServiceRecord, slot: int, claim: SlotRecord) -> bool:
        """Whether a slot stays with a host that is gone, because no other host has room."""
        host = self._world.hosts[claim.host]
        away = host.gone or host.host_id != claim.host_id
        return away and not self._has_room(service, record, slot)

    def _unplaced(self, service: str, record: ServiceRecord, now: float) -> Iterator[str]:
        claimed = self._world.buckets["slots"].last
        for slot in record.slots:
            entry = claimed.get(slot_key(service, slot))
            if (entry is None or entry.value is None) and self._has_room(service, record, slot):
                yield f"{service}.{slot} is free, and there is room for it"
        if not any(
            service in host.services for host in self._world.hosts.values() if not host.gone
        ):
            return  # a rollout goes on once a host is back that offers the service
        state = self._world.a_state()
        if rollout.is_under_way(service, state):
            step = rollout.next_step(service, state, at=self._world.kernel.wall(), host="anyone")
            stuck = any(
                self._is_stuck(service, record, slot, claim)
                for slot, claim in state.slots_of(service).items()
            )
            if step is not None or (len(record.slots) != record.target and not stuck):
                yield f"{service} is being rolled out"
        elif len(record.slots) != record.target and not (record.rollout and record.rollout.stopped):
            yield f"{service} has {len(record.slots)} slots for a target of {record.target}"

    def _has_room(self, service: str, record: ServiceRecord, slot: int) -> bool:
        at = self._world.kernel.wall()
        avoided = {item.host for item in record.avoid if item.slot == slot and item.until > at}
        for host in self._world.hosts.values():
            if host.gone or service not in host.services or host.name in avoided:
                continue
            there = host.record()
            fits = not run_blocker(service, there, record.config)
            taken = host_port(record.config, there, service) and any(
                key.startswith(f"{service}.") and entry.value and entry.value.host == host.name
                for key, entry in self._world.buckets["slots"].last.items()
            )
            if fits and not taken and self._checks.claims[host.name] < host.room:
                return True
        return False
