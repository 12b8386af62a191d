"""How the hosts stand that can run a service: what they could hold, and who else may take it. Pure.

A request is answered from this, so that asking for a service of ten costs the same among a hundred
instances as among a hundred thousand: a look at each of 200 hosts and at what each of them offers
took four times as long as all the rest of an answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import TYPE_CHECKING, Final

from msgspec import Struct

from bridge.protocol import ScaleConfig

if TYPE_CHECKING:
    from bridge.box.model import HostRecord

LIMIT: Final = 1000  # services whose standing is kept


class Standing(Struct, frozen=True, kw_only=True):
    """The hosts for one service with one config. `able` can run it, `why_not` says why the others
    that offer it cannot; `total` is how many instances `able` count for, `rivals` are the other
    services that they offer. `fixes_port` says that each of them has room for one instance alone.
    """

    config: ScaleConfig
    able: Mapping[str, HostRecord]
    why_not: Mapping[str, str]
    total: int
    rivals: AbstractSet[str]
    fixes_port: bool


class Standings:
    """What was found out lately. Whoever changes the fleet tells it what that makes untrue."""

    def __init__(self) -> None:
        self._found: dict[str, Standing] = {}
        self._granted: dict[str, int] = {}

    def get(self, service: str, config: ScaleConfig) -> Standing | None:
        """How the hosts stand for a service with that config, if that is known."""
        found = self._found.get(service)
        return found if found is not None and found.config == config else None

    def keep(self, service: str, standing: Standing) -> None:
        """This is how they stand."""
        if len(self._found) >= LIMIT:
            self.hosts_changed()
        self._found[service] = standing
        self._granted.pop(service, None)

    def granted(self, service: str) -> int | None:
        """How many instances the rivals of a service have been granted in all, if that is known."""
        return self._granted.get(service)

    def keep_granted(self, service: str, count: int) -> None:
        """So many, beside those hosts that were kept last."""
        self._granted[service] = count

    def hosts_changed(self) -> None:
        """Hosts came, went or are another, or are cordoned or no more, or cordoned ones hold more
        or less.
        """
        self._found.clear()
        self._granted.clear()

    def targets_changed(self) -> None:
        """Some service's target is another."""
        self._granted.clear()
