"""`demo`: the main job on real input, step by step, each one verified."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
from msgspec import Struct

from bridge.box.daemon import Box
from bridge.box.lifecycle import NEXT
from bridge.bus.follow import Reset
from bridge.bus.server import EmbeddedServer
from bridge.cli import DONE, FAILED, INTERRUPTED
from bridge.cli.bars import bars
from bridge.cli.lives import Lives
from bridge.cli.output import event_text, out, print_json
from bridge.config import load
from bridge.gateway.client import ScaleClient
from bridge.gateway.events import Gap
from bridge.observe import configure_logging
from bridge.protocol import InstanceEvent, InstanceInfo, InstanceState, now
from bridge.tasks import task_scope

_SLOW = 4.0  # seconds that the slow requests take
_PATIENCE = 20.0  # seconds for any one thing to come true

_CONFIG = """
[box]
name = "demo"
max_instances = 10
on_exit = "drain"

[services.web]
command = [{command}, "{{port}}"]
probe = {{ http = "/" }}

[services.api]
command = [{command}, "{{port}}"]
probe = {{ tcp = true }}
"""


class _Step(Struct):
    name: str
    ok: bool
    seconds: float
    found: str


class _Report(Struct):
    ok: bool
    steps: list[_Step]
    events: list[InstanceEvent]


class _Unexpected(Exception):
    """A step found something else than it should."""


async def run_demo(*, keep: bool, json: bool) -> int:
    """Run the demo; 0 only if every step was verified."""
    configure_logging("error")
    # Its instances outlive a process that just dies: SIGTERM ends it in order, as Ctrl-C does.
    if (task := asyncio.current_task()) is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    directory = Path(tempfile.mkdtemp(prefix="box-bridge-demo-"))
    demo = _Demo(directory, json)
    try:
        ok = await demo.run()
    except asyncio.CancelledError:
        return INTERRUPTED
    finally:
        if keep:
            out.print(f"Logs and store: {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)
    if json:
        print_json(_Report(ok, demo.steps, demo.events))
    return DONE if ok else FAILED


class _Demo:
    def __init__(self, directory: Path, quiet: bool) -> None:
        self.steps: list[_Step] = []
        self.events: list[InstanceEvent] = []
        self._directory = directory
        self._quiet = quiet
        self._news = asyncio.Event()
        self._pids: set[int] = set()

    async def run(self) -> bool:
        """All steps, until one fails; whether none did."""
        started = time.monotonic()
        self._say("[bold]box-bridge demo[/bold]: a NATS server, a Box, two services\n")
        try:
            async with self._everything() as (client, http):
                await self._scale_up(client)
                endpoints = await self._fetch(client, http)
                await self._crash(client, http, endpoints)
                await self._drain(client, http)
                await self._scale_to_zero(client)
                await self._chains()
            async with self._step("Everything has been stopped, and nothing is left behind"):
                left = [pid for pid in self._pids if _alive(pid)]
                _expect(not left, f"processes {left} are still there")
        except _Unexpected:
            return False
        self._say("\n[bold]The lives of the instances[/bold]")
        if not self._quiet:
            lives = Lives(since=None, most=100)
            for event in self.events:
                lives.take(event)
            for row in bars(lives.picture(now()), width=max(40, min(80, out.width - 20))):
                out.print(row, no_wrap=True)
        self._say(f"\n[green]All {len(self.steps)} steps held[/green], ", end="")
        self._say(f"in {time.monotonic() - started:.1f} s.")
        return True

    # ── the steps ────────────────────────────────────────────────────────────────────────

    @contextlib.asynccontextmanager
    async def _everything(self) -> AsyncIterator[tuple[ScaleClient, aiohttp.ClientSession]]:
        async with contextlib.AsyncExitStack() as stack:
            async with self._step("A NATS server with JetStream is up, and a Box with it") as found:
                server = await stack.enter_async_context(EmbeddedServer(self._directory / "nats"))
                script = Path(__file__).with_name("demo_service.py")
                command = ", ".join(f'"{word}"' for word in (sys.executable, "-S", "-E", script))
                file = self._directory / "box.toml"
                file.write_text(_CONFIG.format(command=command))
                config = load(file, flags={"nats": {"url": server.url}})
                await stack.enter_async_context(Box.running(config))
                client = await stack.enter_async_context(
                    ScaleClient.connect(settings=config.nats, name="demo")
                )
                http = await stack.enter_async_context(aiohttp.ClientSession())
                found.append(server.url)
            tasks = await stack.enter_async_context(task_scope())
            events = await stack.enter_async_context(client.events())

            async def follow() -> None:
                async for event in events:
                    self._take(event)

            tasks.create_task(follow())
            yield client, http

    async def _scale_up(self, client: ScaleClient) -> None:
        async with self._step("box.scale: web 0 → 3 and api 0 → 1, all Ready") as found:
            answer = await client.scale("web", 3)
            _expect(answer.accepted and answer.target_replicas == 3, f"answered {answer}")
            await client.scale("api", 1, wait=True, timeout=_PATIENCE)
            seen = await client.wait_ready("web", 3, timeout=_PATIENCE)
            _expect(seen.total == 3, f"{seen.total} instances")
            found.append(f"{seen.total} web, 1 api")

    async def _fetch(self, client: ScaleClient, http: aiohttp.ClientSession) -> list[str]:
        async with self._step("Each endpoint answers HTTP, as the instance it is") as found:
            for info in (await client.observe()).instances:
                page = await _get(http, info, "/")
                _expect(page["instance"] == info.id, f"{info.endpoint} is {page['instance']}")
                _expect(page["service"] == info.service, f"{info.id} serves {page['service']}")
                self._pids.add(page["pid"])
                found.append(str(info.endpoint))
        return found

    async def _crash(
        self, client: ScaleClient, http: aiohttp.ClientSession, endpoints: list[str]
    ) -> None:
        async with self._step("kill -9 of one instance: told as Failed, and replaced") as found:
            before = (await client.observe("web")).instances
            victim = before[0]
            os.kill((await _get(http, victim, "/"))["pid"], signal.SIGKILL)
            failed = await self._event(victim.id, InstanceState.FAILED)
            _expect("signal 9" in failed.message, f"it said {failed.message!r}")
            seen = await client.wait_ready("web", 3, timeout=_PATIENCE)
            new = [info for info in seen.instances if info not in before and info.id != victim.id]
            fresh = {info.id for info in seen.instances} - {info.id for info in before}
            _expect(len(fresh) == 1 and bool(new), f"new instances: {fresh}")
            for info in seen.instances:
                page = await _get(http, info, "/")
                self._pids.add(page["pid"])
            found.append(f"{victim.id} → {fresh.pop()}")

    async def _drain(self, client: ScaleClient, http: aiohttp.ClientSession) -> None:
        name = f"web 3 → 1 with a {_SLOW:.0f} s request on each: all three succeed"
        async with self._step(name) as found:
            before = (await client.observe("web")).instances
            async with task_scope() as tasks:
                slow = [tasks.create_task(_get(http, info, f"/slow?{_SLOW}")) for info in before]
                for info in before:
                    await self._event(info.id, InstanceState.BUSY)
                answer = await client.scale("web", 1)
                leaving = [i for i in answer.instances if i.state is InstanceState.DRAINING]
                _expect(len(leaving) == 2, f"{len(leaving)} drain")
                pages = await asyncio.gather(*slow)
            _expect({page["instance"] for page in pages} == {i.id for i in before}, "answers")
            for info in leaving:
                await self._event(info.id, InstanceState.STOPPED)
            await client.scale("web", 1, wait=True, timeout=_PATIENCE)  # asks for nothing new
            left = (await client.observe("web")).instances
            _expect(len(left) == 1, f"{len(left)} are left")
            found.append(f"{left[0].id} stays")

    async def _scale_to_zero(self, client: ScaleClient) -> None:
        async with self._step("Both services to 0: no instance is left"):
            for service in ("web", "api"):
                await client.scale(service, 0, wait=True, timeout=_PATIENCE)
            seen = await client.observe()
            _expect(seen.total == 0, f"{seen.total} are left")

    async def _chains(self) -> None:
        async with self._step("Every instance's events form one legal chain to its end") as found:
            for instance_id in {event.instance_id for event in self.events}:
                await self._event(instance_id, InstanceState.STOPPED, InstanceState.FAILED)
            lives: dict[str, InstanceState] = {}
            for event in self.events:
                state = lives.get(event.instance_id, InstanceState.CREATING)
                _expect(event.from_state is state, f"{event.instance_id} was {state}")
                note = event.from_state is event.to_state
                _expect(note or event.to_state in NEXT[state], f"{state} → {event.to_state}")
                lives[event.instance_id] = event.to_state
            ends = {InstanceState.STOPPED, InstanceState.FAILED}
            _expect(set(lives.values()) <= ends, f"ends are {lives}")
            found.append(f"{len(self.events)} events of {len(lives)} instances")

    # ── the show ─────────────────────────────────────────────────────────────────────────

    @contextlib.asynccontextmanager
    async def _step(self, name: str) -> AsyncIterator[list[str]]:
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
            raise _Unexpected(problem) from exc
        finally:
            seconds = time.monotonic() - started
            self.steps.append(_Step(name, not problem, seconds, problem or ", ".join(found)))
            mark = "[red]✗[/red]" if problem else "[green]✓[/green]"
            said = problem or ", ".join(found)
            self._say(f"{mark} {name} [bright_black]({seconds:.1f} s)[/bright_black]")
            if said:
                self._say(f"  [bright_black]{said}[/bright_black]")

    def _take(self, event: InstanceEvent | Gap | Reset) -> None:
        if isinstance(event, InstanceEvent):
            self.events.append(event)
            self._news.set()
            if not self._quiet:
                out.print("    ", event_text(event), sep="")

    async def _event(self, instance_id: str, *states: InstanceState) -> InstanceEvent:
        """The event that took the instance to one of `states`, once it has come."""
        try:
            async with asyncio.timeout(_PATIENCE):
                while True:
                    for event in self.events:
                        if event.instance_id == instance_id and event.to_state in states:
                            return event
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError as exc:
            wanted = " or ".join(map(str, states))
            raise _Unexpected(f"{instance_id} did not become {wanted}") from exc

    def _say(self, text: str, end: str = "\n") -> None:
        if not self._quiet:
            out.print(text, end=end)


async def _get(http: aiohttp.ClientSession, info: InstanceInfo, path: str) -> dict[str, Any]:
    async with http.get(f"http://{info.endpoint}{path}") as response:
        _expect(response.status == 200, f"{info.endpoint}{path}: HTTP {response.status}")
        page: dict[str, Any] = await response.json()
        return page


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _expect(held: bool, otherwise: str) -> None:
    if not held:
        raise _Unexpected(otherwise)
