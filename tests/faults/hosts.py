"""A fleet of Boxes, each a process of its own, and what runs on which."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bridge.bus.core.connection import Connection
from bridge.gateway.client import ScaleClient
from bridge.gateway.errors import ScaleError
from bridge.gateway.operator import Operator
from bridge.protocol import InstanceInfo
from tests.boxes import labelled, serving
from tests.faults.killable import Killable
from tests.support import FIRST_PORT, box_config, connect, eventually


@asynccontextmanager
async def fleet(
    url: str,
    directory: Path,
    names: tuple[str, ...],
    *services: str,
    program: tuple[str, ...] = ("bridge.cli", "box", "-c"),
    **settings: Any,
) -> AsyncIterator[tuple[Connection, dict[str, Killable]]]:
    """Boxes, each a process of its own, and a gateway's connection. `program` runs one, given its
    configuration.
    """
    boxes = {}
    for number, name in enumerate(names):
        ports = f"{FIRST_PORT + 100 * number}-{FIRST_PORT + 100 * number + 99}"
        box_config(directory, url, *services, name=name, ports=ports, on_exit="leave", **settings)
        file = str(directory / f"{name}.toml")
        boxes[name] = Killable(directory, *program, file, name=name)
    try:
        async with connect(url) as gateway:
            await eventually(lambda: _hosts(gateway, len(names)), what="all Boxes are there")
            yield gateway, boxes
    finally:
        for box in boxes.values():
            box.end()


async def _hosts(gateway: Connection, count: int) -> bool:
    """Whether so many hosts are live, whichever Box is asked: each has a view of its own."""
    operator = Operator(gateway)
    for _ in range(10 * count):  # one that is never asked is one chance in 20,000
        try:
            there = await operator.hosts(timeout=1.0)
        except ScaleError:
            return False
        if sum(host.live for host in there) != count:
            return False
    return True


async def placed(gateway: Connection, service: str = "web") -> dict[str, str]:
    """Which instance is on which host."""
    return dict((await ScaleClient(gateway).observe(service)).hosts)


def running(boxes: dict[str, Killable]) -> Counter[str]:
    """How many process groups carry each instance's label."""
    found: Counter[str] = Counter()
    for box in boxes.values():
        for path in box.instances.iterdir() if box.instances.exists() else ():
            found[path.name] += bool(labelled(str(path)))
    return +found


async def settled(
    gateway: Connection, boxes: dict[str, Killable], count: int
) -> list[InstanceInfo]:
    """So many serve, and these are all that run."""

    async def so() -> list[InstanceInfo] | None:
        there = await serving(gateway, "web", count)
        return there if set(running(boxes)) == {info.id for info in there} else None

    return await eventually(so, what=f"{count} serve and nothing else runs")
