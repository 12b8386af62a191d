"""A full host: how long it takes to come and go, and what its death does to the others.

``python -m tests.bench.storm`` scales a Box to 500 real processes and down again, then fills a host
again, kills it, Box and processes at once, and follows what the fleet makes of it. Each step that
is to be promised is asserted, so that the program fails where one does not hold; what it prints is
what it took. `test_storm` runs the same with fewer.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path

import msgspec
import psutil
from msgspec import Struct

from bridge import EventStream, RouteTable, Start
from bridge.box.runtimes.process.shim import LABEL, instance_of
from bridge.bus.core.connection import Connection
from bridge.bus.core.message import Message
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream.follower import Follower
from bridge.protocol import InstanceEvent, InstanceState
from bridge.settings import Timing
from bridge.tasks import task_scope
from tests.faults.killable import Killable
from tests.paths import TINY_SERVICE
from tests.support import ask, box_config, connect, eventually, service_table

FIRST_PORT = 30000
PATIENCE = 300.0  # seconds for anything

S = InstanceState


class Figures(Struct, kw_only=True):
    """What it took, in seconds; `gap` is the longest between two renewals of the host that stays,
    by the server's clock, and `lease` what that had to be below.
    """

    instances: int
    up: float = 0.0
    boot_p50: float = 0.0
    boot_p99: float = 0.0
    box_cpu_up: float = 0.0
    idle_percent: float = 0.0
    down: float = 0.0
    events: int = 0
    noticed: float = 0.0
    withdrawn: float = 0.0
    replaced: float = 0.0
    gap: float = 0.0
    lease: float = 0.0


class Renewals:
    """When each host renewed its lease, as the server stamped it."""

    def __init__(self) -> None:
        self.at: dict[str, list[float]] = defaultdict(list)

    def take(self, message: Message, seq: int, time_ns: int) -> None:
        self.at[message.subject.rpartition(".")[2]].append(time_ns / 1e9)

    def longest(self, host: str) -> float:
        """Seconds between two renewals, at most."""
        times = self.at[host]
        return max(b - a for a, b in itertools.pairwise(times))


class Scene:
    """Two hosts, of which the first is the one to die, and a gateway that watches."""

    def __init__(self, directory: Path, url: str, count: int, timing: str) -> None:
        self.directory = directory
        self.url = url
        self.count = count
        self.timing = timing
        self.boxes: list[Killable] = []
        self.renewals = Renewals()
        self.lease = Timing().lease

    def join(self, name: str) -> Killable:
        """One more host, with room for all."""
        first = FIRST_PORT + 2 * self.count * len(self.boxes)
        command = [sys.executable, "-I", "-S", str(TINY_SERVICE), "{port}"]
        service = service_table("web", command=command, probe={"tcp": True}, start_timeout=PATIENCE)
        config = box_config(
            self.directory,
            self.url,
            service,
            name=name,
            max_instances=self.count,
            ports=f"{first}-{first + 2 * self.count - 1}",
            timing=self.timing,
            on_exit="leave",
        )
        self.lease = config.timing.lease
        file = str(self.directory / f"{name}.toml")
        box = Killable(self.directory, "bridge.cli", "box", "-c", file, name=name)
        self.boxes.append(box)
        return box

    def end(self) -> None:
        """End all that this scene started."""
        for box in self.boxes:
            box.process.kill()
            box.process.wait()
            strike(box)


def strike(box: Killable) -> int:
    """Kill a Box and all its processes, as a power cut does; how many instances that were."""
    box.process.kill()
    box.process.wait()
    struck = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            label = process.environ().get(LABEL, "")
            if instance_of(label, box.instances):
                struck.add(label)
                process.kill()
    return len(struck)


async def scaled(gateway: Connection, table: RouteTable, count: int) -> float:
    """Seconds from the request until so many can be routed to."""
    start = time.perf_counter()

    async def accepted() -> bool:
        with contextlib.suppress(Exception):
            return (await ask(gateway, "web", count)).accepted
        return False

    await eventually(accepted, within=30, what=f"{count} instances are granted")
    await eventually(lambda: len(table) == count, within=PATIENCE, what=f"{count} routes")
    return time.perf_counter() - start


async def up_and_down(scene: Scene, figures: Figures, *, idle: float) -> None:
    """Scale the first host to `count` and to none; its events are complete."""
    async with connect(scene.url) as gateway:
        box = psutil.Process(scene.join("box-a").process.pid)
        async with RouteTable.open(gateway, "web") as table:
            figures.up = await scaled(gateway, table, scene.count)
            figures.box_cpu_up = _cpu(box)
            if idle:
                await asyncio.sleep(idle)
                before, start = _cpu(box), time.perf_counter()
                await asyncio.sleep(idle)
                used = _cpu(box) - before
                figures.idle_percent = 100 * used / (time.perf_counter() - start)
            figures.down = await scaled(gateway, table, 0)
        chains = await whole_chains(gateway, scene.count)
    figures.events = sum(map(len, chains.values()))
    boots = sorted(_boot(chain) for chain in chains.values())
    figures.boot_p50 = boots[len(boots) // 2]
    figures.boot_p99 = boots[int(len(boots) * 0.99)]


async def death(scene: Scene, figures: Figures) -> None:
    """Fill the first host, have another join, and let the first one die."""
    first = scene.boxes[0]
    async with (
        connect(scene.url) as gateway,
        task_scope() as tasks,
        RouteTable.open(gateway, "web") as table,
    ):
        await scaled(gateway, table, scene.count)
        lost = {route.instance_id for route in table}
        scene.join("box-b")
        follower = Follower(gateway, "KV_box_hosts", scene.renewals.take)
        tasks.create_task(follower.run())
        renewals = scene.renewals.at["box-b"]
        await eventually(lambda: len(renewals) > 1, within=30, what="box-b is there")
        assert strike(first) == scene.count, "the fault did not fire"
        start = time.perf_counter()

        def left() -> int:
            return sum(route.instance_id in lost for route in table)

        await eventually(lambda: left() < len(lost), within=PATIENCE, what="it is noticed")
        figures.noticed = time.perf_counter() - start
        await eventually(lambda: not left(), within=PATIENCE, what="all routes are withdrawn")
        figures.withdrawn = time.perf_counter() - start
        await eventually(lambda: len(table) == scene.count, within=PATIENCE, what="replaced")
        figures.replaced = time.perf_counter() - start
        assert {route.host for route in table} == {"box-b"}
    figures.gap, figures.lease = scene.renewals.longest("box-b"), float(scene.lease)
    assert figures.gap < figures.lease, "the host that stayed missed its lease"
    log = (scene.directory / "box-b.log").read_text()
    assert "host box-b is gone" not in log


async def whole_chains(gateway: Connection, count: int) -> dict[str, list[InstanceEvent]]:
    """The events of `count` instances that have come and gone, once all are in the stream: each
    chain begins at Creating, fits together, and ends at Stopped.
    """
    chains: dict[str, list[InstanceEvent]] = {}

    async def complete() -> bool:
        chains.clear()
        async with EventStream.open(gateway, "web", start=Start.FIRST, follow=False) as events:
            async for event in events:
                assert isinstance(event, InstanceEvent), event
                chains.setdefault(event.instance_id, []).append(event)
        ends = [chain[-1].to_state for chain in chains.values()]
        return len(ends) == count and set(ends) == {S.STOPPED}

    await eventually(complete, within=PATIENCE, what=f"{count} chains are complete")
    for chain in chains.values():
        states = [S.CREATING, *(event.to_state for event in chain)]
        assert [event.from_state for event in chain] == states[:-1], chain
    return chains


def _boot(chain: list[InstanceEvent]) -> float:
    at: dict[InstanceState, datetime] = {event.to_state: event.timestamp for event in chain}
    return (at[S.READY] - at[S.BOOTING]).total_seconds()


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


@contextlib.asynccontextmanager
async def scene_of(
    directory: Path, url: str, count: int, *, timing: str = ""
) -> AsyncIterator[Scene]:
    """A scene, and nothing of it is left when the block is over."""
    scene = Scene(directory, url, count, timing)
    try:
        yield scene
    finally:
        scene.end()


async def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--instances", type=int, default=500)
    options.add_argument("--idle", type=float, default=15.0, help="seconds to watch it idle")
    chosen = options.parse_args()
    figures = Figures(instances=chosen.instances)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory() as name:
        async with (
            EmbeddedServer(Path(name) / "nats") as server,
            scene_of(Path(name), server.url, chosen.instances) as scene,
        ):
            await up_and_down(scene, figures, idle=chosen.idle)
            print(figures, file=sys.stderr)
            await death(scene, figures)
    print(msgspec.json.format(msgspec.json.encode(figures)).decode())


if __name__ == "__main__":
    asyncio.run(main())
