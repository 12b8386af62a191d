"""The demo as a whole: both parts on one NATS server, and its report."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec import Struct

from bridge.bus.local_server import local_server
from bridge.demo.fleet import FleetDemo
from bridge.demo.host import HostDemo
from bridge.demo.narration import Narration, Step, StepFailed
from bridge.protocol import InstanceEvent

Draw = Callable[[Sequence[InstanceEvent]], None]
"""Draws the history of the instances from their events."""


class Report(Struct):
    """Whether every step succeeded, the steps, and the events of all instances."""

    ok: bool
    steps: list[Step]
    events: list[InstanceEvent]


async def run_demo(narration: Narration, directory: Path, draw: Draw) -> Report:
    """Run all steps in `directory`, until one fails. `draw` is called after each part."""
    return Report(await _run(narration, directory, draw), narration.steps, narration.events)


async def _run(narration: Narration, directory: Path, draw: Draw) -> bool:
    started = time.monotonic()
    narration.print("[bold]box-bridge demo[/bold]: a NATS server, a Box, two services\n")
    try:
        async with local_server(directory / "nats") as (server, _):
            async with narration.step("A NATS server with JetStream is up") as details:
                details.append(server.url)
            await HostDemo(narration, server.url, directory).run()
            _draw(narration, draw, 0)
            first = len(narration.events)
            narration.print(
                "\n[bold]Three hosts[/bold]: one dies, one is drained, the service stays up\n"
            )
            await FleetDemo(narration, server.url, directory).run()
            _draw(narration, draw, first)
    except StepFailed:
        return False
    seconds = time.monotonic() - started
    narration.print(
        f"\n[green]All {len(narration.steps)} steps succeeded[/green] in {seconds:.1f} s."
    )
    return True


def _draw(narration: Narration, draw: Draw, first: int) -> None:
    """Draw the instances of the events from the `first` on."""
    narration.print("\n[bold]The history of the instances[/bold]")
    if not narration.quiet:
        draw(narration.events[first:])
