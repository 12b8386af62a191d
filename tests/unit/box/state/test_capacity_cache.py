"""What a decision finds out of the hosts is found out once, and never out of date."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from msgspec.structs import replace

from bridge.box.scheduler.admission import Admission, AdmissionRequest, decide
from bridge.box.state.capacity_cache import LIMIT, NO_CACHE, Capacity, CapacityCache
from bridge.box.state.fleet_index import FleetIndex
from bridge.box.state.records import HostOrder, HostRecord, Offer, ServiceRecord, SlotRecord
from bridge.protocol import InstanceInfo, InstanceState, ScaleConfig, ScaleRequest, now

AT = now()
HOSTS = [f"box-{letter}" for letter in "abcd"]
SERVICES = ["api", "web", "work"]


def host(*services: str, room: int = 9, port: int = 0, images: bool = False) -> HostRecord:
    return HostRecord(
        host_id="id",
        runtime="oci" if images else "process",
        images=("docker.io/library/*",) if images else (),
        cpus=4,
        max_instances=room,
        services={name: Offer(fixed_port=port) for name in services},
    )


def claim(service: str, slot: int, name: str) -> SlotRecord:
    info = InstanceInfo(
        id=f"{service}-{slot}", state=InstanceState.READY, service=service, created_at=AT
    )
    return SlotRecord(host=name, host_id="id", config="", seq=1, info=info)


def admission_request(
    service: str, replicas: int, config: ScaleConfig | None = None
) -> AdmissionRequest:
    request = ScaleRequest(service=service, replicas=replicas, config=config or ScaleConfig())
    return AdmissionRequest(request=request, host="box-a", at=AT)


def verdicts(fleet: FleetIndex, question: AdmissionRequest) -> tuple[Admission, Admission]:
    """What is decided with what was found out before, and without."""
    return decide(question, fleet.state), decide(
        question, replace(fleet.state, capacity_cache=NO_CACHE)
    )


def change(fleet: FleetIndex, chance: random.Random) -> None:
    """Something happens to the fleet."""
    name, service = chance.choice(HOSTS), chance.choice(SERVICES)
    match chance.randrange(4):
        case 0:
            offers = chance.sample(SERVICES, chance.randrange(4))
            room, port, images = chance.randrange(1, 9), chance.choice([0, 0, 80]), chance.random()
            new = host(*offers, room=room, port=port, images=images < 0.5)
            fleet.set_host(name, new)
        case 1:
            order = None if name in fleet.state.orders else HostOrder(at=AT)
            fleet.set_order(name, order)
        case 2:
            target = chance.randrange(6)
            record = ServiceRecord(version=1, target=target, slots=list(range(target)))
            if chance.random() < 0.3:
                image = ScaleConfig(image="docker.io/library/busybox:1")
                record = replace(record, on_request=True, config=image)
            fleet.set_service(service, record)
        case 3:
            slot = chance.randrange(6)
            free = slot not in fleet.state.slots_of(service)
            fleet.set_slot(service, slot, claim(service, slot, name) if free else None)


@pytest.mark.parametrize("seed", range(20))
def test_a_decision_with_the_cache_equals_one_without(seed: int) -> None:
    fleet, chance = FleetIndex(), random.Random(seed)
    differed: set[str | None] = set()
    for _ in range(150):
        change(fleet, chance)
        for _ in range(2):  # the second time it is known
            image = chance.choice([None, "busybox:1", "evil/busybox:1"])
            config = ScaleConfig(port_map=chance.choice([[], [], ["80:80"]]), image=image)
            question = admission_request(chance.choice(SERVICES), chance.randrange(8), config)
            quick, plain = verdicts(fleet, question)
            assert quick == plain
            differed.add(plain.response.error)
    assert len(differed) > 5


class Counted(dict[str, HostRecord]):
    """Hosts that count how often all of them are looked at."""

    looks = 0

    def items(self) -> Any:
        self.looks += 1
        return super().items()

    def __iter__(self) -> Iterator[str]:
        self.looks += 1
        return super().__iter__()


def test_requests_do_not_look_at_each_host() -> None:
    fleet = FleetIndex()
    for number in range(50):
        fleet.set_host(f"box-{number}", host("web", "api"))
    fleet.set_service("web", ServiceRecord(target=2, slots=[0, 1]))
    offers = fleet.state.slot_index.offers
    offers["web"] = hosts = Counted(offers["web"])
    for _ in range(100):
        assert decide(admission_request("web", 2), fleet.state).record is None
    assert hosts.looks == 1
    fleet.set_service("api", ServiceRecord(target=1, slots=[0]))
    assert decide(admission_request("web", 2), fleet.state).record is None
    assert hosts.looks == 1
    fleet.set_host("box-7", host("web", room=1))
    assert decide(admission_request("web", 2), fleet.state).record is None
    assert hosts.looks == 2


def test_the_cache_is_bounded() -> None:
    cache = CapacityCache()
    capacity = Capacity(
        config=ScaleConfig(), on_request=False, able={}, blockers={}, total=0, places=None
    )
    for number in range(3 * LIMIT):
        cache.keep_capacity(f"service-{number}", capacity)
    assert len(cache._capacities) <= LIMIT
    last, plain = f"service-{3 * LIMIT - 1}", ServiceRecord()
    assert cache.capacity(last, plain) is capacity
    assert cache.capacity(last, replace(plain, config=ScaleConfig(vcpus=1))) is None
    assert cache.capacity(last, replace(plain, on_request=True)) is None
