"""No value in a bucket or a stream ends a Box, holds its loop, or breaks a verb of the client."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bridge import RouteTable
from bridge.box.daemon import Box
from bridge.box.state import lifecycle
from bridge.box.state.records import (
    Avoidance,
    Decision,
    Demand,
    HostOrder,
    HostRecord,
    Offer,
    Receipt,
    Request,
    Rollout,
    ServiceRecord,
    SlotRecord,
    check_claim,
    check_host,
    check_order,
    check_service,
)
from bridge.bus.core.connection import Connection
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream.publish import store
from bridge.errors import BridgeError, BusError
from bridge.protocol import (
    InstanceDeregistration,
    InstanceEvent,
    InstanceHealth,
    InstanceRegistration,
    InstanceState,
    ScaleConfig,
    decode,
    encode,
    now,
)
from bridge.tasks import task_scope
from tests.boxes import serving
from tests.support import ask, box_config, connect, service_table

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

_STALL = 2.0  # seconds of the processor for which no record may hold the loop
_STALE = 10.0  # seconds until a route table has caught up again

WHOLE = [
    *(b"", b"{}", b"null", b"[]", b"[[]]", b"0", b'""', b"\xff", b"{", b"[" * 100_000),
    b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    b'{"version":' + b"9" * 5000 + b"}",
    b"[" + b"1," * 400_000 + b"1]",
    b'"' + b"x" * 1_000_000 + b'"',
]
"""Payloads that are no record at all."""

VALUES: list[Any] = [
    *(None, True, False, [], {}, "", "\0", "x" * 5000, "a\r\nb: c", [None], [{}], {"": None}),
    *(-1, 0, 1, 2**31, 2**32, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 1.5, 1e300, -0.0),
    *("0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "2026-01-01T00:00:00", "now"),
    *([3, 1, 2], [1, 1], [-1], list(range(150_000)), [2**32 - 1], ["x"] * 2000),
]
"""What each field is set to, one at a time."""


EXTREMES: list[list[Any]] = [
    [2**32 - 1, 2**53, 65535, 99_999, "x" * 4096, "9999-12-31T23:59:59.999999Z"],
    [0, "", "\0\x1b[31m\r\n[red]", "0001-01-01T00:00:00Z", [], {}, None],
]

_READ: dict[str, tuple[type[Any], Callable[[str, Any], None]]] = {
    "$KV.box_services": (ServiceRecord, check_service),
    "$KV.box_slots": (SlotRecord, check_claim),
    "$KV.box_hosts": (HostRecord, check_host),
    "$KV.box_admin": (HostOrder, check_order),
    "box.register": (InstanceRegistration, lambda key, value: None),
    "box.deregister": (InstanceDeregistration, lambda key, value: None),
    "box.events": (InstanceEvent, lambda key, value: None),
}


def _fields(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else []
    if isinstance(value, list) and value:
        items = [(0, value[0])]
    for key, inner in items:
        yield from _fields(inner, (*path, key))


def _changed(record: bytes) -> Iterator[bytes]:
    """`record` with each field set to each of VALUES, left out, and given twice."""
    plain = json.loads(record)
    for path, value in itertools.product(_fields(plain), VALUES):
        copy = json.loads(record)
        place = copy
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        yield json.dumps(copy).encode()
    for key in plain:
        yield json.dumps({name: value for name, value in plain.items() if name != key}).encode()
        yield b'{"%s":7,%s' % (key.encode(), record[1:])


def _payloads(valid: bytes) -> list[bytes]:
    return [*WHOLE, *_changed(valid), valid]


def _extreme(subject: str, record: bytes, extremes: list[Any]) -> bytes:
    """`record` with each field set to the last of `extremes` that a Box accepts there."""
    cls, check = next(item for start, item in _READ.items() if subject.startswith(start))
    key = subject.split(".", 2)[2]
    accepted = json.loads(record)
    for path, value in itertools.product(list(_fields(accepted)), extremes):
        copy = json.loads(json.dumps(accepted))
        place = copy
        try:
            for step in path[:-1]:
                place = place[step]
            place[path[-1]] = value
            check(key, decode(cls, json.dumps(copy).encode()))
        except (LookupError, TypeError, BridgeError):
            continue
        accepted = copy
    return json.dumps(accepted).encode()


def _records() -> dict[str, bytes]:
    """A valid record for keys of each bucket, with something in each field."""
    at = now()
    decision = Decision(
        at=at,
        host="box-z",
        replicas=2,
        request_id="r",
        error="e",
        traceparent=f"00-{'a' * 32}-{'b' * 16}-01",
    )
    config = ScaleConfig(env={"A": "b"}, memory_mib=1, vcpus=1)
    request = Request(version=3, before=1, after=2, decision=decision, reconfigured=True)
    receipt = Receipt(request_id="r", body="b", accepted=True, current=1, target=2, error="e")
    service = ServiceRecord(
        version=4,
        target=2,
        slots=[0, 1, 2],
        config=config,
        rollout=Rollout(config="c", failures=1, stopped="s"),
        moves=[1],
        avoid=[Avoidance(slot=0, host="box-z", until=at)],
        receipts=[receipt],
        requests=[request],
        decision=decision,
    )
    life = lifecycle.begin("web-z", "web", at)
    info = msgspec.structs.replace(
        life.info,
        state=InstanceState.READY,
        ready_at=at,
        endpoint="10.0.0.9:80",
        health=InstanceHealth(cpu_percent=1.0, memory_bytes=1),
    )
    claim = SlotRecord(
        host="box-z", host_id="z", config="c", seq=3, info=info, demand=Demand(vcpus=1)
    )
    offer = Offer(needs={"a": "b"}, demand=Demand(vcpus=1), image="i", max_surge=1)
    host = HostRecord(
        host_id="z",
        runtime="process",
        cpus=2,
        max_instances=3,
        services={"web": offer, "api": offer},
        labels={"a": "b"},
        memory_mib=10,
        images=("docker.io/*",),
        lacks={"image": "no engine"},
        version="1",
        notices=["look"],
        place="p",
        since=1,
    )
    order = HostOrder(draining=True, reason="r", at=at, version=2)
    return {
        "$KV.box_services.other": encode(service),
        "$KV.box_services.web": encode(service),
        "$KV.box_slots.web.1": encode(claim),
        "$KV.box_slots.other.0": encode(claim),
        "$KV.box_hosts.box-z": encode(host),
        "$KV.box_admin.cordon.box-z": encode(order),
        "$KV.box_admin.cordon.box-a": encode(order),
    }


def _messages() -> dict[str, bytes]:
    """A valid message for each subject of instances that a stream keeps."""
    registration = InstanceRegistration(
        instance_id="web-z", service="web", endpoint="10.0.0.9:80", metadata={}, started_at=now()
    )
    event = InstanceEvent.transition("web-z", "web", InstanceState.BOOTING, InstanceState.READY)
    withdrawal = InstanceDeregistration(instance_id="web-z", service="web", reason="r")
    return {
        "box.register.web.web-z": encode(registration),
        "box.deregister.web.web-z": encode(withdrawal),
        "box.events.web": encode(event),
    }


@asynccontextmanager
async def _free_loop(longest: list[float]) -> AsyncIterator[None]:
    """Measure for how long the loop was held at most, in seconds of the processor: what other
    programs take does not count.
    """

    async def measure() -> None:
        while True:
            before = time.thread_time()
            await asyncio.sleep(0.05)
            longest.append(time.thread_time() - before)

    async with task_scope() as tasks:
        tasks.create_task(measure())
        yield


async def _write(gateway: Connection, subject: str, payloads: list[bytes]) -> None:
    headers = {"Box-Seq": "9" * 5000, "Box-Host": "\t", "traceparent": "x"}
    for number, payload in enumerate(payloads):
        try:
            await store(
                gateway,
                subject,
                payload,
                headers=headers if number % 7 == 0 else None,
                timeout=60.0,
            )
        except BusError:
            assert len(payload) > 60_000, "only what is too large is refused"


async def _broken_by(box: Box) -> list[str]:
    """The failures of handlers that the metrics counted."""
    return [
        str(sample.labels)
        for metric in box.metrics.bus.collect()
        for sample in metric.samples
        if sample.labels.get("kind") in ("handler_error", "read_error") and sample.value
    ]


def _run_verbs(url: str) -> None:
    """Run the verbs that show what the buckets and streams hold; none may fail."""
    verbs = (
        *(["ps"], ["hosts"], ["services"], ["history", "web"], ["plan", "web", "3"]),
        *(
            ["events", "--since", "all", "--no-follow"],
            ["timeline", "web"],
            ["routes"],
            ["ps", "--json"],
        ),
    )
    for verb in verbs:
        done = subprocess.run(
            [sys.executable, "-m", "bridge.cli", *verb, "-s", url],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**os.environ, "TZ": "Pacific/Kiritimati"},
        )
        assert "Traceback" not in done.stderr, (verb, done.stderr[-3000:])
        assert done.returncode in (0, 1, 4), (verb, done.returncode, done.stderr[-2000:])


async def test_a_box_a_gateway_and_the_client_survive_every_value_of_every_field(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    config = box_config(tmp_path, server.url, service_table("web"), service_table("api"))
    async with (
        connect(server.url) as gateway,
        Box.running(config) as box,
        RouteTable.open(gateway) as table,
    ):
        await ask(gateway, "web", 1)
        await serving(gateway, "web", 1)
        longest: list[float] = []
        for subject, valid in (_records() | _messages()).items():
            payloads = await asyncio.to_thread(_payloads, valid)  # it takes seconds
            async with _free_loop(longest):
                await _write(gateway, subject, payloads)
            assert max(longest) < _STALL, subject
            assert not await _broken_by(box), subject
            assert table.stale_for() < _STALE, subject
            await ask(gateway, "api", 1)
    async with Box.running(config), connect(server.url) as gateway:  # its journal has all it saw
        await ask(gateway, "api", 0)


@pytest.mark.parametrize("extremes", EXTREMES, ids=["largest", "oddest"])
async def test_the_client_shows_the_extremes_that_a_record_may_hold(
    server: EmbeddedServer, tmp_path: Path, extremes: list[Any]
) -> None:
    async with connect(server.url) as gateway, Box.running(box_config(tmp_path, server.url)) as box:
        longest: list[float] = []
        async with _free_loop(longest):
            for subject, valid in (_records() | _messages()).items():
                await _write(gateway, subject, [_extreme(subject, valid, extremes)])
            for subject in ("box.stats.box-a", "box.stats.box-z", "box.health.web.web-z"):
                for cpu in (b"-1e300", b"1e300", b"1e400", b"0"):
                    health = b'{"cpu_percent":%s,"memory_bytes":18446744073709551615}' % cpu
                    stats = b'{"web-z":%s,"":%s}' % (health, health)
                    gateway.publish(subject, health if "health" in subject else stats)
            await ask(gateway, "web", 2)
            await asyncio.to_thread(_run_verbs, server.url)
        assert max(longest) < _STALL
        assert not await _broken_by(box)
