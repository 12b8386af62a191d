"""Snapshots and times: what a stream gives, in which order, and how old it is."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

import pytest

from bridge.bus.core.connection import Connection
from bridge.bus.core.message import Message
from bridge.gateway.routes.feed import RouteFeed
from bridge.gateway.routes.state import RouteState
from bridge.observe import Metrics
from bridge.protocol import InstanceDeregistration, InstanceRegistration, encode
from bridge.settings import NatsConfig

SECOND: Final = 10**9
HOUR: Final = 3600 * SECOND
AT: Final = 10**6 * SECOND  # some time of the server


class Registry:
    """The registry as a stream would feed it, with a clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 0.0
        self.changes = 0
        self.book = RouteState(30)
        connection = Connection(NatsConfig(), "test", Metrics())
        feed = RouteFeed(connection, self.book, None, 30, self._changed, clock=lambda: self.now)
        self.feed = feed.registry

    def _changed(self) -> None:
        self.book.take_changes()
        self.changes += 1

    def begin(self, at: int) -> None:
        self.feed.begin()
        self.feed.follower.start_ns = at

    def register(self, name: str, at: int, port: int = 80) -> None:
        told = InstanceRegistration(
            instance_id=name,
            service="web",
            endpoint=f"127.0.0.1:{port}",
            metadata={},
            started_at=datetime(2026, 1, 1, tzinfo=UTC),
        )
        self._take("register", name, encode(told), at)

    def deregister(self, name: str, at: int) -> None:
        told = InstanceDeregistration(instance_id=name, service="web")
        self._take("deregister", name, encode(told), at)

    def _take(self, kind: str, name: str, data: bytes, at: int) -> None:
        self.feed.take(Message(f"box.{kind}.web.{name}", "", data, b""), 1, at)

    def complete(self) -> None:
        self.feed.complete(1)

    def lasts(self) -> float:
        """For how many seconds from now there are routes, if nothing more is heard."""
        start = self.now
        while len(self.book.routes):
            self.now += 1
            self.book.tick(self.now, live=True)
        return self.now - start

    @property
    def routes(self) -> dict[str, str]:
        return {route.instance_id: route.endpoint for route in self.book.routes}


@pytest.fixture
async def registry() -> Registry:
    return Registry()


async def test_a_snapshot_is_taken_over_in_one_step(registry: Registry) -> None:
    registry.begin(AT)
    for number in range(1000):
        registry.register(f"web-{number}", AT - SECOND)
    assert registry.routes == {}
    registry.complete()
    assert len(registry.routes) == 1000
    assert registry.changes == 1


async def test_a_snapshot_that_breaks_off_changes_nothing(registry: Registry) -> None:
    registry.begin(AT)
    registry.register("web-1", AT)
    registry.complete()
    registry.feed.follower.live.clear()
    registry.begin(AT + SECOND)
    registry.register("web-2", AT + SECOND)
    registry.feed.follower.live.clear()
    registry.begin(AT + 2 * SECOND)
    registry.complete()
    assert list(registry.routes) == ["web-1"]


async def test_an_instance_that_the_snapshot_withdraws_has_no_route(registry: Registry) -> None:
    registry.begin(AT)
    registry.deregister("web-1", AT - 2 * SECOND)
    registry.register("web-1", AT - SECOND)
    registry.register("web-2", AT - SECOND)
    registry.deregister("web-2", AT)
    registry.complete()
    assert registry.routes == {}


async def test_what_is_older_than_a_lease_is_not_taken(registry: Registry) -> None:
    registry.begin(AT)
    registry.register("web-1", AT - 31 * SECOND)
    registry.register("web-2", AT - 29 * SECOND)
    registry.register("web-3", AT + SECOND)  # stored after the consumer was made
    registry.complete()
    assert sorted(registry.routes) == ["web-2", "web-3"]


async def test_of_a_first_snapshot_only_what_is_left_of_a_lease_is_left(registry: Registry) -> None:
    registry.begin(AT)
    registry.register("web-1", AT - 25 * SECOND)
    registry.complete()
    assert registry.lasts() == 5


async def test_a_resync_renews_every_lease(registry: Registry) -> None:
    registry.begin(AT)
    registry.register("web-1", AT)
    registry.register("web-2", AT)
    registry.complete()
    registry.feed.follower.live.clear()
    registry.now = 300
    registry.begin(AT + 300 * SECOND)
    registry.register("web-1", AT + 275 * SECOND)
    registry.complete()
    registry.book.tick(registry.now, live=True)
    assert sorted(registry.routes) == ["web-1", "web-2"]
    assert registry.lasts() == 30


async def test_the_order_in_the_stream_beats_a_clock_that_is_set_back(registry: Registry) -> None:
    registry.begin(AT)
    registry.complete()
    registry.register("web-1", AT, port=80)
    registry.register("web-1", AT - HOUR, port=81)
    registry.register("web-1", AT - HOUR + 1, port=82)
    assert registry.routes == {"web-1": "127.0.0.1:82"}


async def test_a_server_whose_clock_is_behind_is_believed_after_a_resync(
    registry: Registry,
) -> None:
    registry.begin(AT)
    registry.register("web-1", AT, port=80)
    registry.complete()
    registry.feed.follower.live.clear()
    registry.begin(AT - HOUR)
    registry.register("web-1", AT - HOUR, port=81)
    registry.complete()
    assert registry.routes == {"web-1": "127.0.0.1:81"}


async def test_a_replayed_snapshot_does_not_beat_what_is_newer(registry: Registry) -> None:
    registry.begin(AT)
    registry.complete()
    registry.register("web-1", AT + SECOND, port=81)
    registry.feed.follower.live.clear()
    registry.begin(AT + SECOND)
    registry.register("web-1", AT, port=80)  # a stream that was restored from an older copy
    registry.complete()
    assert registry.routes["web-1"] == "127.0.0.1:81"
