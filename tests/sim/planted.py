"""Defects to put in, one at a time: a simulation that does not find them is worth nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from bridge.box.fleet import view
from bridge.bus.leases import WatchedLeases


def _no_guard(leases: WatchedLeases[str], now: float) -> set[str]:
    """Whoever is gone is dead, though many are, and however short the watch was."""
    return set(leases._expiries)


async def _no_look(self: view.FleetView, claim: Any) -> bool:
    """The last look before a takeover is left out, and so is waiting for the lease's end."""
    return True


PLANTED: Final[Mapping[str, tuple[Any, str, Any] | None]] = {
    "services-without-cas": None,  # a flag of the store, which then does not compare
    "slots-without-cas": None,
    "leases-without-guard": (WatchedLeases, "dead", _no_guard),
    "everyone-is-dead": (view.FleetView, "is_dead", _no_look),
}


def plant(name: str) -> Callable[[], None]:
    """Put the defect in; what is returned takes it out again."""
    patch = PLANTED.get(name)
    if patch is None:
        return lambda: None
    target, attribute, defect = patch
    before = getattr(target, attribute)
    setattr(target, attribute, defect)
    return lambda: setattr(target, attribute, before)
