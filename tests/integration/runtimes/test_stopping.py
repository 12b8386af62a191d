"""Which signal asks an instance to end, and which of its processes get it."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from bridge.box.fleet.host_record import offers
from bridge.box.runtimes.oci import commands
from bridge.box.runtimes.oci.engines import KINDS
from bridge.errors import ConfigError
from bridge.settings import BoxConfig, Config, ServiceConfig
from tests.integration.runtimes.bench import Bench
from tests.support import eventually

PREFORK = """
import os, signal, sys, time
gate = sys.argv[1]
def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())
child = os.fork()
if not child:
    say("job: begun")
    while not os.path.exists(gate):
        time.sleep(0.02)
    say("job: finished")
    os._exit(0)
def end(number, frame):
    say("parent:", signal.Signals(number).name)
    open(gate + ".asked", "w").close()
    say("parent: worker ended with", os.waitpid(child, 0)[1])
    os._exit(0)
for name in ("TERM", "INT", "QUIT", "USR1"):
    signal.signal(getattr(signal, "SIG" + name), end)
while True:
    time.sleep(1)
"""


async def stop_prefork(tmp_path: Path, **settings: Any) -> str:
    """The log of a parent that lets its worker finish a job, after a stop in the middle of it."""
    gate = tmp_path / "gate"
    bench = Bench(tmp_path, None)
    spec = bench.spec([sys.executable, "-u", "-c", PREFORK, str(gate)], **settings)
    log = spec.directory / "stdout.log"
    async with bench.life() as runtime:
        handle = await bench.started(runtime, spec)
        await eventually(lambda: log.exists() and "begun" in log.read_text(), within=30)

        async def finish() -> None:
            await eventually((tmp_path / "gate.asked").exists, within=30)
            gate.touch()

        end, _ = await asyncio.gather(runtime.stop(handle, 30), finish())
        assert end.code == 0
        runtime.forget(handle)
    return log.read_text()


@pytest.mark.parametrize("name", ["", "SIGTERM", "SIGINT", "SIGQUIT", "SIGUSR1"])
async def test_the_main_process_alone_is_asked_to_end_and_its_worker_finishes(
    tmp_path: Path, name: str
) -> None:
    log = await stop_prefork(tmp_path, stop_signal=name)
    assert f"parent: {name or 'SIGTERM'}" in log
    assert "job: finished" in log
    assert "worker ended with 0" in log


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
async def test_the_whole_group_is_asked_to_end_where_it_is_set(tmp_path: Path, name: str) -> None:
    log = await stop_prefork(tmp_path, stop_signal=name, stop_scope="group")
    assert f"worker ended with {signal.Signals[name].value}" in log


async def test_what_the_main_process_leaves_is_asked_to_end_then(tmp_path: Path) -> None:
    worker = "import signal, time\n"
    worker += "def end(*_): print('worker: asked', flush=True); exit(0)\n"
    worker += "signal.signal(signal.SIGTERM, end); print('up', flush=True)\n"
    worker += "while True: time.sleep(1)"
    bench = Bench(tmp_path, None)
    script = '"$0" -c "$1" & wait'
    spec = bench.spec(["sh", "-c", script, sys.executable, worker])
    log = spec.directory / "stdout.log"
    async with bench.life() as runtime:
        handle = await bench.started(runtime, spec)
        await eventually(lambda: log.exists() and "up" in log.read_text(), within=30)
        await runtime.stop(handle, 30)
        assert "worker: asked" in log.read_text()
        runtime.forget(handle)


def test_an_engine_gets_the_stop_signal_when_the_container_is_made() -> None:
    spec = commands.ContainerSpec(
        name="c",
        image="i",
        entrypoint=[],
        command=[],
        ports=[],
        vcpus=None,
        memory_mib=None,
        labels={},
        env_file="e",
        stop_signal="SIGQUIT",
    )
    call = commands.create(KINDS["docker"], spec)
    assert call[call.index("--stop-signal") + 1] == "SIGQUIT"


@pytest.mark.parametrize(
    ("engine", "settings", "reason"),
    [
        ("podman", {"stop_scope": "group"}, "stop_scope is for the process runtime"),
        ("a3s-box", {"stop_signal": "SIGINT"}, "not supported by a3s-box"),
    ],
)
def test_what_an_engine_cannot_do_is_refused(
    engine: str, settings: dict[str, str], reason: str
) -> None:
    config = Config(
        box=BoxConfig(name="a", runtime="oci", engine=engine),
        services={"web": ServiceConfig(image="i", **settings)},  # type: ignore[arg-type]
    )
    with pytest.raises(ConfigError, match=reason):
        offers(config)


@pytest.mark.parametrize("wrong", ["KILL", "SIGKILL", "SIGSTOP", "TERM", "15"])
def test_a_signal_that_cannot_be_a_stop_signal_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="stop_signal"):
        ServiceConfig(command=["x"], stop_signal=wrong)
