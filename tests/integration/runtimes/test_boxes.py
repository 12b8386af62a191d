"""A Box and its instances from the outside: the same whatever makes the instances."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bridge.box.daemon import Box
from bridge.bus.embedded_server import EmbeddedServer
from bridge.protocol import InstanceState
from tests.boxes import boxed, first_failure, instances, serving
from tests.containers import containers, get, script, web
from tests.integration.runtimes.bench import FAILING
from tests.podman import Podman
from tests.support import Recorder, ask, box_config, connect, eventually, service_table

S = InstanceState

STUBBORN = 'trap "" TERM; {serve} & while :; do sleep 0.1; done'


@dataclass
class Host:
    """How a test configures a Box of one runtime: `service` makes the table of `web`."""

    settings: dict[str, Any]
    service: Callable[..., str]
    serve: str
    podman: Podman | None


@pytest.fixture(params=["process", pytest.param("oci", marks=pytest.mark.slow)])
def host(request: pytest.FixtureRequest) -> Host:
    if request.param == "oci":
        podman = request.getfixturevalue("podman")
        return Host(containers(podman), web, "httpd -f -p $PORT -h /www", podman)
    serve = f"{sys.executable} -m http.server --bind 127.0.0.1 $PORT"

    def table(*command: str, **settings: object) -> str:
        return service_table("web", command=list(command or script(f"exec {serve}")), **settings)

    return Host({}, table, serve, None)


async def test_instances_start_serve_and_end_as_their_events_report(
    server: EmbeddedServer, tmp_path: Path, host: Host
) -> None:
    async with boxed(server, tmp_path, host.service(), **host.settings) as (gateway, recorder):
        await ask(gateway, "web", 2)
        both = await serving(gateway, "web", 2)
        for info in both:
            assert await get(info)
        await ask(gateway, "web", 0)
        for info in both:
            states = await recorder.reached(info.id, "Stopped")
            assert [states[0], *states[-3:]] == ["Booting", "Draining", "Stopping", "Stopped"]
            assert "Ready" in states
        gone = [m.subject for m in recorder.messages if ".deregister." in m.subject]
        assert set(gone) == {f"box.deregister.web.{info.id}" for info in both}
        if host.podman:
            podman = host.podman
            await eventually(lambda: not podman.names())


async def test_a_failed_instance_reports_the_reason_and_is_retried(
    server: EmbeddedServer, tmp_path: Path, host: Host
) -> None:
    table = host.service(*FAILING)
    async with boxed(server, tmp_path, table, **host.settings) as (gateway, recorder):
        await ask(gateway, "web", 1)
        event = await first_failure(recorder)
        assert event.message == "exited with code 3: the last words"
        assert event.from_state is S.BOOTING
        await eventually(lambda: len({e.instance_id for _, e in recorder.events}) >= 2)
        await ask(gateway, "web", 0)


async def test_an_instance_that_ignores_sigterm_is_killed_and_that_is_reported(
    server: EmbeddedServer, tmp_path: Path, host: Host
) -> None:
    table = host.service(*script(STUBBORN.format(serve=host.serve)), stop_grace=0.3)
    async with boxed(server, tmp_path, table, **host.settings) as (gateway, recorder):
        await ask(gateway, "web", 1)
        [info] = await serving(gateway, "web", 1)
        await ask(gateway, "web", 0)
        await recorder.reached(info.id, "Stopped")
        assert recorder.of(info.id)[-1].message == "killed: it did not end within 0.3 s"


async def test_load_is_measured_while_it_serves(
    server: EmbeddedServer, tmp_path: Path, host: Host
) -> None:
    async with boxed(server, tmp_path, host.service(), **host.settings) as (gateway, _):
        await ask(gateway, "web", 1)

        async def measured() -> bool:
            there = await instances(gateway, "web")
            return bool(there) and (there[0].health.memory_bytes or 0) > 0

        await eventually(measured)


async def test_a_fixed_port_in_use_is_reported_with_its_process(
    server: EmbeddedServer, tmp_path: Path, host: Host, unused_port: int
) -> None:
    table = host.service(port_map=[f"{unused_port}:80"])
    with socket.create_server(("127.0.0.1", unused_port)):
        async with boxed(server, tmp_path, table, **host.settings) as (gateway, recorder):
            await ask(gateway, "web", 1)
            event = await first_failure(recorder)
            assert event.message.startswith(f"port {unused_port} is taken by ")


async def test_a_restarted_box_takes_over_the_instances_that_it_left(
    server: EmbeddedServer, tmp_path: Path, host: Host
) -> None:
    config = box_config(
        tmp_path, server.url, host.service(), **{**host.settings, "on_exit": "leave"}
    )
    async with connect(server.url) as gateway:
        recorder = await Recorder.listening(gateway)
        async with Box.running(config):
            await ask(gateway, "web", 2)
            before = await serving(gateway, "web", 2)
        for info in before:
            assert await get(info)
            await eventually(lambda: recorder.states(info.id)[-1:] in (["Ready"], ["Busy"]))  # noqa: B023
        count = len(recorder.events)
        again = box_config(tmp_path, server.url, host.service(), **host.settings)
        async with Box.running(again):
            after = await serving(gateway, "web", 2)
            assert {info.id for info in after} == {info.id for info in before}
            changes = [e for _, e in recorder.events[count:] if e.to_state not in (S.BUSY, S.READY)]
            assert not changes
        recorder.check_chains()
