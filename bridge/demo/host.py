"""The demo's first part: one host, two services, a crash and a drain."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp

from bridge.box.daemon import Box
from bridge.box.state.lifecycle import NEXT
from bridge.config import load
from bridge.demo.narration import PATIENCE, Narration, alive, expect, get
from bridge.gateway.client import ScaleClient
from bridge.protocol import InstanceState
from bridge.tasks import task_scope

_SLOW = 4.0  # seconds that the slow requests take

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


def service_command() -> str:
    """The command that runs the demo's service, as the items of a TOML array."""
    script = Path(__file__).with_name("service.py")
    return ", ".join(f'"{word}"' for word in (sys.executable, "-S", "-E", script))


class HostDemo:
    """Runs its steps on the server at `url`, in `directory`; each raises StepFailed."""

    def __init__(self, narration: Narration, url: str, directory: Path) -> None:
        self._narration = narration
        self._url = url
        self._directory = directory
        self._pids: set[int] = set()

    async def run(self) -> None:
        """All steps, until one fails."""
        async with self._everything() as (client, http):
            await self._scale_up(client)
            endpoints = await self._fetch(client, http)
            await self._crash(client, http, endpoints)
            await self._drain(client, http)
            await self._scale_to_zero(client)
            await self._chains()
        async with self._narration.step("The Box has been stopped, and nothing is left behind"):
            left = [pid for pid in self._pids if alive(pid)]
            expect(not left, f"processes {left} are still there")

    @contextlib.asynccontextmanager
    async def _everything(self) -> AsyncIterator[tuple[ScaleClient, aiohttp.ClientSession]]:
        async with contextlib.AsyncExitStack() as stack:
            async with self._narration.step("A Box is up, with two services") as details:
                file = self._directory / "box.toml"
                file.write_text(_CONFIG.format(command=service_command()))
                config = load(file, flags={"nats": {"url": self._url}})
                await stack.enter_async_context(Box.running(config))
                client = await stack.enter_async_context(
                    ScaleClient.connect(settings=config.nats, name="demo")
                )
                http = await stack.enter_async_context(aiohttp.ClientSession())
                details.append(", ".join(config.services))
            tasks = await stack.enter_async_context(task_scope())
            events = await stack.enter_async_context(client.events())
            tasks.create_task(self._narration.follow(events))
            yield client, http

    async def _scale_up(self, client: ScaleClient) -> None:
        async with self._narration.step("box.scale: web 0 → 3 and api 0 → 1, all Ready") as details:
            answer = await client.scale("web", 3)
            expect(answer.accepted and answer.target_replicas == 3, f"answered {answer}")
            await client.scale("api", 1, wait=True, timeout=PATIENCE)
            seen = await client.wait_ready("web", 3, timeout=PATIENCE)
            expect(seen.total == 3, f"{seen.total} instances")
            details.append(f"{seen.total} web, 1 api")

    async def _fetch(self, client: ScaleClient, http: aiohttp.ClientSession) -> list[str]:
        async with self._narration.step("Each endpoint answers HTTP as its instance") as details:
            for info in (await client.observe()).instances:
                page = await get(http, info, "/")
                expect(page["instance"] == info.id, f"{info.endpoint} is {page['instance']}")
                expect(page["service"] == info.service, f"{info.id} serves {page['service']}")
                self._pids.add(page["pid"])
                details.append(str(info.endpoint))
        return details

    async def _crash(
        self, client: ScaleClient, http: aiohttp.ClientSession, endpoints: list[str]
    ) -> None:
        async with self._narration.step(
            "kill -9 of one instance: reported as Failed, and replaced"
        ) as details:
            before = (await client.observe("web")).instances
            victim = before[0]
            os.kill((await get(http, victim, "/"))["pid"], signal.SIGKILL)
            failed = await self._narration.event(victim.id, InstanceState.FAILED)
            expect("signal 9" in failed.message, f"its message is {failed.message!r}")
            seen = await client.wait_ready("web", 3, timeout=PATIENCE)
            new = [info for info in seen.instances if info not in before and info.id != victim.id]
            fresh = {info.id for info in seen.instances} - {info.id for info in before}
            expect(len(fresh) == 1 and bool(new), f"new instances: {fresh}")
            for info in seen.instances:
                page = await get(http, info, "/")
                self._pids.add(page["pid"])
            details.append(f"{victim.id} → {fresh.pop()}")

    async def _drain(self, client: ScaleClient, http: aiohttp.ClientSession) -> None:
        name = f"web 3 → 1 with a {_SLOW:.0f} s request on each: all three succeed"
        async with self._narration.step(name) as details:
            before = (await client.observe("web")).instances
            async with task_scope() as tasks:
                slow = [tasks.create_task(get(http, info, f"/slow?{_SLOW}")) for info in before]
                for info in before:
                    await self._narration.event(info.id, InstanceState.BUSY)
                answer = await client.scale("web", 1)
                leaving = [i for i in answer.instances if i.state is InstanceState.DRAINING]
                expect(len(leaving) == 2, f"{len(leaving)} drain")
                pages = await asyncio.gather(*slow)
            expect({page["instance"] for page in pages} == {i.id for i in before}, "answers")
            for info in leaving:
                await self._narration.event(info.id, InstanceState.STOPPED)
            await client.scale("web", 1, wait=True, timeout=PATIENCE)  # waits, changes nothing
            left = (await client.observe("web")).instances
            expect(len(left) == 1, f"{len(left)} are left")
            details.append(f"{left[0].id} stays")

    async def _scale_to_zero(self, client: ScaleClient) -> None:
        async with self._narration.step("Both services to 0: no instance is left"):
            for service in ("web", "api"):
                await client.scale(service, 0, wait=True, timeout=PATIENCE)
            seen = await client.observe()
            expect(seen.total == 0, f"{seen.total} are left")

    async def _chains(self) -> None:
        async with self._narration.step(
            "Every instance's events form one legal chain to its end"
        ) as details:
            ends = {InstanceState.STOPPED, InstanceState.FAILED}
            for instance_id in {event.instance_id for event in self._narration.events}:
                await self._narration.event(instance_id, *ends)
            states: dict[str, InstanceState] = {}
            for event in self._narration.events:
                state = states.get(event.instance_id, InstanceState.CREATING)
                expect(event.from_state is state, f"{event.instance_id} was {state}")
                note = event.from_state is event.to_state
                expect(note or event.to_state in NEXT[state], f"{state} → {event.to_state}")
                states[event.instance_id] = event.to_state
            expect(set(states.values()) <= ends, f"ends are {states}")
            details.append(f"{len(self._narration.events)} events of {len(states)} instances")
