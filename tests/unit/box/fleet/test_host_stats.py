"""The reports of hosts about their instances are decoded only when they have changed."""

from __future__ import annotations

import pytest

from bridge.box.fleet import stats_report
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


class CountedStats(dict[str, InstanceHealth]):
    """Stats that count how many of their entries are read one by one."""

    reads = 0

    def __getitem__(self, name: str) -> InstanceHealth:
        self.reads += 1
        return super().__getitem__(name)


@pytest.fixture
async def fleet() -> FleetView:
    """A fleet with one live host."""
    view = FleetView(Connection(NatsConfig(), "test", Metrics()), 10)
    view._host_changed("box-a", None, HOST)
    return view


def stats(cpu: float = 0.0) -> HostStats:
    return {"web-1": InstanceHealth(cpu_percent=cpu), "web-2": InstanceHealth()}


def send(fleet: FleetView, report: HostStats | bytes, host: str = "box-a") -> None:
    data = report if isinstance(report, bytes) else encode(report)
    fleet.take_stats(Message(f"box.stats.{host}", "", data, b""))


async def test_a_report_with_the_same_bytes_is_not_decoded_again(fleet: FleetView) -> None:
    send(fleet, stats())
    first = fleet.state.loads["web-1"]
    send(fleet, stats())
    assert fleet.state.loads["web-1"] is first
    send(fleet, stats(cpu=5.0))
    assert fleet.state.loads["web-1"].cpu_percent == 5.0
    send(fleet, stats())
    assert fleet.state.loads["web-1"].cpu_percent == 0.0


async def test_the_first_report_of_a_host_that_came_back_is_decoded(fleet: FleetView) -> None:
    send(fleet, stats())
    fleet._remove_host("box-a")
    assert not fleet.state.loads
    fleet._host_changed("box-a", None, HOST)
    send(fleet, stats())
    assert fleet.state.loads.keys() == {"web-1", "web-2"}


async def test_a_hosts_own_report_is_not_decoded_when_it_comes_back(fleet: FleetView) -> None:
    report = stats()
    fleet.set_stats("box-a", report, encode(report))
    send(fleet, encode(report))
    assert fleet.state.loads["web-1"] is report["web-1"]


async def test_every_invalid_report_is_counted(fleet: FleetView) -> None:
    send(fleet, b"[]")
    send(fleet, b"[]")
    assert fleet._connection.metrics.refusals() == {"stats: malformed": 2}


@pytest.mark.parametrize(("count", "limit"), [(1, 1 << 20), (50, 4096), (9000, 64 * 1024)])
async def test_a_report_beyond_max_payload_arrives_in_parts(
    fleet: FleetView, count: int, limit: int
) -> None:
    report = {f"web-{n}": InstanceHealth(cpu_percent=float(n)) for n in range(count)}
    send(fleet, {"web-gone": InstanceHealth()})
    sent = list(stats_report.messages(report, limit))
    assert all(len(data) <= limit - 500 for data, _ in sent)
    for data, headers in sent:
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        raw = f"NATS/1.0\r\n{lines}\r\n".encode() if headers else b""
        fleet.take_stats(Message("box.stats.box-a", "", data, raw))
    assert fleet.state.loads == report


async def test_a_report_that_has_lost_a_part_changes_nothing(fleet: FleetView) -> None:
    send(fleet, stats())
    report = {f"web-{n}": InstanceHealth() for n in range(90)}
    parts = list(stats_report.messages(report, 4096))
    assert len(parts) > 2
    for data, headers in (parts[0], *parts[2:]):
        raw = f"NATS/1.0\r\nBox-Part: {headers['Box-Part']}\r\n\r\n".encode()
        fleet.take_stats(Message("box.stats.box-a", "", data, raw))
    assert fleet.state.loads.keys() == {"web-1", "web-2"}


@pytest.mark.parametrize("text", ["", "1", "0/2", "3/2", "1/999", "a/b", "1/2/3"])
async def test_a_report_that_names_no_part_is_counted(fleet: FleetView, text: str) -> None:
    raw = f"NATS/1.0\r\nBox-Part: {text}\r\n\r\n".encode()
    fleet.take_stats(Message("box.stats.box-a", "", encode(stats()), raw))
    assert fleet._connection.metrics.refusals() == {"stats: malformed": 1}


def test_a_gateway_reads_only_the_reports_of_unhealthy_instances() -> None:
    book = RouteState(30)
    for number in range(100):
        book.register(registration(f"web-{number}", host="box-a"), number + 1, 0)
    healthy_stats = CountedStats({f"web-{number}": InstanceHealth() for number in range(100)})
    book.sample("box-a", healthy_stats, 1)
    assert healthy_stats.reads == 0
    unhealthy_stats = CountedStats(healthy_stats | {"web-7": InstanceHealth(healthy=False)})
    book.sample("box-a", unhealthy_stats, 2)
    assert len(book.routes) == 99
    assert unhealthy_stats.reads <= 1
    book.sample("box-a", healthy_stats, 3)
    assert len(book.routes) == 100
    assert healthy_stats.reads <= 2
    book.sample("box-a", healthy_stats, 4)
    assert healthy_stats.reads <= 2  # healthy again: nothing to read
