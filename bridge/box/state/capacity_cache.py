"""The cached capacity of the hosts that can run a service, and what other services use of it. Pure.

With the cache a request for a service of ten instances costs the same in a fleet of a hundred
instances as in one of a hundred thousand. Without it, a look at each of 200 hosts and their offers
took four times as long as the rest of an answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Final

from msgspec import Struct

from bridge.box.state.records import HostRecord, ServiceRecord
from bridge.protocol import ScaleConfig

LIMIT: Final = 1000  # services whose capacity is kept


class Capacity(Struct, frozen=True, kw_only=True):
    """The hosts for one service with one config.

    The hosts in `able` can run it; `blockers` has the reason why each of the others that offer it
    cannot. `total` is how many instances the `able` hosts count for. `places` is how many they can
    have if a fixed port leaves room for one on each host, else None. If `on_request`, a request
    alone has made the service.
    """

    config: ScaleConfig
    on_request: bool
    able: Mapping[str, HostRecord]
    blockers: Mapping[str, str]
    total: int
    places: int | None


class Competition(Struct, frozen=True, kw_only=True):
    """The other services that may use the same hosts, and the sum of their targets."""

    rivals: AbstractSet[str]
    count: int


class CapacityCache:
    """The capacities and competitions computed since the fleet last changed in a way that could
    change them. Code that changes the fleet calls `hosts_changed` and `records_changed`. A cache
    with the `limit` 0 keeps nothing.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._capacities: dict[str, Capacity] = {}
        self._competitions: dict[str, Competition] = {}

    def capacity(self, service: str, record: ServiceRecord) -> Capacity | None:
        """The capacity for a service with the config of `record`, if it is cached."""
        capacity = self._capacities.get(service)
        if capacity is None:
            return None
        same = (capacity.config, capacity.on_request) == (record.config, record.on_request)
        return capacity if same else None

    def keep_capacity(self, service: str, capacity: Capacity) -> None:
        """Cache the capacity for a service, in place of the last one."""
        if not self._limit:
            return
        if len(self._capacities) >= self._limit:
            self.hosts_changed()
        self._capacities[service] = capacity
        self._competitions.pop(service, None)

    def competition(self, service: str) -> Competition | None:
        """The competition of a service on the hosts that were cached last, if it is cached."""
        return self._competitions.get(service)

    def keep_competition(self, service: str, competition: Competition) -> None:
        """Cache the competition of a service."""
        if self._limit:
            self._competitions[service] = competition

    def hosts_changed(self) -> None:
        """A host came, left or changed, an order did, or a cordoned host's slot count did."""
        self._capacities.clear()
        self._competitions.clear()

    def records_changed(self) -> None:
        """The record of some service changed."""
        self._competitions.clear()


NO_CACHE: Final = CapacityCache(limit=0)
