"""The rank of each instance of a service: 0 … target − 1, without gaps. Pure.

A rank belongs to a slot, so every Box derives the same ranks from the service's record. A slot
keeps its rank as long as it is a member of the set and the target exceeds the rank. A slot that
leaves hands its rank to the one that replaces it. An extra slot of a rollout has no rank until
then.

A service with more than 10,000 replicas has its slots ranked in order, and they may change their
ranks: to keep them would take too much of the record that each decision writes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Final

from bridge.box.state.records import ServiceRecord

_KEPT: Final = 10_000  # ranks that a record keeps: some 60 kB


def ranked(record: ServiceRecord) -> Sequence[int]:
    """The slot of each rank."""
    return record.ranks or record.slots[: record.target]


def rank_of(record: ServiceRecord) -> Callable[[int], int | None]:
    """A function from a slot to its rank; None for a slot that has no rank."""
    if record.ranks:
        return {slot: rank for rank, slot in enumerate(record.ranks)}.get
    slots, target = record.slots, record.target

    def rank(slot: int) -> int | None:
        index = bisect_left(slots, slot, hi=target)
        return index if index < target and slots[index] == slot else None

    return rank


def rerank(before: ServiceRecord, slots: Sequence[int], target: int) -> list[int]:
    """The `ranks` of a record with these `slots` and this `target`, after the record `before`."""
    if target > _KEPT:
        return []
    members, old = set(slots), ranked(before)
    ranks = [slot if slot in members else None for slot in old[:target]]
    ranks += [None] * (target - len(ranks))
    moved = [slot for slot in old[target:] if slot in members]
    fresh = iter([*moved, *sorted(members.difference(old))])
    filled = [next(fresh) if slot is None else slot for slot in ranks]
    return [] if filled == list(slots[:target]) else filled
