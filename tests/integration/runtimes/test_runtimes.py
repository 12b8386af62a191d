"""What any runtime must do: the same tests for each of them, by itself."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bridge.box.runner.inflight import InflightCounter
from bridge.box.runner.probes import Prober
from bridge.box.runtimes.base import Exit, Handle, Runtime
from bridge.errors import InstanceError, PortTaken
from tests.integration.runtimes.bench import FAILING, POLITE, STUBBORN, Bench, logged
from tests.support import eventually

RUNTIMES = [
    "process",
    pytest.param("oci", marks=pytest.mark.slow),
    pytest.param("a3s-shaped", marks=pytest.mark.slow),
]


@pytest.fixture(params=RUNTIMES)
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path, None)
    if request.param != "process":
        podman = request.getfixturevalue("podman")
        engine = podman.engine if request.param == "oci" else podman.a3s_shaped
        made = Bench(tmp_path, podman, engine)
    yield made
    async with made.life() as runtime:  # what a failed test has left
        await runtime.sweep()


async def ended(runtime: Runtime, handle: Handle) -> Exit:
    async with asyncio.timeout(20):
        return await runtime.watch(handle)


async def left_over(bench: Bench) -> set[str]:
    """What a new life of the Box finds."""
    async with bench.life() as runtime:
        return set(await runtime.list_living())


# ── one life ─────────────────────────────────────────────────────────────────────────────


async def test_an_instance_serves_at_its_port_is_measured_and_ends_on_request(
    bench: Bench,
) -> None:
    async with bench.life() as runtime:
        handle = await bench.serving(runtime)
        assert handle.port
        assert bench.recorded[-1][1] == handle.port
        reader, writer = await asyncio.open_connection("127.0.0.1", handle.port)
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        assert b" 200 " in await reader.readline()
        writer.close()

        async def measured() -> bool:
            used = (await runtime.usage([handle])).get(handle.instance_id)
            return used is not None and used.memory_bytes > 0

        await eventually(measured)
        assert await runtime.stop(handle, 5)
        runtime.forget(handle)
        with pytest.raises(OSError, match="111"):
            await asyncio.open_connection("127.0.0.1", handle.port)
    assert not await left_over(bench)


async def test_its_process_is_recorded_before_its_command_runs(bench: Bench) -> None:
    async with bench.life() as runtime:
        handle = await runtime.create(bench.spec(FAILING), print)
        assert not bench.recorded

        async def fail(*_: object) -> None:
            raise InstanceError("the disk is full")

        with pytest.raises(InstanceError, match="disk"):
            await runtime.start(handle, fail)
        assert (await runtime.stop(handle, 5)).ran is False
        assert await runtime.last_line(handle) == ""
    assert not await left_over(bench)


async def test_the_exit_code_and_the_last_log_line_are_reported(bench: Bench) -> None:
    async with bench.life() as runtime:
        handle = await bench.started(runtime, bench.spec(FAILING))
        assert await ended(runtime, handle) == Exit(code=3)
        assert await runtime.last_line(handle) == "the last words"
        assert await runtime.stop(handle, 0) == Exit(code=3)


async def test_a_signal_is_reported(bench: Bench) -> None:
    async with bench.life() as runtime:
        handle = await bench.started(runtime, bench.spec(STUBBORN))
        pid = bench.podman.pid("web-a") if bench.podman else bench.recorded[-1][0].pid
        os.kill(pid, signal.SIGKILL)
        assert (await ended(runtime, handle)).signal == signal.SIGKILL
        assert (await runtime.stop(handle, 0)).signal == signal.SIGKILL


async def test_an_instance_that_ends_within_its_grace_is_not_killed(bench: Bench) -> None:
    async with bench.life() as runtime:
        handle = await bench.serving(runtime)
        other = await bench.started(runtime, bench.spec(POLITE, "web-b"))
        if not bench.is_oci:
            await logged(runtime, other, "up")
        else:
            assert bench.podman is not None
            podman = bench.podman
            await eventually(lambda: podman("logs", "web-b") == "up\n")
        assert await runtime.stop(other, 10) == Exit()
        assert await runtime.last_line(other) == "ended in order"
        assert await runtime.listens(handle)


async def test_an_instance_that_ignores_sigterm_is_killed_after_its_grace(bench: Bench) -> None:
    async with bench.life() as runtime:
        handle = await bench.started(runtime, bench.spec(STUBBORN))
        if bench.podman is not None:
            podman = bench.podman
            await eventually(lambda: podman("logs", "web-a") == "up\n")
        else:
            await logged(runtime, handle, "up")
        assert (await runtime.stop(handle, 0.5)).signal == signal.SIGKILL
    assert not await left_over(bench)


async def test_an_instance_that_never_started_can_be_stopped(bench: Bench) -> None:
    async with bench.life() as runtime:
        handle = await runtime.create(bench.spec(POLITE), print)
        assert await runtime.stop(handle, 5) == Exit()
        runtime.forget(handle)
        assert await runtime.sweep() == []


async def test_it_can_be_started_again_after_a_stop(bench: Bench) -> None:
    async with bench.life() as runtime:
        handle = await bench.serving(runtime)
        await runtime.stop(handle, 0)
        await runtime.start(handle, bench.record)

        async def listening() -> bool:
            return await runtime.listens(handle)

        await eventually(listening)
        await runtime.stop(handle, 0)


async def test_a_missing_program_is_reported_by_its_name(bench: Bench) -> None:
    async with bench.life() as runtime:
        handle = await runtime.create(bench.spec(["no-such-program"]), print)
        try:
            await runtime.start(handle, bench.record)
        except InstanceError as exc:
            reason = str(exc)
        else:
            assert (await ended(runtime, handle)).code == 127
            reason = await runtime.last_line(handle)
        assert "no-such-program" in reason
        await runtime.stop(handle, 0)


async def test_environment_variables_arrive_unchanged(bench: Bench) -> None:
    env = {"A": "two words ", "B": 'quoted "and" #hashed', "C": "ä=ü", "D": "", "E": "$HOME \\n"}
    script = 'printf "%s|" "$A" "$B" "$C" "$D" "$E" "$BOX_INSTANCE_ID" "$BOX_SERVICE"'
    async with bench.life() as runtime:
        handle = await bench.started(runtime, bench.spec(["sh", "-c", script], env=env))
        assert await ended(runtime, handle) == Exit()
        # Log lines are stripped at their ends, and no value is there.
        assert await runtime.last_line(handle) == "|".join([*env.values(), "web-a", "web", ""])
        await runtime.stop(handle, 0)


# ── ports and requests ───────────────────────────────────────────────────────────────────


async def test_a_fixed_port_is_used_or_its_process_reported(bench: Bench, unused_port: int) -> None:
    ports = [f"{unused_port}:80"]
    async with bench.life() as runtime:
        with socket.create_server(("127.0.0.1", unused_port)):
            handle = await runtime.create(bench.spec(bench.serve, port_map=ports), print)
            with pytest.raises(PortTaken, match=rf"{unused_port} is taken by .*{os.getpid()}"):
                await runtime.start(handle, bench.record)
            await runtime.stop(handle, 0)
        handle = await bench.serving(runtime, port_map=ports)
        assert handle.port == unused_port
        await runtime.stop(handle, 0)


async def test_requests_in_flight_are_counted_without_the_probes_of_the_box(bench: Bench) -> None:
    async with bench.life() as runtime, Prober.open("127.0.0.1") as prober:
        handle = await bench.serving(runtime)
        traffic = InflightCounter(prober, freshness=0.0, inside=runtime.requests_inside)

        async def counted() -> int:
            return (await traffic.counts())[handle.port]

        async def one() -> bool:
            return await counted() == 1

        async def none() -> bool:
            return await counted() == 0

        await eventually(none)
        where = ("127.0.0.1", handle.port)
        with prober._socket(socket.AF_INET, socket.SOCK_STREAM, 0) as probe:
            await asyncio.get_running_loop().sock_connect(probe, where)
            _, writer = await asyncio.open_connection(*where)
            await eventually(one)
            writer.close()
            await writer.wait_closed()
            await eventually(none)
        await runtime.stop(handle, 0)


# ── from life to life ────────────────────────────────────────────────────────────────────


async def test_living_instances_are_adopted_after_a_restart(bench: Bench) -> None:
    async with bench.life() as runtime:
        before = await bench.serving(runtime)
    identity, port = bench.recorded[-1]
    async with bench.life() as runtime:
        living = await runtime.list_living()
        assert {name: item.port for name, item in living.items()} == {"web-a": port}
        handle = await runtime.adopt(before.spec, identity, port)  # type: ignore[attr-defined]
        assert handle.port == port
        assert await runtime.sweep() == []
        assert await runtime.listens(handle)
        watching = asyncio.ensure_future(runtime.watch(handle))
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        assert not watching.done()
        writer.close()
        await runtime.stop(handle, 0)
        assert (await watching).signal in (signal.SIGTERM, signal.SIGKILL)


async def test_an_instance_that_ended_meanwhile_is_reported_with_its_exit_code(
    bench: Bench,
) -> None:
    async with bench.life() as runtime:
        spec = bench.spec(["sh", "-c", "sleep 0.3; echo bye; exit 7"])
        await bench.started(runtime, spec)
    identity, port = bench.recorded[-1]

    def is_over() -> bool:
        if bench.podman is not None:
            return not bench.podman.inspect("web-a")["State"]["Running"]
        return (spec.directory / "exit").exists()

    await eventually(is_over)
    async with bench.life() as runtime:
        handle = await runtime.adopt(spec, identity, port)
        end = await ended(runtime, handle)
        assert end == Exit(code=7)
        assert await runtime.last_line(handle) == "bye"
        await runtime.stop(handle, 0)
    assert not await left_over(bench)


async def test_an_instance_that_is_not_adopted_is_ended_and_named(bench: Bench) -> None:
    async with bench.life() as runtime:
        known = await bench.serving(runtime)
        await bench.serving(runtime, instance_id="web-b")
    async with bench.life() as runtime:
        identity, port = bench.recorded[0] if not bench.is_oci else bench.recorded[1]
        handle = await runtime.adopt(known.spec, identity, port)  # type: ignore[attr-defined]
        assert await runtime.sweep() == ["web-b"]
        assert await runtime.listens(handle)

        async def alone() -> bool:
            return set(await runtime.list_living()) == {"web-a"}

        await eventually(alone)
        await runtime.stop(handle, 0)


async def test_all_instances_can_be_ended_at_once(bench: Bench) -> None:
    async with bench.life() as runtime:
        await bench.serving(runtime)
        await bench.started(runtime, bench.spec(STUBBORN, "web-b"))
        await runtime.end_all()
    assert not await left_over(bench)
