"""The fleet's index follows each record change, and counts what hosts hold."""

from __future__ import annotations

from bridge.box.state.fleet_index import FleetIndex
from bridge.box.state.records import Demand, HostOrder, HostRecord, Offer, SlotRecord
from bridge.protocol import InstanceHealth, InstanceInfo, InstanceState, now

LEASE = 10.0


def claim(host: str = "box-a", instance_id: str = "web-1") -> SlotRecord:
    info = InstanceInfo(id=instance_id, state=InstanceState.READY, service="web", created_at=now())
    demand = Demand(vcpus=2, memory_mib=64)
    return SlotRecord(host=host, host_id="id", config="c", seq=1, info=info, demand=demand)


def host(*services: str, closing: bool = False) -> HostRecord:
    return HostRecord(
        host_id="id",
        runtime="process",
        cpus=4,
        max_instances=9,
        services={name: Offer() for name in services},
        closing=closing,
    )


def test_a_claim_counts_for_its_host_until_it_is_deleted() -> None:
    index = FleetIndex()
    index.set_slot("web", 0, claim())
    index.set_slot("web", 1, claim(instance_id="web-2"))
    assert index.state.used == {"box-a": 2}
    assert index.state.reserved == {"box-a": Demand(vcpus=4, memory_mib=128)}
    assert index.set_slot("web", 0, None).emptied == []
    change = index.set_slot("web", 1, claim("box-b"))
    assert change.emptied == ["box-a"]
    assert change.before is not None
    assert change.before.host == "box-a"
    assert index.state.used == {"box-b": 1}


def test_a_lost_claim_keeps_its_room_until_it_expires() -> None:
    index = FleetIndex()
    index.set_slot("web", 0, claim())
    index.set_slot("web", 0, None, lost_until=LEASE)
    assert index.state.lost == {"web": {0: "box-a"}}
    assert index.state.used == {"box-a": 1}
    assert index.expire_lost_claims(LEASE - 0.1) == ([], [])
    assert index.expire_lost_claims(LEASE) == (["web"], ["box-a"])
    assert index.state.used == {}


def test_an_unreadable_claim_is_neither_free_nor_counted() -> None:
    index = FleetIndex()
    index.set_slot("web", 0, claim())
    index.set_slot("web", 0, None, unreadable=True)
    assert index.state.unreadable == {"web": {0}}
    assert index.state.free_slots("web", 1, beside=set()) == [1]
    assert index.state.used == {}


def test_offers_are_those_of_live_hosts_that_stay() -> None:
    index = FleetIndex()
    index.set_host("box-a", host("web", "api"))
    index.set_host("box-b", host("web"))
    assert index.state.offering("web").keys() == {"box-a", "box-b"}
    index.set_host("box-b", host("web", closing=True))
    index.set_host("box-a", host("web"))
    assert index.state.offering("web").keys() == {"box-a"}
    assert not index.state.offering("api")
    index.set_host("box-a", None, unreadable=True)
    assert not index.state.offering("web")
    assert index.state.unreadable_hosts == {"box-a"}


def test_a_host_that_holds_claims_and_is_dead_makes_them_orphans() -> None:
    index = FleetIndex()
    index.set_slot("web", 0, claim())
    assert index.set_dead({"box-a"})
    assert not index.set_dead({"box-a"})
    assert index.state.orphans("web") == {0}
    assert index.set_dead(set())
    assert index.state.orphans("web") == set()


def test_a_report_replaces_the_loads_of_its_host_only() -> None:
    index, health = FleetIndex(), InstanceHealth()
    index.set_stats("box-a", {"web-1": health, "web-2": health})
    index.set_stats("box-b", {"web-3": health})
    index.set_stats("box-a", {"web-2": health})
    assert index.state.loads.keys() == {"web-2", "web-3"}
    index.set_stats("box-a", {})
    assert index.state.loads.keys() == {"web-3"}


def test_an_order_is_in_force_until_it_is_lifted() -> None:
    index = FleetIndex()
    index.set_order("box-a", HostOrder(draining=True))
    assert index.state.draining() == ["box-a"]
    index.set_order("box-a", None)
    assert index.state.orders == {}
