"""`demo`: the main job on real input, step by step, each one verified."""

from __future__ import annotations

import asyncio
import shutil
import signal
import tempfile
import time
from pathlib import Path

from msgspec import Struct

from bridge.bus.embedded_server import EmbeddedServer
from bridge.cli.exit_codes import DONE, FAILED, INTERRUPTED
from bridge.cli.timeline.history import Lives
from bridge.cli.timeline.text import bars
from bridge.console import out, print_json
from bridge.demo.fleet import FleetDemo
from bridge.demo.host import HostDemo
from bridge.demo.narration import Narration, Step, StepFailed
from bridge.observe import configure_logging
from bridge.protocol import InstanceEvent, now


class _Report(Struct):
    ok: bool
    steps: list[Step]
    events: list[InstanceEvent]


async def run_demo(*, keep: bool, json: bool) -> int:
    """Run the demo; 0 only if every step was verified."""
    configure_logging("error")
    # Its instances outlive a process that just dies: SIGTERM ends it in order, as Ctrl-C does.
    if (task := asyncio.current_task()) is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    directory = Path(tempfile.mkdtemp(prefix="box-bridge-demo-"))
    show = Narration(quiet=json)
    try:
        ok = await _run(show, directory)
    except asyncio.CancelledError:
        return INTERRUPTED
    finally:
        if keep:
            out.print(f"Logs and store: {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)
    if json:
        print_json(_Report(ok, show.steps, show.events))
    return DONE if ok else FAILED


async def _run(show: Narration, directory: Path) -> bool:
    """All steps, until one fails; whether none did."""
    started = time.monotonic()
    show.say("[bold]box-bridge demo[/bold]: a NATS server, a Box, two services\n")
    try:
        async with EmbeddedServer(directory / "nats") as server:
            async with show.step("A NATS server with JetStream is up") as found:
                found.append(server.url)
            await HostDemo(show, server.url, directory).run()
            _draw(show, 0)
            first = len(show.events)
            show.say("\n[bold]Three hosts[/bold]: one dies, one is drained, the service stays up\n")
            await FleetDemo(show, server.url, directory).run()
            _draw(show, first)
    except StepFailed:
        return False
    show.say(f"\n[green]All {len(show.steps)} steps held[/green], ", end="")
    show.say(f"in {time.monotonic() - started:.1f} s.")
    return True


def _draw(show: Narration, first: int) -> None:
    """The lives of the instances in the events from the `first` on."""
    show.say("\n[bold]The lives of the instances[/bold]")
    if show.quiet:
        return
    lives = Lives(since=None, most=100)
    for event in show.events[first:]:
        lives.take(event)
    for row in bars(lives.picture(now()), width=max(40, min(80, out.width - 20))):
        out.print(row, no_wrap=True)
