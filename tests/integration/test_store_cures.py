"""Each refusal of JetStream names its cure: in the error, the log, `hosts` and `doctor`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from nats.js.api import ConsumerConfig, StorageType, StreamConfig

from bridge.bus.core.connection import Connection
from bridge.bus.jetstream import topology
from bridge.bus.jetstream.api import jetstream, jetstream_errors
from bridge.bus.jetstream.publish import store
from bridge.errors import StoreRefused
from tests.integration.test_connection import configured
from tests.support import connect

Act = Callable[[Connection], Awaitable[object]]


def create(**settings: Any) -> Act:
    return lambda c: jetstream(c).add_stream(StreamConfig(name="x", subjects=["x.*"], **settings))


async def fill(connection: Connection) -> None:
    await create()(connection)
    for number in range(100):
        await store(connection, f"x.{number}", b"x" * 500_000)


async def create_two(connection: Connection) -> None:
    await jetstream(connection).add_stream(name="y", subjects=["y"])
    await create()(connection)


async def publish_to_a_full_stream(connection: Connection) -> None:
    await topology.ensure(connection)
    stream = (await jetstream(connection).stream_info("BOX_EVENTS")).config
    await jetstream(connection).update_stream(stream.evolve(max_bytes=1))
    await store(connection, "box.events.web", b"x")


async def purge_events(connection: Connection) -> None:
    await topology.ensure(connection)
    await jetstream(connection).purge_stream("BOX_EVENTS")


async def consume_twice(connection: Connection) -> None:
    await create(max_consumers=1)(connection)
    for name in "ab":
        config = ConsumerConfig(durable_name=name)
        await jetstream(connection).add_consumer("x", config=config)


_ACCOUNT = "accounts {{ A {{ users: [{{user: u, password: p}}], jetstream {{ {} }} }} }}"
_SERVER = "jetstream {{ {} }}"
_MEMORY = StorageType.MEMORY


_CASES: list[tuple[int, str, Act, str]] = [
        (10002, _ACCOUNT.format("max_file: 9MB, max_mem: 9MB"), fill, "max_file or max_mem"),
        (10023, _SERVER.format("max_file_store: 9MB"), fill, "max_file_store"),
        (10026, "", consume_twice, "max_consumers"),
        (10027, _ACCOUNT.format("max_streams: 1"), create_two, "max_streams"),
        (10028, _SERVER.format("max_memory_store: 9MB"),
         create(storage=_MEMORY, max_bytes=2**30), "max_memory_store"),
        (10047, _SERVER.format("max_file_store: 9MB"), create(max_bytes=2**30), "max_file_store"),
        (10074, "", create(num_replicas=3), "replicas = 1"),
        (10077, "", publish_to_a_full_stream, "max_bytes or max_msgs"),
        (10110, "", purge_events, "max_age"),
        (10113, _ACCOUNT.format("max_file: 1G, max_mem: 1G, max_bytes_required: true"), create(),
         "max_bytes"),
        (10122, _ACCOUNT.format("max_file: 1G, max_mem: 1G, disk_max_stream_bytes: 9MB"),
         create(max_bytes=2**25), "disk_max_stream_bytes"),
]  # fmt: skip
_QUICK = (10047, 10077)


@pytest.mark.parametrize(
    ("code", "config", "act", "cure"),
    [pytest.param(*case, marks=[] if case[0] in _QUICK else pytest.mark.slow) for case in _CASES],
)
async def test_a_refusal_names_its_cure(
    tmp_path: Path, code: int, config: str, act: Act, cure: str
) -> None:
    login = {"user": "u", "password": "p"} if "accounts" in config else {}
    async with (
        configured(tmp_path, config) as server,
        connect(server.url, **login) as connection,
    ):
        with pytest.raises(StoreRefused) as refusal, jetstream_errors("x"):
            await act(connection)
        assert refusal.value.code == code
        assert cure in refusal.value.cure
        assert str(refusal.value) == f"{refusal.value.problem}; {refusal.value.cure}"


def test_a_refusal_without_a_known_cure_names_the_reason() -> None:
    refusal = StoreRefused("box.events.web", 10999, "something new")
    assert str(refusal) == "JetStream refused box.events.web: something new (10999)"
    assert refusal.cure == ""
