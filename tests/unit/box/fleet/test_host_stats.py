"""What hosts say of their instances, once a second each: read once, and only as far as needed."""

from __future__ import annotations

import pytest

from bridge.box.fleet.view import FleetView
from bridge.box.state.records import HostRecord
from bridge.bus.core.connection import Connection
from bridge.bus.core.message import Message
from bridge.gateway.routes.state import RouteState
from bridge.observe import Metrics
from bridge.protocol import HostStats, InstanceHealth, encode
from bridge.settings import NatsConfig
from tests.unit.gateway.test_route_state import registration

HOST = HostRecord(host_id="a", runtime="process", cpus=1, max_instances=9, services={})


class Read(dict[str, InstanceHealth]):
    """Stats that count how many of their entries are looked at one by one."""

    looks = 0

    def __getitem__(self, name: str) -> InstanceHealth:
        self.looks += 1
        return super().__getitem__(name)


@pytest.fixture
async def fleet() -> FleetView:
    """A fleet in which a host lives."""
    view = FleetView(Connection(NatsConfig(), "test", Metrics()), 10)
    view._host_changed("box-a", None, HOST)
    return view


def stats(cpu: float = 0.0) -> HostStats:
    return {"web-1": InstanceHealth(cpu_percent=cpu), "web-2": InstanceHealth()}


def tell(fleet: FleetView, report: HostStats | bytes, host: str = "box-a") -> None:
    data = report if isinstance(report, bytes) else encode(report)
    fleet.take_stats(Message(f"box.stats.{host}", "", data, b""))


async def test_a_host_that_says_the_same_again_is_not_read_again(fleet: FleetView) -> None:
    tell(fleet, stats())
    first = fleet.state.loads["web-1"]
    tell(fleet, stats())
    assert fleet.state.loads["web-1"] is first
    tell(fleet, stats(cpu=5.0))
    assert fleet.state.loads["web-1"].cpu_percent == 5.0
    tell(fleet, stats())
    assert fleet.state.loads["web-1"].cpu_percent == 0.0


async def test_a_host_that_was_gone_is_read_anew(fleet: FleetView) -> None:
    tell(fleet, stats())
    fleet._remove_host("box-a")
    assert not fleet.state.loads
    fleet._host_changed("box-a", None, HOST)
    tell(fleet, stats())
    assert fleet.state.loads.keys() == {"web-1", "web-2"}


async def test_what_a_host_says_itself_does_not_come_back_to_it(fleet: FleetView) -> None:
    report = stats()
    fleet.set_stats("box-a", report, encode(report))
    tell(fleet, encode(report))
    assert fleet.state.loads["web-1"] is report["web-1"]


async def test_a_bad_report_is_counted_each_time(fleet: FleetView) -> None:
    tell(fleet, b"[]")
    tell(fleet, b"[]")
    assert fleet._connection.metrics.refusals() == {"stats: malformed": 2}


def test_a_gateway_looks_at_the_sick_alone() -> None:
    book = RouteState(30)
    for number in range(100):
        book.register(registration(f"web-{number}", host="box-a"), number + 1, 0)
    well = Read({f"web-{number}": InstanceHealth() for number in range(100)})
    book.sample("box-a", well, 1)
    assert well.looks == 0
    ill = Read(well | {"web-7": InstanceHealth(healthy=False)})
    book.sample("box-a", ill, 2)
    assert len(book.routes) == 99
    assert ill.looks <= 1
    book.sample("box-a", well, 3)
    assert len(book.routes) == 100
    assert well.looks <= 2
    book.sample("box-a", well, 4)
    assert well.looks <= 2  # it is well again, and nobody's business
