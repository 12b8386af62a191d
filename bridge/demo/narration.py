"""The steps of the demo: each is run, verified, shown and recorded."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
from msgspec import Struct, field
from rich.markup import escape

from bridge.bus.jetstream.start_position import Reset
from bridge.console import event_parts, out, print_line
from bridge.gateway.events.stream import EventStream, Gap
from bridge.protocol import InstanceEvent, InstanceInfo, InstanceState

PATIENCE = 20.0  # seconds for one condition


class Step(Struct):
    """A step, whether it succeeded, its seconds, and details or the problem."""

    name: str
    ok: bool
    seconds: float
    details: str = field(name="found")


class StepFailed(Exception):
    """A step did not find what it expected."""


class Narration:
    """The steps and the events so far. `quiet` prints nothing."""

    def __init__(self, *, quiet: bool) -> None:
        self.steps: list[Step] = []
        self.events: list[InstanceEvent] = []
        self.quiet = quiet
        self._changed = asyncio.Event()

    @contextlib.asynccontextmanager
    async def step(self, name: str) -> AsyncIterator[list[str]]:
        """Run the block as one step. The block appends details; an error fails the step, and is
        raised as StepFailed.
        """
        started = time.monotonic()
        details: list[str] = []
        problem = ""
        try:
            yield details
        except asyncio.CancelledError:
            problem = "interrupted"
            raise
        except Exception as exc:  # every error fails the step, and is recorded below
            problem = str(exc) or type(exc).__name__
            raise StepFailed(problem) from exc
        finally:
            seconds = time.monotonic() - started
            text = problem or ", ".join(details)
            self.steps.append(Step(name, not problem, seconds, text))
            mark = "[red]✗[/red]" if problem else "[green]✓[/green]"
            self.print(f"{mark} {name} [bright_black]({seconds:.1f} s)[/bright_black]")
            if text:
                self.print(f"  [bright_black]{escape(text)}[/bright_black]")

    async def follow(self, events: EventStream) -> None:
        """Record and show every event until cancelled."""
        async for event in events:
            self._record(event)

    def _record(self, event: InstanceEvent | Gap | Reset) -> None:
        if isinstance(event, InstanceEvent):
            self.events.append(event)
            self._changed.set()
            if not self.quiet:
                print_line([("    ", ""), *event_parts(event)])

    async def event(self, instance_id: str, *states: InstanceState) -> InstanceEvent:
        """Wait for the event that takes the instance to one of `states`. Raises StepFailed."""
        try:
            async with asyncio.timeout(PATIENCE):
                while True:
                    for event in self.events:
                        if event.instance_id == instance_id and event.to_state in states:
                            return event
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError as exc:
            names = " or ".join(map(str, states))
            raise StepFailed(f"{instance_id} did not become {names}") from exc

    def print(self, text: str) -> None:
        """Print `text`, with rich's markup, unless this is quiet."""
        if not self.quiet:
            out.print(text, markup=True)


async def get(http: aiohttp.ClientSession, info: InstanceInfo, path: str = "/") -> dict[str, Any]:
    """The JSON that the instance answers. Raises StepFailed if the status is not 200."""
    async with http.get(f"http://{info.endpoint}{path}") as response:
        expect(response.status == 200, f"{info.endpoint}{path}: HTTP {response.status}")
        page: dict[str, Any] = await response.json()
        return page


def alive(pid: int) -> bool:
    """Whether the process exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def expect(condition: bool, problem: str) -> None:
    """Raise StepFailed with `problem` unless `condition` holds."""
    if not condition:
        raise StepFailed(problem)
