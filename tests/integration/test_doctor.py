"""`doctor` on real servers: what is well is said to be, and each fault is named with its cure."""

from __future__ import annotations

import contextlib
import re
import threading
from datetime import timedelta
from pathlib import Path

import pytest

from bridge.box import diagnostics
from bridge.box.daemon import Box
from bridge.bus.diagnostics import checks as bus_checkup
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream import topology
from bridge.bus.jetstream.api import jetstream
from bridge.bus.jetstream.publish import store
from bridge.cli import examination
from bridge.cli.commands.doctor import doctor
from bridge.cli.examination import Report, ReportLine, examine
from bridge.cli.exit_codes import FAILED
from bridge.diagnostics import Finding, Status
from bridge.errors import StoreRefused
from bridge.protocol import now
from tests.boxes import serving
from tests.integration.test_connection import configured
from tests.integration.test_topology import without_jetstream
from tests.support import ask, box_config, connect, eventually

OK, WARN, FAIL, SKIP = Status.OK, Status.WARN, Status.FAIL, Status.SKIP
OF_BUS = ("nats", "jetstream", "permissions", "topology", "limits", "clock")
OF_HOST = ("disk", "files", "journal", "runtime", "ports")


def found(report: Report, check: str) -> ReportLine:
    return next(finding for finding in report.checks if finding.check == check)


def statuses(report: Report, *checks: str) -> list[Status]:
    return [found(report, check).status for check in checks]


def box_file(directory: Path, url: str, **settings: object) -> Path:
    """The file of a Box `box-a` that is right, unless an argument changes that."""
    box_config(directory, url, **settings)  # type: ignore[arg-type]
    return directory / "box-a.toml"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """An absent server is known to be absent a little sooner."""
    monkeypatch.setattr(examination, "_CONNECT", 1.0)


# ── all is well ──────────────────────────────────────────────────────────────────────────


