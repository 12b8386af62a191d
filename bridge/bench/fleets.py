"""Fleets of any size without a Box: the records and registrations of many hosts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Final

from bridge.box.state.records import HostRecord, Offer, ServiceRecord, SlotRecord, config_id
from bridge.bus.core.connection import Connection
from bridge.bus.jetstream.api import jetstream
from bridge.errors import BusError
from bridge.protocol import (
    InstanceInfo,
    InstanceRegistration,
    InstanceState,
    ScaleConfig,
    encode,
    now,
)
from bridge.subjects import BOX_HOST, MSG_TTL, slot_key
from bridge.tasks import task_scope

A_HOST: Final = 500  # instances that a host runs
A_SERVICE: Final = 1000  # instances that a service has
TTL: Final = 600  # seconds; a row takes less

_BURST: Final = 2000  # messages between two looks at how far the server has come
_FLUSH: Final = 30.0  # seconds for one of these
_STORED: Final = 240.0  # seconds until all of it is there, each on disk
_HEARTBEAT: Final = 3.0  # seconds between renewals of a host's lease


Outgoing = tuple[str, bytes, dict[str, str]]
"""A subject, the data to publish there, and the headers."""


def service_of(number: int) -> str:
    """The service of the instance with that number."""
    return f"service-{number // A_SERVICE:03}"


def host_of(number: int) -> str:
    """The host of the instance with that number."""
    return f"host-{number // A_HOST:03}"


def registrations(count: int) -> Iterator[InstanceRegistration]:
    """The registrations of `count` instances, each at an address of its own."""
    started = now()
    for number in range(count):
        service = service_of(number)
        yield InstanceRegistration(
            instance_id=f"{service}-{number:06x}",
            service=service,
            endpoint=f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}:8080",
            metadata={"zone": f"zone-{number % 3}", "version": "2.4.0"},
            started_at=started,
        )


async def register(connection: Connection, count: int) -> None:
    """Store `count` registrations as living leases; returns when all are there."""
    subjects = connection.subjects
    messages = (
        (
            subjects.register(item.service, item.instance_id),
            encode(item),
            {BOX_HOST: host_of(number), MSG_TTL: str(TTL)},
        )
        for number, item in enumerate(registrations(count))
    )
    await _send(connection, messages)
    await _stored(connection, subjects.registry_stream, count)


async def record(connection: Connection, count: int) -> None:
    """Store the records of `count` Ready instances: their services and slots. `hosts_live` keeps
    the records of their hosts.
    """
    subjects = connection.subjects
    state = config_id(ScaleConfig())
    slots: Iterator[Outgoing] = (
        (f"$KV.{subjects.slots_bucket}.{key}", encode(value), {})
        for key, value in _slots(count, state)
    )
    await _send(connection, slots)
    sizes: dict[str, int] = {}
    for number in range(count):
        service = service_of(number)
        sizes[service] = sizes.get(service, 0) + 1
    services: Iterator[Outgoing] = (
        (
            f"$KV.{subjects.services_bucket}.{service}",
            encode(ServiceRecord(version=1, target=size, slots=list(range(size)))),
            {},
        )
        for service, size in sizes.items()
    )
    await _send(connection, services)
    await _stored(connection, f"KV_{subjects.slots_bucket}", count)


def _slots(count: int, config: str) -> Iterator[tuple[str, SlotRecord]]:
    for number, item in enumerate(registrations(count)):
        host = host_of(number)
        info = InstanceInfo(
            id=item.instance_id,
            state=InstanceState.READY,
            service=item.service,
            created_at=item.started_at,
            ready_at=item.started_at,
            endpoint=item.endpoint,
        )
        record = SlotRecord(host=host, host_id=f"id-{host}", config=config, seq=2, info=info)
        yield slot_key(item.service, number % A_SERVICE), record


@contextlib.asynccontextmanager
async def hosts_live(connection: Connection, count: int, *, also: str) -> AsyncIterator[None]:
    """Renew the leases of the hosts of `count` instances while the block runs. The hosts offer the
    services of these instances and the service `also`, and have no room.
    """
    full = {host_of(number): min(A_HOST, count - number) for number in range(0, count, A_HOST)}
    services = {service_of(number): Offer() for number in range(0, count, A_SERVICE)}
    services[also] = Offer()
    bucket = connection.subjects.hosts_bucket

    def renew() -> None:
        for name, instances in full.items():
            host = HostRecord(
                host_id=f"id-{name}",
                runtime="process",
                cpus=64,
                max_instances=instances,
                services=services,
            )
            with contextlib.suppress(BusError):
                connection.publish(f"$KV.{bucket}.{name}", encode(host))

    async def beat() -> None:
        while True:
            await asyncio.sleep(_HEARTBEAT)
            renew()

    async with task_scope() as tasks:
        renew()
        await connection.flush()
        tasks.create_task(beat(), name="bench-hosts")
        yield


async def fill(connection: Connection, bucket: str, items: Iterable[tuple[str, bytes]]) -> None:
    """Put `items` into a bucket; returns when all are there."""
    count = await _send(connection, ((f"$KV.{bucket}.{key}", value, {}) for key, value in items))
    await _stored(connection, f"KV_{bucket}", count)


async def _send(connection: Connection, messages: Iterable[Outgoing]) -> int:
    count = 0
    for count, (subject, data, headers) in enumerate(messages, start=1):
        connection.publish(subject, data, headers=headers)
        if not count % _BURST:
            await connection.flush(_FLUSH)
    await connection.flush(_FLUSH)
    return count


async def _stored(connection: Connection, stream: str, count: int) -> None:
    async with asyncio.timeout(_STORED):
        while True:
            state = (await jetstream(connection).stream_info(stream)).state
            if state.messages >= count:
                return
            await asyncio.sleep(0.05)
