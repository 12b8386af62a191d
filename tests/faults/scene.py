"""A Box with instances, at work while faults happen around it, and what must hold afterwards."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from bridge.box.daemon import Box
from bridge.box.journal.entry import JournalEntry
from bridge.box.journal.store import read_snapshot
from bridge.bus.core.connection import Connection
from bridge.bus.embedded_server import EmbeddedServer
from bridge.errors import BusError
from bridge.protocol import InstanceInfo, InstanceState, ScaleResponse
from tests.boxes import fetch, serving
from tests.faults.history import Told, check_history, read_history
from tests.support import ask, box_config, connect, eventually

S = InstanceState
BACK = 30.0  # seconds within which a Box serves again once a fault has ended


class Scene:
    """See the module. `gateway` has its own connection, straight to the server."""

    def __init__(self, server: EmbeddedServer, gateway: Connection, box: Box) -> None:
        self.server = server
        self.gateway = gateway
        self.box = box
        self._cuts = 0.0

    @classmethod
    @asynccontextmanager
    async def of(
        cls, server: EmbeddedServer, tmp_path: Path, url: str = "", *services: str, **settings: Any
    ) -> AsyncIterator[Scene]:
        """A Box that reaches the server at `url`, by way of a proxy, say."""
        async with connect(server.url) as gateway:
            config = box_config(tmp_path, url or server.url, *services, **settings)
            async with Box.running(config) as box:
                yield cls(server, gateway, box)

    async def scale(self, replicas: int, request_id: str = "") -> list[InstanceInfo]:
        """The instances, once exactly so many serve."""
        answer = await ask(self.gateway, "web", replicas, request_id=request_id)
        assert answer.accepted, answer.error
        return await serving(self.gateway, "web", replicas)

    # ── the fault ────────────────────────────────────────────────────────────────────────

    def counted(self, kind: str) -> float:
        """How often something happened to the Box's connection."""
        registry = self.box.metrics.registry
        return registry.get_sample_value("box_bridge_bus_events_total", {"kind": kind}) or 0.0

    async def cut_off(self) -> None:
        """Return when the Box has noticed, for the first time since the last call, that it is
        cut off: that is, when the fault has fired.
        """
        before, kind = self._cuts, "disconnected"
        await eventually(lambda: self.counted(kind) > before, within=BACK, what="it is cut off")
        self._cuts = self.counted(kind)

    # ── what this host itself has ────────────────────────────────────────────────────────

    @property
    def entries(self) -> dict[str, JournalEntry]:
        """The journal's instances that have not ended, by id."""
        found = read_snapshot(self.box.config.data_dir / "journal.db").entries
        return {
            entry.life.info.id: entry
            for entry in found
            if entry.life.info.state not in (S.STOPPED, S.FAILED)
        }

    async def replaced(self, victim: InstanceInfo) -> InstanceInfo:
        """Kill an instance; returns the one in its slot, by the journal, once that serves."""
        before = self.entries
        os.kill((await fetch(victim))["pid"], signal.SIGKILL)

        def successor() -> InstanceInfo | None:
            fresh = [entry.life.info for name, entry in self.entries.items() if name not in before]
            return next((info for info in fresh if info.state is S.READY), None)

        return await eventually(successor, what="the killed instance is replaced")

    # ── what must hold ───────────────────────────────────────────────────────────────────

    async def serves(
        self, replicas: int, request_id: str, *, patience: float = 1.0
    ) -> ScaleResponse:
        """The answer to a scale request, once it is accepted and all its instances serve."""
        answer = await self.answers(replicas, request_id, patience=patience)
        await serving(self.gateway, "web", replicas)
        return answer

    async def answers(
        self, replicas: int, request_id: str, *, patience: float = 1.0
    ) -> ScaleResponse:
        """The answer to a scale request, once it is accepted; a client that was cut off itself, or
        not answered for `patience` seconds, asks again with the same id.
        """

        async def accepted() -> ScaleResponse | None:
            try:
                answer = await ask(
                    self.gateway, "web", replicas, request_id=request_id, timeout=patience
                )
            except BusError:
                return None
            return answer if answer.accepted else None

        return await eventually(accepted, within=BACK, what="the Box serves again")

    async def chains(self, lost: Iterable[Told] = ()) -> dict[str, list[Told]]:
        """The checked history of every instance, once everything that was published is stored."""
        sample, name = self.box.metrics.registry.get_sample_value, "box_bridge_backlog_events"
        await eventually(lambda: sample(name) == 0.0, what="all is told")
        return check_history(await read_history(self.gateway), lost)


async def pids(infos: Iterable[InstanceInfo]) -> dict[str, int]:
    """The process of each instance, as it says itself."""
    infos = list(infos)
    answers = await asyncio.gather(*map(fetch, infos))
    return {info.id: answer["pid"] for info, answer in zip(infos, answers, strict=True)}
