"""What this host has in which slot: an instance that lives, leaves or has ended, and when the slot
is tried again after a failure.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta

from msgspec import Struct

from bridge.box.journal.entry import JournalEntry
from bridge.box.runner.instance import Instance
from bridge.box.scheduler.planner import LocalInstance, wake_at
from bridge.box.state.fleet_state import FleetState
from bridge.box.state.records import HostIdentity
from bridge.protocol import InstanceState
from bridge.settings import Timing


class LocalSlot(Struct):
    """A slot of this host: the instance in it, and what follows if that has ended.

    `settled` says that everybody knows of the end, so that the slot may be given up.
    """

    instance: Instance
    failures: int = 0
    retry_at: float = 0.0
    ended: bool = False
    settled: bool = False

    @property
    def counts(self) -> bool:
        """Whether what comes next in the slot depends on how this instance has ended."""
        return self.instance.state is InstanceState.FAILED

    def count(self, timing: Timing, now: datetime) -> None:
        """Have the failure count in its slot, which waits. If the last life of this Box has counted
        it, the wait goes on, for no longer than a new one, should the clock have been set back.
        """
        story = self.instance.story
        retry_at = story.entry.retry_at
        if retry_at is None:
            recovered = self.instance.served_for() >= timing.backoff_reset
            self.failures = 1 if recovered else self.failures + 1
        wait = backoff(self.failures, timing)
        if retry_at is None:
            story.counts(self.failures, now + timedelta(seconds=wait))
        else:
            wait = max(0.0, min(wait, (retry_at - now).total_seconds()))
        self.retry_at = time.monotonic() + wait

    def as_planned(self) -> LocalInstance:
        """What a plan is told of it."""
        return LocalInstance(
            ended=self.ended,
            settled=self.settled,
            leaving=self.instance.leaving,
            failures=self.failures if self.ended else 0,
            retry_at=self.retry_at,
        )


class LocalSlots:
    """The slots of `me`, by service."""

    def __init__(self, me: HostIdentity) -> None:
        self._me = me
        self._held: dict[str, dict[int, LocalSlot]] = {}
        self._by_id: dict[str, LocalSlot] = {}

    def __bool__(self) -> bool:
        return bool(self._held)

    @property
    def services(self) -> list[str]:
        """The services of which something is held."""
        return list(self._held)

    def of(self, service: str) -> Mapping[int, LocalSlot]:
        """What is held of `service`, by slot."""
        return self._held.get(service, {})

    def at(self, service: str, slot: int) -> LocalSlot | None:
        """What is held in that slot."""
        return self.of(service).get(slot)

    def locals(self, service: str) -> dict[int, LocalInstance]:
        """What a plan for `service` is told."""
        return {slot: held.as_planned() for slot, held in self.of(service).items()}

    def instances(self) -> Iterator[Instance]:
        """Those that have not ended."""
        for slots in self._held.values():
            yield from (held.instance for held in slots.values() if not held.ended)

    def living(self, instance_id: str) -> Instance | None:
        """The instance of this id, if it is held and has not ended."""
        held = self._by_id.get(instance_id)
        return None if held is None or held.ended else held.instance

    def retries(self, *, since: float) -> dict[str, float]:
        """When (monotonic) which services are to be planned again after one that was made then."""
        due = {
            service: wake_at(self.locals(service).values(), since=since) for service in self._held
        }
        return {service: at for service, at in due.items() if at is not None}

    def vacant(self, state: FleetState, only: str | None = None) -> list[int]:
        """The slots, of one service or of all, that `me` has claimed and in which nothing lives."""
        return [
            slot
            for service in (state.slots if only is None else [only])
            for slot, claim in state.slots_of(service).items()
            if self._me.holds(claim) and ((held := self.at(service, slot)) is None or held.settled)
        ]

    # ── what changes ─────────────────────────────────────────────────────────────────────

    def hold(self, instance: Instance, entry: JournalEntry) -> LocalSlot:
        """The instance is what this host has in its slot from now on."""
        held = LocalSlot(instance=instance, failures=entry.failures)
        slots = self._held.setdefault(entry.life.info.service, {})
        if (before := slots.get(entry.slot)) is not None:
            before.instance.story.supersede()
        slots[entry.slot] = self._by_id[instance.id] = held
        return held

    def settle(self, held: LocalSlot) -> None:
        """The instance has ended and all is told. A failure counts for what comes next."""
        held.settled = True
        story = held.instance.story
        self._by_id.pop(story.id, None)
        story.close()
        there = self.at(story.life.info.service, story.entry.slot)
        if not (held.counts and there is held):
            story.forget()

    def forget_dead(self, service: str, state: FleetState) -> None:
        """Ended instances in slots that are not this host's, or not wanted, are history."""
        claims, held = state.slots_of(service), self._held.get(service, {})
        for slot in [slot for slot, item in held.items() if item.settled]:
            claim = claims.get(slot)
            if claim is None or not self._me.holds(claim):
                dead = held.pop(slot)
                if dead.counts:
                    dead.instance.story.forget()
        if not held:
            self._held.pop(service, None)


def backoff(failures: int, timing: Timing) -> float:
    """Seconds to wait before the next instance after `failures` running: doubling, bounded."""
    return min(timing.backoff_first * 2.0 ** min(failures - 1, 30), timing.backoff_max)