async def test_a_box_at_work_is_found_well_and_is_not_disturbed(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    config = box_config(tmp_path, server.url)
    async with Box.running(config), connect(server.url) as gateway:
        assert (await ask(gateway, "web", 2)).accepted
        await serving(gateway, "web", 2)

        async def stored() -> dict[str, int]:
            streams = ("BOX_EVENTS", "BOX_REGISTRY", "KV_box_services", "KV_box_slots")
            infos = [await topology.stream_info(gateway, name) for name in streams]
            return {str(info.config.name): info.state.messages for info in infos if info}

        async def all_told() -> bool:
            return (await stored())["BOX_REGISTRY"] == 2

        await eventually(all_told)
        before = await stored()
        report = await examine(tmp_path / "box-a.toml", {})
        assert report.ok, report
        assert [finding.check for finding in report.checks] == ["config", *OF_BUS, *OF_HOST]
        # How fast the machine is, and what else listens on it, is not this Box's doing.
        quick = [
            finding for finding in report.checks if finding.check not in ("nats", "disk", "ports")
        ]
        assert [finding.status for finding in quick] == [OK] * len(quick), quick
        journal = "it is undamaged and lists 2 instances; a Box uses it"
        assert found(report, "journal").message == journal
        assert "all with the right settings" in found(report, "topology").message
        assert not any(finding.fix for finding in quick)
        assert await stored() == before
        assert (await ask(gateway, "web", 1)).accepted


async def test_with_a_url_alone_it_looks_as_a_gateway(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # there is no box.toml here
    report = await examine(None, {"url": server.url})
    assert report.ok
    assert [finding.check for finding in report.checks] == list(OF_BUS)
    assert "a gateway" in found(report, "permissions").message
    assert statuses(report, "jetstream", "permissions") == [OK, OK]
    assert statuses(report, "topology", "clock") == [WARN, SKIP]  # no Box has been here yet


# ── NATS ─────────────────────────────────────────────────────────────────────────────────


async def test_without_a_server_the_host_is_looked_at_all_the_same(
    tmp_path: Path, unused_port: int, capsys: pytest.CaptureFixture[str]
) -> None:
    file = box_file(tmp_path, f"nats://127.0.0.1:{unused_port}")
    assert await doctor(config=file) == FAILED
    lines = {line.split()[1]: line for line in capsys.readouterr().out.splitlines()}
    assert re.match(r"fail nats .*: connection refused\. Cure: start it", lines["nats"])
    for check in OF_BUS[1:]:
        assert lines[check].startswith("skip ")
    for check in ("journal", "runtime"):
        assert lines[check].startswith("ok ")
    assert lines["ports"]
    assert len(lines) == 1 + len(OF_BUS) + len(OF_HOST)


async def test_wrong_credentials_are_distinguished_from_an_absent_server(tmp_path: Path) -> None:
    async with configured(tmp_path, "authorization { user: u, password: p }") as server:
        report = await examine(None, {"url": server.url.replace("//", "//u:wrong@")})
        nats = found(report, "nats")
        assert nats.status is FAIL
        assert "wrong" not in nats.message
        assert "check the credentials" in nats.fix


async def test_a_missing_credentials_file_is_reported(
    tmp_path: Path, server: EmbeddedServer
) -> None:
    file = box_file(tmp_path, server.url)
    file.write_text(file.read_text().replace("[nats]", '[nats]\ncreds = "/nowhere.creds"'))
    report = await examine(file, {})
    assert "/nowhere.creds" in found(report, "nats").message
    assert statuses(report, "config", "nats", "journal") == [OK, FAIL, OK]


@pytest.mark.slow
async def test_a_server_without_jetstream_is_reported_with_the_option_to_start_it(
    tmp_path: Path,
) -> None:
    async with without_jetstream(tmp_path / "plain") as url:
        report = await examine(None, {"url": url})
        assert found(report, "jetstream").status is FAIL
        assert "-js" in found(report, "jetstream").fix
        assert statuses(report, "nats", "permissions") == [OK, OK]
        assert not report.ok


async def test_an_account_that_is_nearly_full_or_has_no_memory_is_reported(tmp_path: Path) -> None:
    users = "users: [{ user: u, password: p }]"
    text = "accounts { A: { jetstream: { %s }, " + users + " } }"
    async with (
        configured(tmp_path, text % "max_streams: 7") as server,
        connect(server.url, user="u", password="p") as connection,
    ):
        await topology.ensure(connection)
        finding = await bus_checkup.jetstream(connection)
        assert (finding.status, "streams 6 of 7" in finding.message) == (WARN, True)
    async with (
        configured(tmp_path, text % "max_mem: 0, max_file: 1G") as server,
        connect(server.url, user="u", password="p") as connection,
    ):
        finding = await bus_checkup.jetstream(connection)
        assert (finding.status, "no memory storage" in finding.message) == (FAIL, True), finding


@pytest.mark.parametrize(
    ("limit", "before", "after"),
    [
        ("max_file_store: 12MB", (WARN, "only 8.0 MiB are left (file)"), (FAIL, "of 12.0 MiB")),
        pytest.param(
            "max_memory_store: 4MB",
            (WARN, "only 4.0 MiB are left (memory)"),
            None,
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "max_file_store: 40MB",
            (OK, "no limits"),
            (WARN, "of 40.0 MiB in use (file)"),
            marks=pytest.mark.slow,
        ),
    ],
)
async def test_the_storage_of_the_server_is_reported_before_it_is_full(
    tmp_path: Path, limit: str, before: tuple[Status, str], after: tuple[Status, str] | None
) -> None:
    kinds = {"file": "max_file_store of the server", "memory": "max_memory_store of the server"}
    async with (
        configured(tmp_path, f"jetstream {{ {limit} }}\n") as server,
        connect(server.url) as connection,
    ):
        for config in topology.streams(connection.subjects)[1:]:  # as earlier versions made them
            await jetstream(connection).add_stream(config.evolve(max_bytes=-1))
        await topology.ensure(connection, events_max_bytes=4 * 2**20)

        finding = await bus_checkup.jetstream(connection)
        assert (finding.status, before[1] in finding.message) == (before[0], True), finding
        if finding.status is WARN:
            assert kinds[next(kind for kind in kinds if kind in finding.message)] in finding.fix
        for number in range(34 if after else 0):
            with contextlib.suppress(StoreRefused):
                await store(connection, f"$KV.box_services.x{number}", b"x" * 1_000_000)
        if after:
            finding = await bus_checkup.jetstream(connection)
            assert (finding.status, after[1] in finding.message) == (after[0], True), finding
            assert "max_file_store of the server" in finding.fix
        assert await topology.stream_info(connection, "box-doctor") is None, "a trial makes none"


async def test_a_small_storage_that_has_room_for_each_stream_is_no_finding(tmp_path: Path) -> None:
    async with (
        configured(tmp_path, "jetstream { max_file_store: 40MB }\n") as server,
        connect(server.url) as connection,
    ):
        await topology.ensure(connection)
        finding = await bus_checkup.jetstream(connection)
        assert finding.status is OK, finding


async def test_what_an_account_demands_of_streams_is_reported(tmp_path: Path) -> None:
    demands = "max_file: 1G, max_mem: 1G, max_bytes_required: true, disk_max_stream_bytes: 10MB"
    users = "users: [{ user: u, password: p }]"
    text = f"accounts {{ A: {{ jetstream: {{ {demands} }}, {users} }} }}"
    message = "the account demands max_bytes of each stream and at most 10.0 MiB a stream (file)"
    async with (
        configured(tmp_path, text) as server,
        connect(server.url, user="u", password="p") as connection,
    ):
        finding = await bus_checkup.jetstream(connection)
        assert (finding.status, message in finding.message) == (WARN, True), finding
        assert "--max-bytes" in finding.fix
        await topology.ensure(connection)
        finding = await bus_checkup.jetstream(connection)
        assert (finding.status, message in finding.message) == (OK, True), finding


# ── topology and clock ───────────────────────────────────────────────────────────────────


async def test_a_stream_that_was_changed_is_reported_with_the_right_settings(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    file = box_file(tmp_path, server.url)
    async with connect(server.url) as connection:
        await topology.ensure(connection, lifetimes=topology.Lifetimes(lease=3))
        assert statuses(await examine(file, {}), "topology") == [OK]
        config = (await jetstream(connection).stream_info("BOX_EVENTS")).config
        await jetstream(connection).update_stream(config.evolve(max_age=60, duplicate_window=60))
        finding = found(await examine(file, {}), "topology")
        assert finding.status is WARN
        assert "BOX_EVENTS: max_age is 60 s, tighter than 604800 s" in finding.message
        await jetstream(connection).update_stream(config)
        bucket = (await jetstream(connection).stream_info("KV_box_slots")).config
        await jetstream(connection).update_stream(bucket.evolve(max_age=60, duplicate_window=60))
        finding = found(await examine(file, {}), "topology")
        assert finding.status is FAIL
        assert "KV_box_slots: max_age is 60 s, and must be unlimited" in finding.message
        assert "nats stream edit" in finding.fix
        await jetstream(connection).delete_stream("KV_box_slots")
        await jetstream(connection).update_stream(config)
        finding = found(await examine(file, {}), "topology")
        assert (finding.status, finding.message) == (WARN, "missing: KV_box_slots")


async def test_more_replicas_than_servers_are_reported(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    file = box_file(tmp_path, server.url, replicas=3)
    finding = found(await examine(file, {}), "topology")
    assert (finding.status, "not in a cluster" in finding.message) == (FAIL, True)


@pytest.mark.parametrize(
    ("ahead", "status", "side"),
    [(0.0, OK, ""), (3.0, WARN, "ahead of"), (-3.0, WARN, "behind"), (60.0, FAIL, "ahead of")],
)
async def test_the_skew_of_a_clock_is_reported(
    server: EmbeddedServer, tmp_path: Path, ahead: float, status: Status, side: str
) -> None:
    async with connect(server.url) as connection:
        await topology.ensure(connection)
    report = await examine(
        None, {"url": server.url}, clock=lambda: now() + timedelta(seconds=ahead)
    )
    finding = found(report, "clock")
    assert finding.status is status, finding
    assert side in finding.message
    assert report.ok is (status is not FAIL)


# ── one failure hides no other ───────────────────────────────────────────────────────────


async def test_a_wrong_file_does_not_hide_what_is_wrong_with_nats(
    tmp_path: Path, unused_port: int
) -> None:
    file = tmp_path / "box.toml"
    file.write_text("[box]\nmax_instance = 3")
    report = await examine(file, {"url": f"nats://127.0.0.1:{unused_port}"})
    assert statuses(report, "config", "nats") == [FAIL, FAIL]
    assert "did you mean `max_instances`" in found(report, "config").message


@pytest.mark.slow
async def test_a_disk_that_hangs_holds_up_nothing_else(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()

    def hang(directory: Path) -> Finding:
        released.wait(60)
        raise AssertionError("nobody waits for this")

    monkeypatch.setattr(diagnostics, "disk", hang)
    monkeypatch.setattr(examination, "_DEADLINE", 1.5)
    report = await examine(box_file(tmp_path, server.url), {})
    assert found(report, "disk").message == "no answer within 1.5 s"
    assert statuses(report, "jetstream", "disk", "journal", "runtime") == [OK, FAIL, OK, OK]
    released.set()


async def test_a_server_is_as_far_away_as_the_quickest_of_three_answers(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    took = iter([0.5, 0.09, 0.4, 0.3, 0.2, 0.11])

    async def next_time(connection: object) -> float:
        return next(took)

    monkeypatch.setattr(bus_checkup, "_round_trip", next_time)
    async with connect(server.url) as connection:
        near, far = [await bus_checkup.server(connection) for _ in range(2)]
    assert (near.status, near.message.split(", ")[-1]) == (OK, "90.0 ms away")
    assert (far.status, far.message.split(", ")[-1]) == (WARN, "110.0 ms away")


@pytest.mark.slow
async def test_a_server_that_freezes_is_reported_within_the_deadline(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examination, "_DEADLINE", 2.0)
    file = box_file(tmp_path, server.url)
    judged = bus_checkup.server

    async def freeze(connection: object) -> Finding:
        finding = await judged(connection)  # type: ignore[arg-type]
        server.pause()
        return finding

    monkeypatch.setattr(bus_checkup, "server", freeze)
    try:
        report = await examine(file, {})
    finally:
        server.resume()
    assert statuses(report, "nats", "jetstream", "topology") == [OK, FAIL, FAIL]
    assert statuses(report, "journal", "runtime") == [OK, OK]


# ── limits ───────────────────────────────────────────────────────────────────────────────

_JETSTREAM = "jetstream { sync_interval: always }\n"


@pytest.mark.parametrize(
    ("setting", "status", "message", "fix"),
    [
        ("max_payload: 32768", FAIL, "max_payload of the server is 32768", "set max_payload"),
        ("max_payload: 262144", WARN, "max_payload of the server is 262144", "set max_payload"),
        (
            "max_subscriptions: 20",
            FAIL,
            "maximum subscriptions",
            "raise max_subscriptions",
        ),
    ],
)
async def test_a_limit_of_the_server_is_reported_with_the_setting_that_raises_it(
    tmp_path: Path, setting: str, status: Status, message: str, fix: str
) -> None:
    async with configured(tmp_path, _JETSTREAM + setting) as server:
        finding = found(await examine(box_file(tmp_path, server.url), {}), "limits")
        assert finding.status is status, finding
        assert message in finding.message
        assert fix in finding.fix


async def test_a_stream_that_is_nearly_full_is_reported(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with connect(server.url) as connection:
        await topology.ensure(connection)
        config = (await jetstream(connection).stream_info("BOX_EVENTS")).config
        await jetstream(connection).update_stream(config.evolve(max_bytes=4096))
        for _ in range(8):
            with contextlib.suppress(StoreRefused):
                await store(connection, "box.events.web", b"x" * 500)
        finding = found(await examine(None, {"url": server.url}), "limits")
        assert finding.status is WARN
        assert re.match(r"BOX_EVENTS holds \d+ of 4096 bytes", finding.message)
        assert "nats stream edit" in finding.fix


async def test_an_account_with_too_few_streams_is_reported_before_a_box_needs_them(
    tmp_path: Path,
) -> None:
    text = "accounts { A: { jetstream: { max_streams: 4 }, users: [{ user: u, password: p }] } }"
    async with (
        configured(tmp_path, _JETSTREAM + text) as server,
        connect(server.url, user="u", password="p") as connection,
    ):
        finding = await bus_checkup.jetstream(connection)
        assert (finding.status, "may have 4 streams more" in finding.message) == (FAIL, True), (
            finding
        )
        assert "max_streams" in finding.fix


async def test_no_more_connections_is_reported_with_the_setting(tmp_path: Path) -> None:
    account = "users: [{ user: u, password: p }], limits: { max_connections: 1 }"
    async with configured(tmp_path, f"accounts {{ A: {{ {account} }} }}") as server:
        async with connect(server.url, user="u", password="p"):
            nats = found(await examine(None, {"url": server.url.replace("//", "//u:p@")}), "nats")
        assert nats.status is FAIL
        assert "max_connections" in nats.fix, nats
