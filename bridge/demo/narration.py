"""Showing steps that are verified as they are taken: the frame of the demos."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
from msgspec import Struct

from bridge.bus.jetstream.follower import Reset
from bridge.console import event_text, out
from bridge.gateway.events.stream import EventStream, Gap
from bridge.protocol import InstanceEvent, InstanceInfo, InstanceState

PATIENCE = 20.0  # seconds for any one thing to come true


class Step(Struct):
    """A step, whether it held, how long it took, and what was found."""

    name: str
    ok: bool
    seconds: float
    found: str


class StepFailed(Exception):
    """A step found something else than it should."""


class Narration:
    """The steps taken so far, and the events seen. `quiet` keeps it to itself."""

    def __init__(self, *, quiet: bool) -> None:
        self.steps: list[Step] = []
        self.events: list[InstanceEvent] = []
        self.quiet = quiet
        self._news = asyncio.Event()

    @contextlib.asynccontextmanager
    async def step(self, name: str) -> AsyncIterator[list[str]]:
        """One step: what the block appends is shown beside it; what it raises fails it."""
        started, found = time.monotonic(), []  # type: tuple[float, list[str]]
        problem = ""
        try:
            yield found
        except asyncio.CancelledError:
            problem = "interrupted"
            raise
        except Exception as exc:  # shown, recorded, and raised as what it means here
            problem = str(exc) or type(exc).__name__
            raise StepFailed(problem) from exc
        finally:
            seconds = time.monotonic() - started
            self.steps.append(Step(name, not problem, seconds, problem or ", ".join(found)))
            mark = "[red]✗[/red]" if problem else "[green]✓[/green]"
            said = problem or ", ".join(found)
            self.say(f"{mark} {name} [bright_black]({seconds:.1f} s)[/bright_black]")
            if said:
                self.say(f"  [bright_black]{said}[/bright_black]")

    async def follow(self, events: EventStream) -> None:
        """Take and show every event until cancelled."""
        async for event in events:
            self._take(event)

    def _take(self, event: InstanceEvent | Gap | Reset) -> None:
        if isinstance(event, InstanceEvent):
            self.events.append(event)
            self._news.set()
            if not self.quiet:
                out.print("    ", event_text(event), sep="")

    async def event(self, instance_id: str, *states: InstanceState) -> InstanceEvent:
        """The event that took the instance to one of `states`, once it has come."""
        try:
            async with asyncio.timeout(PATIENCE):
                while True:
                    for event in self.events:
                        if event.instance_id == instance_id and event.to_state in states:
                            return event
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError as exc:
            wanted = " or ".join(map(str, states))
            raise StepFailed(f"{instance_id} did not become {wanted}") from exc

    def say(self, text: str, end: str = "\n") -> None:
        """Say it, with rich's markup, unless it is to be quiet."""
        if not self.quiet:
            out.print(text, end=end)


async def get(http: aiohttp.ClientSession, info: InstanceInfo, path: str = "/") -> dict[str, Any]:
    """What the instance answers; raises Unexpected if it is not 200."""
    async with http.get(f"http://{info.endpoint}{path}") as response:
        expect(response.status == 200, f"{info.endpoint}{path}: HTTP {response.status}")
        page: dict[str, Any] = await response.json()
        return page


def alive(pid: int) -> bool:
    """Whether there is such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def expect(held: bool, otherwise: str) -> None:
    """Raise Unexpected, saying `otherwise`, unless it held."""
    if not held:
        raise StepFailed(otherwise)
