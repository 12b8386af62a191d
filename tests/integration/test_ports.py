"""The ports of instances: taken, fixed, lost and won."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from bridge.bus.embedded_server import EmbeddedServer
from bridge.protocol import (
    InstanceState,
    ScaleConfig,
)
from tests.boxes import boxed, fetch, first_failure, serving
from tests.paths import HTTP_SERVICE
from tests.support import ask, service_table

S = InstanceState


async def test_a_fixed_port_in_use_fails_with_the_name_of_its_process(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    squatter = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
    port = squatter.sockets[0].getsockname()[1]
    async with squatter, boxed(server, tmp_path) as (gateway, recorder):
        await ask(gateway, "web", 1, config=ScaleConfig(port_map=[f"{port}:80"]))
        event = await first_failure(recorder)
        assert event.message.startswith(f"port {port} is taken by ")
        assert f"(pid {os.getpid()})" in event.message


async def test_an_instance_that_lost_its_port_is_started_on_another(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    # At the first start a stranger, not of the instance's family, takes the port before it.
    service, marker = HTTP_SERVICE, tmp_path / "squatted"
    script = tmp_path / "race.sh"
    script.write_text(
        f"""
if [ ! -e {marker} ]; then
    echo "$PORT" > {marker}
    ( BOX_INSTANCE_DIR= setsid {sys.executable} -S -E {service} "$PORT" & echo $! > {marker}.pid )
    while ! {sys.executable} -S -E -c "
import socket; socket.create_connection(('127.0.0.1', $PORT))"; do :; done
fi 2>/dev/null
exec {sys.executable} -S -E {service} "$1"
"""
    )
    table = service_table("web", command=["/bin/sh", str(script), "{port}"])
    async with boxed(server, tmp_path, table) as (gateway, recorder):
        try:
            await ask(gateway, "web", 1)
            [info] = await serving(gateway, "web", 1)
            squatted = marker.read_text().strip()
            await recorder.reached(info.id, "Ready")
            notes = [e.message for e in recorder.of(info.id) if e.from_state is e.to_state]
            assert len(notes) == 1
            assert notes[0].startswith(f"port {squatted} is taken by ")
            assert notes[0].endswith("; trying another port")
            assert info.endpoint != f"127.0.0.1:{squatted}"
            assert (await fetch(info))["instance"] == info.id
        finally:
            os.kill(int((tmp_path / "squatted.pid").read_text()), signal.SIGKILL)
