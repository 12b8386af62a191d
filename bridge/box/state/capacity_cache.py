"""How the hosts stand that can run a service: what they could hold, and who else may take it. Pure.

A request is answered from this, so that asking for a service of ten costs the same among a hundred
instances as among a hundred thousand: a look at each of 200 hosts and at what each of them offers
took four times as long as all the rest of an answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Final

from msgspec import Struct

from bridge.box.state.records import HostRecord, ServiceRecord
from bridge.protocol import ScaleConfig

LIMIT: Final = 1000  # services whose standing is kept


class Capacity(Struct, frozen=True, kw_only=True):
    """The hosts for one service with one config. `able` can run it, `why_not` says why the others
    that offer it cannot; `total` is how many instances `able` count for, `places` how many they can
    have where a fixed port leaves room for one alone on each, else None. `on_request`: a request
    makes the service.
    """

    config: ScaleConfig
    on_request: bool
    able: Mapping[str, HostRecord]
    why_not: Mapping[str, str]
    total: int
    places: int | None


class Competition(Struct, frozen=True, kw_only=True):
    """The other services that may use the same hosts, and how many instances they were granted."""

    rivals: AbstractSet[str]
    count: int


class CapacityCache:
    """What was found out lately. Whoever changes the fleet tells it what that makes untrue."""

    def __init__(self) -> None:
        self._found: dict[str, Capacity] = {}
        self._promised: dict[str, Competition] = {}

    def get(self, service: str, wanted: ServiceRecord) -> Capacity | None:
        """How the hosts stand for a service as `wanted` has it, if that is known."""
        found = self._found.get(service)
        if found is None or (found.config, found.on_request) != (wanted.config, wanted.on_request):
            return None
        return found

    def keep(self, service: str, standing: Capacity) -> None:
        """This is how they stand."""
        if len(self._found) >= LIMIT:
            self.hosts_changed()
        self._found[service] = standing
        self._promised.pop(service, None)

    def promised(self, service: str) -> Competition | None:
        """What the rivals of a service have been granted, if that is known."""
        return self._promised.get(service)

    def keep_promised(self, service: str, promised: Competition) -> None:
        """That is it, beside those hosts that were kept last."""
        self._promised[service] = promised

    def hosts_changed(self) -> None:
        """Hosts came, went or are another, or are cordoned or no more, or cordoned ones hold more
        or less.
        """
        self._found.clear()
        self._promised.clear()

    def records_changed(self) -> None:
        """Some service's record is another."""
        self._promised.clear()
