"""The streams and buckets: made once, by whoever is first, and never bent."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace
from nats.js import JetStreamContext
from nats.js.api import APIStats, DiscardPolicy, RetentionPolicy, StorageType

from bridge.bus.core.connection import Connection
from bridge.bus.embedded_server import EmbeddedServer, _listening
from bridge.bus.jetstream import topology
from bridge.bus.jetstream.api import jetstream
from bridge.bus.jetstream.dead_letters import ensure_dead_stream
from bridge.bus.server_binary import find_binary
from bridge.errors import BusError, StoreUnsuitable, TopologyMismatch
from bridge.subjects import Subjects
from tests.support import connect, eventually

NAMES = [
    "BOX_EVENTS",
    "BOX_REGISTRY",
    "KV_box_services",
    "KV_box_slots",
    "KV_box_hosts",
    "KV_box_admin",
]


async def test_a_request_about_a_stream_that_no_server_heard_is_sent_again(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connect(server.url) as connection:
        await topology.ensure(connection)
        publish, sent = Connection.publish, list[str]()

        def lose_the_first(self: Connection, subject: str, *rest: Any, **more: Any) -> None:
            sent.append(subject)  # as while a stream has no leader
            if sent.count(subject) > 1:
                publish(self, subject, *rest, **more)

        monkeypatch.setattr(Connection, "publish", lose_the_first)
        info = await topology.stream_info(connection, "KV_box_slots")
        assert info is not None
        assert sent == ["$JS.API.STREAM.INFO.KV_box_slots"] * 2


async def test_what_is_missing_is_created_and_nothing_twice(server: EmbeddedServer) -> None:
    async with connect(server.url) as connection:
        assert await topology.ensure(connection) == NAMES
        assert await topology.ensure(connection) == []
        await jetstream(connection).delete_stream("KV_box_slots")
        assert await topology.ensure(connection) == ["KV_box_slots"]


async def test_each_stream_describes_itself_and_may_be_described_otherwise(
    server: EmbeddedServer,
) -> None:
    async with connect(server.url) as connection:
        await topology.ensure(connection)
        await ensure_dead_stream(connection)
        js = jetstream(connection)
        for name in (*NAMES, "BOX_DEAD"):
            config = (await js.stream_info(name)).config
            assert (config.description or "").startswith("box-bridge: ")
            await js.update_stream(config.evolve(description="ours" if "KV" in name else None))
        assert await topology.ensure(connection) == []
        await ensure_dead_stream(connection)


async def test_many_boxes_may_do_it_at_once(server: EmbeddedServer) -> None:
    async with connect(server.url) as connection:
        created = await asyncio.gather(*(topology.ensure(connection) for _ in range(10)))
        assert {name for names in created for name in names} == set(NAMES)


async def test_the_settings_are_those_that_the_architecture_promises(
    server: EmbeddedServer,
) -> None:
    async with connect(server.url) as connection:
        await topology.ensure(connection)
        found = {name: (await jetstream(connection).stream_info(name)).config for name in NAMES}
    events, registry = found["BOX_EVENTS"], found["BOX_REGISTRY"]
    assert (events.subjects, events.storage) == (["box.events.*"], StorageType.FILE)
    assert events.max_age == 7 * 24 * 3600
    assert events.allow_atomic
    assert registry.subjects == ["box.register.*.*", "box.deregister.*.*"]
    assert (registry.storage, registry.max_age) == (StorageType.MEMORY, 600)
    assert (registry.max_msgs_per_subject, registry.allow_msg_ttl) == (1, True)
    assert found["KV_box_services"].max_msgs_per_subject == 64
    assert found["KV_box_hosts"].max_age == 10
    for config in found.values():
        assert config.discard == DiscardPolicy.NEW
        assert not config.allow_rollup_hdrs
        assert config.deny_delete
        assert config.deny_purge
        assert config.retention == RetentionPolicy.LIMITS


async def test_two_fleets_share_an_account(server: EmbeddedServer) -> None:
    async with connect(server.url) as one, connect(server.url, prefix="b2") as two:
        await topology.ensure(one)
        created = await topology.ensure(two)
        assert created[:2] == ["B2_EVENTS", "B2_REGISTRY"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"retention": RetentionPolicy.WORK_QUEUE}, "retention is workqueue, and must be limits"),
        ({"discard": DiscardPolicy.OLD}, "discard is old, and must be new"),
        ({"storage": StorageType.MEMORY}, "storage is memory, and must be file"),
        ({"subjects": ["box.events.>"]}, "subjects is box.events.>, and must be box.events.*"),
        ({"deny_delete": False}, "deny_delete is False, and must be True"),
        ({"allow_rollup_hdrs": True}, "allow_rollup_hdrs is True, and must be False"),
        ({"no_ack": True}, "no_ack is True, and must be False"),
        (
            {"discard_new_per_subject": True, "max_msgs_per_subject": 1},
            "discard_new_per_subject is True, and must be False",
        ),
    ],
)
async def test_settings_that_break_a_promise_are_refused_with_the_difference(
    server: EmbeddedServer, change: dict[str, Any], said: str
) -> None:
    wanted = topology.streams(Subjects())[0]
    if change.get("allow_rollup_hdrs"):
        change["deny_purge"] = False
    async with connect(server.url) as connection:
        await jetstream(connection).add_stream(wanted.evolve(**change))
        with pytest.raises(TopologyMismatch) as refused:
            await topology.ensure(connection)
        assert said in refused.value.differences
        assert "nats stream edit BOX_EVENTS" in str(refused.value)


async def test_settings_that_break_no_promise_are_accepted(server: EmbeddedServer) -> None:
    wanted = topology.streams(Subjects())[0]
    theirs = wanted.evolve(description="ours", max_age=30 * 24 * 3600.0, metadata={"team": "x"})
    async with connect(server.url) as connection:
        await jetstream(connection).add_stream(theirs)
        assert "BOX_EVENTS" not in await topology.ensure(connection)


async def test_a_stream_that_takes_our_subjects_is_named(server: EmbeddedServer) -> None:
    async with connect(server.url) as connection:
        await jetstream(connection).add_stream(name="THEIRS", subjects=["box.>"])
        with pytest.raises(TopologyMismatch, match="another stream already takes"):
            await topology.ensure(connection)


@asynccontextmanager
async def without_jetstream(directory: Path, config: str = "") -> AsyncIterator[str]:
    """A server without JetStream, unless `config` has it; yields its URL."""
    directory.mkdir()
    file = directory / "server.conf"
    file.write_text(f"listen: '127.0.0.1:-1'\n{config}")
    process = subprocess.Popen(
        [str(find_binary()), "-c", str(file), "--ports_file_dir", str(directory)],
        stderr=subprocess.DEVNULL,
    )
    try:
        yield await eventually(lambda: _listening(directory))
    finally:
        process.terminate()
        process.wait()


async def test_a_server_without_jetstream_is_refused(tmp_path: Path) -> None:
    async with without_jetstream(tmp_path / "plain") as url, connect(url) as connection:
        with pytest.raises(StoreUnsuitable, match="no JetStream"):
            await topology.ensure(connection)


async def test_the_jetstream_behind_a_leaf_node_is_used(tmp_path: Path, unused_port: int) -> None:
    hub = tmp_path / "hub.conf"
    hub.write_text(
        f"jetstream {{ domain: hub }}\nleafnodes {{ listen: '127.0.0.1:{unused_port}' }}"
    )
    remote = f"leafnodes {{ remotes: [ {{ url: 'nats://127.0.0.1:{unused_port}' }} ] }}"
    async with (
        EmbeddedServer(tmp_path / "hub", config=hub),
        without_jetstream(tmp_path / "leaf", remote) as url,
        connect(url, domain="hub") as connection,
    ):

        async def ensured() -> bool:
            with contextlib.suppress(BusError):  # until the leaf has reached its hub
                return len(await topology.ensure(connection)) == 6
            return False

        await eventually(ensured)


async def test_a_server_that_is_too_old_is_refused(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def old(self: JetStreamContext) -> SimpleNamespace:
        return SimpleNamespace(api=APIStats(total=0, errors=0))

    async with connect(server.url) as connection:
        monkeypatch.setattr(JetStreamContext, "account_info", old)
        connection._client._server_info = {"jetstream": True, "version": "2.9.0"}
        with pytest.raises(StoreUnsuitable, match=r"2\.9\.0 is too old: 2\.11 or newer"):
            await topology.ensure(connection)


def test_an_older_server_is_not_asked_for_atomic_batches() -> None:
    events = topology.streams(Subjects(), atomic=False)[0]
    assert events.allow_atomic is None
    assert topology.differences(events, events.evolve(allow_atomic=True)) == []


def test_the_lease_is_the_age_at_which_a_host_is_gone() -> None:
    lifetimes = replace(topology.Lifetimes(), lease=3.0)
    hosts = topology.streams(Subjects(), lifetimes=lifetimes)[4]
    assert (hosts.name, hosts.max_age) == ("KV_box_hosts", 3.0)


@pytest.mark.parametrize(
    ("change", "limit"),
    [
        ({"max_age": 60.0, "duplicate_window": 60.0}, "max_age is 60 s, tighter than 604800 s"),
        ({"max_msgs": 1000}, "max_msgs is 1000, tighter than unlimited"),
        ({"max_bytes": 100_000}, "max_bytes is 100000, tighter than 1073741824"),
        ({"max_msg_size": 1000}, "max_msg_size is 1000, tighter than 65536"),
        ({"max_consumers": 9}, "max_consumers is 9, tighter than unlimited"),
        ({"duplicate_window": 60.0}, "duplicate_window is 60 s, tighter than 86400 s"),
    ],
)
async def test_tighter_limits_of_the_events_are_accepted_and_reported(
    server: EmbeddedServer, change: dict[str, Any], limit: str
) -> None:
    wanted = topology.streams(Subjects())[0]
    findings: list[str] = []
    async with connect(server.url) as connection:
        await jetstream(connection).add_stream(wanted.evolve(**change))
        assert "BOX_EVENTS" not in await topology.ensure(connection, on_finding=findings.append)
        [finding] = findings
        assert limit in finding


@pytest.mark.parametrize(
    ("name", "age", "reason"),
    [
        ("KV_box_slots", 3600.0, "must be unlimited: the records of the fleet must not expire"),
        ("KV_box_hosts", 5.0, "must be 10 s or more: the leases of hosts would end early"),
        ("BOX_REGISTRY", 20.0, "must be 600 s or at least registration_ttl"),
    ],
)
async def test_a_stream_whose_records_would_expire_is_refused_with_the_reason(
    server: EmbeddedServer, name: str, age: float, reason: str
) -> None:
    wanted = next(each for each in topology.streams(Subjects()) if each.name == name)
    async with connect(server.url) as connection:
        await jetstream(connection).add_stream(wanted.evolve(max_age=age, duplicate_window=age))
        with pytest.raises(TopologyMismatch, match=f"max_age is {age:g} s, and {reason}"):
            await topology.ensure(connection)


async def test_a_registry_that_keeps_registrations_for_their_time_to_live_is_used(
    server: EmbeddedServer,
) -> None:
    wanted = next(each for each in topology.streams(Subjects()) if each.name == "BOX_REGISTRY")
    findings: list[str] = []
    async with connect(server.url) as connection:
        await jetstream(connection).add_stream(wanted.evolve(max_age=30.0, duplicate_window=30.0))
        assert "BOX_REGISTRY" not in await topology.ensure(connection, on_finding=findings.append)
        assert findings == ["BOX_REGISTRY: max_age is 30 s, tighter than 600 s"]
        with pytest.raises(TopologyMismatch):  # this fleet keeps registrations for longer
            await topology.ensure(connection, lifetimes=topology.Lifetimes(registration=60.0))


@pytest.mark.parametrize(
    ("server_limit", "account"),
    [
        ("max_file_store: 12MB", ""),
        ("", "max_file: 20MB, max_mem: 20MB, max_bytes_required: true"),
        ("", "max_file: 1GB, max_mem: 1GB, max_bytes_required: true"),
        ("", "max_file: 1GB, max_mem: 1GB, disk_max_stream_bytes: 10MB"),
    ],
)
async def test_streams_fit_into_what_the_server_and_the_account_give(
    tmp_path: Path, server_limit: str, account: str
) -> None:
    config = f"jetstream {{ store_dir: '{tmp_path}/js', {server_limit} }}\n"
    login = {}
    if account:
        users = "users: [{user: u, password: p}]"
        config += f"accounts {{ A {{ {users}, jetstream: {{ {account} }} }} }}\n"
        login = {"user": "u", "password": "p"}
    async with (
        without_jetstream(tmp_path / "server", config) as url,
        connect(url, **login) as connection,
    ):
        assert await topology.ensure(connection) == NAMES
        assert await topology.ensure(connection) == []
        for name in NAMES if "required" in account else NAMES[:1]:
            info = await topology.stream_info(connection, name)
            assert info is not None
            assert (info.config.max_bytes or 0) > 0
