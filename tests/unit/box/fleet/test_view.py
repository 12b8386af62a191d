"""The view reports to its listeners what has changed, and nothing for a renewed lease."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from msgspec.structs import replace

from bridge.box.fleet.listener import FleetListener
from bridge.box.fleet.view import FleetView
from bridge.box.state.capacity_cache import Competition
from bridge.box.state.records import HostRecord, Offer, ServiceRecord
from bridge.bus.core.connection import Connection
from bridge.observe import Metrics
from bridge.settings import NatsConfig

HOST = HostRecord(
    host_id="a", runtime="process", cpus=1, max_instances=9, services={"web": Offer()}
)


class Log(FleetListener):
    """Collects the calls for services and plans."""

    def __init__(self) -> None:
        self.services: list[str] = []
        self.plans: list[Iterable[str] | None] = []

    def service_changed(self, service: str, record: ServiceRecord | None) -> None:
        self.services.append(service)

    def plan_needed(self, services: Iterable[str] | None) -> None:
        self.plans.append(services)


@pytest.fixture
async def fleet() -> FleetView:
    return FleetView(Connection(NatsConfig(), "test", Metrics()), 10)


async def test_every_listener_receives_each_change(fleet: FleetView) -> None:
    first, second = Log(), Log()
    fleet.subscribe(first)
    fleet.subscribe(second)
    fleet._service_changed("web", None, ServiceRecord())
    fleet._host_changed("box-a", None, HOST)
    for log in (first, second):
        assert log.services == ["web"]
        assert log.plans == [["web"], None]


async def test_a_renewed_lease_needs_no_plan_and_keeps_the_capacity_cache(
    fleet: FleetView,
) -> None:
    log = Log()
    fleet._host_changed("box-a", None, HOST)
    fleet.subscribe(log)
    cache = fleet.state.capacity_cache
    cache.keep_competition("web", Competition(rivals=set(), count=0))
    fleet._host_changed("box-a", HOST, HOST)
    assert cache.competition("web") is not None
    assert log.plans == []
    fleet._host_changed("box-a", HOST, replace(HOST, cpus=2))
    assert cache.competition("web") is None
    assert log.plans == [None]
