"""The instances of a fleet, oldest first, as pages list them. Pure.

To sort 30,000 instances for each page of a few thousand takes longer than the page itself. An order
is sorted when it is first read; later changes are merged into it at the next read.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Final

from bridge.box.state.lifecycle import ENDED
from bridge.box.state.records import SlotRecord

_SMALL: Final = 1000  # claims of a service that are sorted again for each read
_FEW: Final = 100  # changes that are merged one by one
_LAST: Final = chr(0x10FFFF)  # sorts after every service name

Place = tuple[datetime, str, str, int]
"""When an instance was created, its id, its service and its slot: instances sort by it."""


class AgeOrder:
    """The order of all instances and of each large service, by their claims in `slots`.

    Code that changes `slots` reports each change here. What no page has asked for costs nothing.
    """

    def __init__(self, slots: Mapping[str, Mapping[int, SlotRecord]]) -> None:
        self._slots = slots
        self._all: _Order | None = None
        self._services: dict[str, _Order] = {}

    def places(self, service: str = "") -> list[Place]:
        """The places of the instances that have not ended, oldest first; "" means of all services.
        The caller must not change the list, and not keep it.
        """
        if not service:
            if self._all is None:
                self._all = _Order(
                    place for name, claims in self._slots.items() for place in _of(name, claims)
                )
            return self._all.places()
        order = self._services.get(service)
        if order is None:
            claims = self._slots.get(service, {})
            order = _Order(_of(service, claims))
            if len(claims) >= _SMALL:
                self._services[service] = order
        return order.places()

    def slot_changed(
        self, service: str, slot: int, before: SlotRecord | None, after: SlotRecord | None
    ) -> None:
        """The claim of a slot has come, changed or gone."""
        if self._all is None and not self._services:
            return
        old, new = _place(service, slot, before), _place(service, slot, after)
        if old == new:
            return
        for order in (self._all, self._services.get(service)):
            if order is not None:
                if old is not None:
                    order.remove(old)
                if new is not None:
                    order.add(new)
        if not self._slots.get(service):
            self._services.pop(service, None)


class _Order:
    """Sorted places. What comes and goes waits until the next read: no more than is there."""

    def __init__(self, places: Iterable[Place]) -> None:
        self._sorted = sorted(places)
        self._fresh: set[Place] = set()
        self._gone: set[Place] = set()

    def add(self, place: Place) -> None:
        if place in self._gone:
            self._gone.discard(place)
        else:
            self._fresh.add(place)

    def remove(self, place: Place) -> None:
        if place in self._fresh:
            self._fresh.discard(place)
        else:
            self._gone.add(place)

    def places(self) -> list[Place]:
        if len(self._gone) > _FEW:
            self._sorted = [place for place in self._sorted if place not in self._gone]
        else:
            for place in self._gone:
                del self._sorted[bisect_left(self._sorted, place)]
        if len(self._fresh) > _FEW:
            self._sorted += self._fresh
            self._sorted.sort()
        else:
            for place in self._fresh:
                insort(self._sorted, place)
        self._gone.clear()
        self._fresh.clear()
        return self._sorted


def after(places: list[Place], created_at: datetime, instance_id: str) -> int:
    """The index of the first place after an instance, whether or not it is still there."""
    return bisect_right(places, (created_at, instance_id, _LAST, 0))


def _of(service: str, claims: Mapping[int, SlotRecord]) -> Iterable[Place]:
    places = (_place(service, slot, claim) for slot, claim in claims.items())
    return (place for place in places if place is not None)


def _place(service: str, slot: int, claim: SlotRecord | None) -> Place | None:
    if claim is None or claim.info.state in ENDED:
        return None
    return claim.info.created_at, claim.info.id, service, slot
