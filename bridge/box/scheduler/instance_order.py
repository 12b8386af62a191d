"""The instances of a service, in the orders that decisions and answers need. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from typing import Final

from msgspec.structs import replace

from bridge.box.state.fleet_state import FleetState
from bridge.box.state.lifecycle import ENDED
from bridge.protocol import InstanceInfo, InstanceState

_LEAVING: Final = frozenset({InstanceState.DRAINING, InstanceState.STOPPING})
_COST_TO_END: Final = {
    InstanceState.READY: 1,
    InstanceState.CREATING: 2,
    InstanceState.BOOTING: 3,
    InstanceState.BUSY: 4,
}


def oldest_first(
    fleet: FleetState, service: str, *, leaving: AbstractSet[int] = frozenset()
) -> list[InstanceInfo]:
    """The instances of `service` that have not ended, oldest first, with their newest health.

    Those in the slots `leaving` are shown as Draining.
    """
    instances = []
    for slot, record in fleet.slots_of(service).items():
        info = fleet.latest(record)
        if info.state in ENDED:
            continue
        if slot in leaving and info.state not in _LEAVING:
            info = replace(info, state=InstanceState.DRAINING)
        instances.append(info)
    return sorted(instances, key=lambda info: (info.created_at, info.id))


def idlest(fleet: FleetState, service: str, slots: Iterable[int], count: int) -> list[int]:
    """The `count` of `slots` that are cheapest to end.

    The order is: slots without a living host or instance, Ready with the fewest requests in flight,
    Creating, Booting, Busy; among equals the youngest. A slot whose record cannot be read comes
    last, as its instance may be busy.
    """
    claimed, unreadable = fleet.slots_of(service), fleet.unreadable.get(service, frozenset())

    def cost(slot: int) -> tuple[int, int, float, int]:
        record = claimed.get(slot)
        if record is None or fleet.is_orphan(record):
            return (len(_COST_TO_END) + 1 if slot in unreadable else 0, 0, 0.0, -slot)
        info = fleet.latest(record)
        inflight = info.health.inflight_requests
        return (_COST_TO_END.get(info.state, 0), inflight, -info.created_at.timestamp(), -slot)

    return sorted(slots, key=cost)[:count]
