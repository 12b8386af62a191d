"""What a route costs to keep: bytes, and objects that the garbage collector walks."""

from __future__ import annotations

import gc
import tracemalloc

import pytest

from bridge.bench.fleets import host_of, registrations, service_of
from bridge.bus.core.message import Message
from bridge.gateway.routes.index import Route
from bridge.gateway.routes.registration_reader import RegistrationReader
from bridge.gateway.routes.state import RouteState
from bridge.protocol import encode

COUNT = 4000
BYTES = 1100  # a route, all told; the bound to keep is 1,500
OBJECTS = 1  # per 100 routes: a service has some, a route none


def wire(count: int, own: bool) -> list[bytes]:
    """`count` registrations as they cross the bus, each with metadata of its `own` or not."""
    return [
        encode(item) if not own else encode(item).replace(b'"2.4.0"', b'"build-%06d"' % number)
        for number, item in enumerate(registrations(count))
    ]


def book_of(messages: list[bytes]) -> RouteState:
    book, announced = RouteState(30), RegistrationReader()
    for number, data in enumerate(messages):
        key = service_of(number), f"{service_of(number)}-{number:06x}"
        headers = f"NATS/1.0\r\nBox-Host: {host_of(number)}\r\n\r\n".encode()
        told = announced.read(Message("", "", data, headers), *key)
        assert isinstance(told, Route)
        book.register(told, number + 1, 0.0)
    book.take_changes()
    return book


@pytest.mark.parametrize("own", [False, True], ids=["shared metadata", "metadata of its own"])
def test_a_route_costs_little_memory(own: bool) -> None:
    messages = wire(COUNT, own)
    book_of(messages[:200])  # what is made once and for all
    gc.collect()
    tracemalloc.start()
    try:
        book = book_of(messages)
        gc.collect()
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(book.routes) == COUNT
    assert used / COUNT < BYTES


@pytest.mark.slow
def test_the_garbage_collector_does_not_walk_routes() -> None:
    messages = wire(COUNT, own=True)
    gc.collect()
    before = len(gc.get_objects())
    book = book_of(messages)
    gc.collect()
    assert len(gc.get_objects()) - before < 1000 + COUNT // 100 * OBJECTS
    assert len(book.routes) == COUNT


def test_instances_share_what_they_have_in_common() -> None:
    book = book_of(wire(400, own=False))
    one, _, _, other = book.routes.of("service-000")[:4]
    assert one.instance_id != other.instance_id
    assert one.service is other.service
    assert one.metadata is other.metadata
    assert one.metadata == {"zone": "zone-0", "version": "2.4.0"}
