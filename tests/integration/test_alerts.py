"""A host's alerts reach the fleet and its metrics."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from msgspec.structs import replace

from bridge.box.daemon import Box
from bridge.box.fleet.listener import FleetListener
from bridge.box.fleet.view import FleetView
from bridge.box.journal import alerts
from bridge.box.journal.store import JOURNAL
from bridge.box.state.records import HostRecord
from bridge.bus.core.connection import Connection
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream import topology
from bridge.bus.jetstream.api import jetstream
from bridge.protocol import InstancesRequest, InstancesResponse, decode, encode
from bridge.tasks import task_scope
from tests.boxes import serving
from tests.failing_sqlite import FULL, FailingSqlite
from tests.support import ask, box_config, connect, eventually

HOST = "host box-a"


async def alerts_of(gateway: Connection, service: str = "") -> str:
    """The alerts of the host in a reply of `box.instances`, "" if there are none."""
    message = await gateway.request("box.instances", encode(InstancesRequest(service=service)))
    return decode(InstancesResponse, message.data).notices.get(HOST, "")


async def test_a_journal_set_aside_is_reported_until_it_is_removed(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    config = box_config(tmp_path, server.url)
    config.data_dir.mkdir()
    (config.data_dir / JOURNAL).write_bytes(b"not SQLite" * 999)
    async with connect(server.url) as gateway:
        async with Box.running(config):
            [kept] = config.data_dir.glob(f"{JOURNAL}.damaged-*")
            assert f"a damaged journal was set aside as {kept}" in await alerts_of(gateway)
            assert str(kept) in await alerts_of(gateway, "web")
        async with Box.running(config):
            assert str(kept) in await alerts_of(gateway)  # the next process reports it too
            kept.unlink()

            async def no_alert() -> bool:
                return not await alerts_of(gateway)

            await eventually(no_alert)


async def test_waiting_events_are_reported_with_the_time_of_the_oldest(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alerts, "_MAX_DELAY", 0.0)
    config = box_config(tmp_path, server.url)
    async with connect(server.url) as gateway, Box.running(config) as box:

        def metric(name: str) -> float | None:
            return box.metrics.registry.get_sample_value(f"box_bridge_backlog_{name}")

        assert (metric("events"), metric("age_seconds")) == (0.0, 0.0)
        stream = (await jetstream(gateway).stream_info("BOX_EVENTS")).config
        await jetstream(gateway).update_stream(stream, max_bytes=1)  # it stores nothing now
        assert (await ask(gateway, "web", 1)).accepted
        alert = await eventually(lambda: alerts_of(gateway), what="the backlog is reported")
        assert " to be published, the oldest since 20" in alert
        first = metric("age_seconds")
        assert first
        await eventually(lambda: (metric("age_seconds") or 0) > first)
        await eventually(lambda: metric("events") == 2.0)
        await jetstream(gateway).update_stream(stream)
        await serving(gateway, "web", 1)

        async def no_alert() -> bool:
            return not await alerts_of(gateway)

        await eventually(no_alert)
        assert (metric("events"), metric("age_seconds")) == (0.0, 0.0)


class Plans(FleetListener):
    """Collects which services need a new plan."""

    def __init__(self, needed: list[Iterable[str] | None]) -> None:
        self._needed = needed

    def plan_needed(self, services: Iterable[str] | None) -> None:
        self._needed.append(services)


async def test_a_changed_notice_in_a_hosts_record_needs_no_new_plan(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    record = HostRecord(host_id="x", runtime="process", cpus=1, max_instances=1, services={})
    touched: list[Iterable[str] | None] = []
    async with connect(server.url) as connection, task_scope() as tasks:
        await topology.ensure(connection)
        fleet = FleetView(connection, 10)
        fleet.subscribe(Plans(touched))
        tasks.create_task(fleet.hosts.run())
        await fleet.hosts.wait_live()
        await fleet.hosts.put("box-b", record)
        assert touched == [None]
        await fleet.hosts.put("box-b", replace(record, notices=["a disk is full"]))
        assert touched == [None]
        assert fleet.state.hosts["box-b"].notices == ["a disk is full"]
        await fleet.hosts.put("box-b", replace(record, closing=True))
        assert touched == [None, None]


async def test_the_host_record_reports_a_journal_that_cannot_be_written(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sqlite = FailingSqlite.install(monkeypatch)
    config = box_config(tmp_path, server.url)
    async with connect(server.url) as gateway, Box.running(config) as box:

        async def host() -> HostRecord:
            raw = await jetstream(gateway).get_last_msg("KV_box_hosts", "$KV.box_hosts.box-a")
            return decode(HostRecord, raw.data or b"")

        assert (await host()).notices == []
        sqlite.fault = FULL
        assert (await ask(gateway, "web", 1)).accepted

        async def problem() -> bool:
            return "cannot be written: database or disk is full" in "".join((await host()).notices)

        await eventually(problem)
        assert (box.blocker() or "").endswith("cannot be written: database or disk is full")
        sqlite.fault = None

        async def no_alert() -> bool:
            return not (await host()).notices

        await eventually(no_alert)
        await serving(gateway, "web", 1)
