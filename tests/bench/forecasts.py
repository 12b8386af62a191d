"""What a Box works out in one go, in a loop with a lease to renew: about a service of any size,
half of which nobody has claimed yet.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from msgspec.structs import replace

from bridge.box.scheduler.admission import AdmissionRequest, decide
from bridge.box.scheduler.diagnosis import notices
from bridge.box.scheduler.drain_forecast import room_lacking
from bridge.box.scheduler.planner import plan
from bridge.box.scheduler.rebalance import balance
from bridge.box.scheduler.reports import hosts
from bridge.box.scheduler.reports import plan as explain
from bridge.box.state.fleet_state import FleetState
from bridge.box.state.records import (
    Demand,
    HostIdentity,
    HostOrder,
    HostRecord,
    Offer,
    ServiceRecord,
    SlotRecord,
)
from bridge.protocol import InstanceInfo, InstanceState, ScaleRequest, now

_A_HOST: Final = 100  # instances of the service, on average
_ROOM: Final = 200
_DEMAND: Final = Demand(vcpus=1, memory_mib=64)


def fleet_of(size: int) -> FleetState:
    """A service of so many slots on a hundredth as many hosts; every other one is claimed, by the
    first half of the hosts.
    """
    offer, at = Offer(demand=_DEMAND), now()
    hosts = {
        f"host-{number:04}": HostRecord(
            host_id="id", runtime="process", cpus=64, max_instances=_ROOM, services={"web": offer}
        )
        for number in range(max(2, size // _A_HOST))
    }
    record = ServiceRecord(version=1, target=size, slots=list(range(size)))
    names = list(hosts)[: len(hosts) // 2]
    claims = {}
    for slot in range(0, size, 2):
        info = InstanceInfo(
            id=f"web-{slot}",
            state=InstanceState.READY,
            service="web",
            created_at=at,
            ready_at=at,
        )
        claims[slot] = SlotRecord(
            host=names[slot // 2 % len(names)],
            host_id="id",
            config=record.config_id,
            seq=1,
            info=info,
            demand=_DEMAND,
        )
    used = Counter(claim.host for claim in claims.values())
    return FleetState(
        hosts=hosts,
        services={"web": record},
        slots={"web": claims},
        used=used,
        reserved={name: Demand().plus(_DEMAND, count) for name, count in used.items()},
    )


def works(size: int) -> dict[str, Callable[[], object]]:
    """What a Box may have to work out about a service of `size` slots."""
    fleet, at = fleet_of(size), now()
    host = next(iter(fleet.hosts))
    asked = AdmissionRequest(
        request=ScaleRequest(service="web", replicas=size + 1), host=host, at=at
    )
    me = HostIdentity(host=host, host_id="id")
    names = list(fleet.hosts)
    orders = dict.fromkeys(names[: max(1, len(names) // 5)], HostOrder(draining=True))
    drained = replace(fleet, orders=orders)
    return {
        "a Box plans one service": lambda: plan("web", fleet, me, {}, now=0.0, at=at),
        "what does a service lack?": lambda: notices(fleet, ["web"], at=at),
        "box.plan": lambda: explain(asked, decide(asked, fleet), fleet),
        "may a host be drained?": lambda: room_lacking(host, fleet, at=at),
        "box.hosts, a fifth of them being drained": lambda: hosts(drained, names, at=at),
        "rebalance: which move?": lambda: balance(fleet),
    }


def measure(size: int, add: Callable[[int, float, str, str, int], None]) -> None:
    """Add what each costs."""
    for name, work in works(size).items():
        start = time.process_time()
        work()
        add(size, (time.process_time() - start) * 1e3, name, "ms", 1)
