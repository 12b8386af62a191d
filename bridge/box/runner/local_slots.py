"""The slots of this host: the instance in each, and when a slot is retried after a failure."""

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
    """A slot of this host and its last instance, which may have ended.

    `retry_at` (monotonic) is when the next instance may be created after a failure. `settled` means
    that the end of the instance is published, so that the slot may be given up.
    """

    instance: Instance
    failures: int = 0
    retry_at: float = 0.0
    ended: bool = False
    settled: bool = False

    @property
    def failed(self) -> bool:
        """Whether the instance failed, so that the slot's back-off depends on it."""
        return self.instance.state is InstanceState.FAILED

    def count_failure(self, timing: Timing, now: datetime) -> None:
        """Count the failure of the instance, and start the slot's back-off.

        A failure that an earlier process has counted is not counted again. Its back-off goes on, at
        most as long as a new one would, in case the clock was set back.
        """
        publication = self.instance.publication
        retry_at = publication.entry.retry_at
        if retry_at is None:
            recovered = self.instance.seconds_serving() >= timing.backoff_reset
            self.failures = 1 if recovered else self.failures + 1
        wait = backoff(self.failures, timing)
        if retry_at is None:
            publication.record_failure(self.failures, now + timedelta(seconds=wait))
        else:
            wait = max(0.0, min(wait, (retry_at - now).total_seconds()))
        self.retry_at = time.monotonic() + wait

    def to_plan(self) -> LocalInstance:
        """The slot as the planner reads it."""
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
        self._slots: dict[str, dict[int, LocalSlot]] = {}
        self._by_id: dict[str, LocalSlot] = {}

    def __bool__(self) -> bool:
        return bool(self._slots)

    @property
    def services(self) -> list[str]:
        """The services that have a slot here."""
        return list(self._slots)

    def of(self, service: str) -> Mapping[int, LocalSlot]:
        """The slots of `service`, by number."""
        return self._slots.get(service, {})

    def at(self, service: str, slot: int) -> LocalSlot | None:
        """One slot, None if this host has no instance in it."""
        return self.of(service).get(slot)

    def to_plan(self, service: str) -> dict[int, LocalInstance]:
        """The slots of `service` as the planner reads them."""
        return {number: slot.to_plan() for number, slot in self.of(service).items()}

    def instances(self) -> Iterator[Instance]:
        """The instances that have not ended."""
        for slots in self._slots.values():
            yield from (slot.instance for slot in slots.values() if not slot.ended)

    def find(self, instance_id: str) -> Instance | None:
        """The instance of this id, None if it has ended or is not on this host."""
        slot = self._by_id.get(instance_id)
        return None if slot is None or slot.ended else slot.instance

    def retries(self, *, since: float) -> dict[str, float]:
        """When (monotonic) services need another plan after one made at `since`."""
        due = {
            service: wake_at(self.to_plan(service).values(), since=since) for service in self._slots
        }
        return {service: at for service, at in due.items() if at is not None}

    def vacant(self, state: FleetState, only: str | None = None) -> list[int]:
        """The slots that `me` has claimed and in which no instance is left.

        `only` limits them to one service.
        """
        return [
            number
            for service in (state.slots if only is None else [only])
            for number, claim in state.slots_of(service).items()
            if self._me.holds(claim)
            and ((slot := self.at(service, number)) is None or slot.settled)
        ]

    # ── changes ──────────────────────────────────────────────────────────────────────────

    def put(self, instance: Instance, entry: JournalEntry) -> LocalSlot:
        """Put the instance into its slot; it supersedes the one before."""
        slot = LocalSlot(instance=instance, failures=entry.failures)
        slots = self._slots.setdefault(entry.life.info.service, {})
        if (before := slots.get(entry.slot)) is not None:
            before.instance.publication.supersede()
        slots[entry.slot] = self._by_id[instance.id] = slot
        return slot

    def settle(self, slot: LocalSlot) -> None:
        """The end of the instance is published.

        Its journal entry stays while the slot's back-off depends on it.
        """
        slot.settled = True
        publication = slot.instance.publication
        self._by_id.pop(publication.id, None)
        publication.close()
        current = self.at(publication.life.info.service, publication.entry.slot)
        if not (slot.failed and current is slot):
            publication.forget()

    def prune(self, service: str, state: FleetState) -> None:
        """Drop the settled slots that this host does not claim any more."""
        claims, slots = state.slots_of(service), self._slots.get(service, {})
        for number in [number for number, slot in slots.items() if slot.settled]:
            claim = claims.get(number)
            if claim is None or not self._me.holds(claim):
                slot = slots.pop(number)
                if slot.failed:
                    slot.instance.publication.forget()
        if not slots:
            self._slots.pop(service, None)


def backoff(failures: int, timing: Timing) -> float:
    """Seconds to wait after `failures` consecutive failures: doubling, with a maximum."""
    return min(timing.backoff_first * 2.0 ** min(failures - 1, 30), timing.backoff_max)
