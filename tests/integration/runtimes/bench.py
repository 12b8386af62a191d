"""A runtime without a Box, and programs that any runtime can run."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bridge.box.runtimes.base import Handle, Runtime, Spec
from bridge.box.runtimes.oci.engines import find_engine
from bridge.box.runtimes.oci.runtime import OciRuntime
from bridge.box.runtimes.oci.subprocess_calls import EngineCalls
from bridge.box.runtimes.process.runtime import ProcessRuntime
from bridge.box.runtimes.process_identity import ProcessIdentity
from bridge.tasks import task_scope
from tests.podman import IMAGE, SERVE, Podman
from tests.support import FIRST_PORT, eventually

ENVIRON = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
PATIENCE = 3.0  # seconds for the engine in tests; podman takes a tenth, but machines are busy

POLITE = [
    "sh",
    "-c",
    'exec 2>&-; trap "echo ended in order; exit 0" TERM; echo up; while :; do sleep 0.05; done',
]
STUBBORN = ["sh", "-c", 'trap "" TERM; echo up; while :; do sleep 0.05; done']
FAILING = ["sh", "-c", "echo the first line; echo the last words >&2; exit 3"]


@dataclass
class Bench:
    """Makes runtimes of one kind, all for the same Box, and specs for them.

    `podman` runs the containers of the ``oci`` kind; `engine` is the program to call.
    """

    directory: Path
    podman: Podman | None
    engine: Path | None = None
    recorded: list[tuple[ProcessIdentity, int]] = field(default_factory=list)

    @property
    def is_oci(self) -> bool:
        return self.podman is not None

    @property
    def serve(self) -> list[str]:
        return SERVE if self.is_oci else [sys.executable, "-m", "http.server", "{port}"]

    @contextlib.asynccontextmanager
    async def life(self) -> AsyncIterator[Runtime]:
        """A runtime for one run of its Box: its instances live on when the block ends."""
        runtime = await asyncio.to_thread(self._runtime)
        async with task_scope() as tasks:
            tasks.create_task(runtime.run())
            yield runtime

    def spec(self, command: list[str], instance_id: str = "web-a", **changes: Any) -> Spec:
        port_map: list[str] = changes.pop("port_map", [])
        settings: dict[str, Any] = {
            "env": {},
            "vcpus": None,
            "memory_mib": None,
            "image": IMAGE if self.is_oci else None,
            "port": int(port_map[0].partition(":")[0]) if port_map else 0,
            "port_map": port_map,
            **changes,
        }
        return Spec(
            instance_id=instance_id,
            service="web",
            slot=3,
            command=command,
            cwd=str(self.directory),
            directory=self.directory / "instances" / instance_id,
            **settings,
        )

    async def started(self, runtime: Runtime, spec: Spec) -> Handle:
        """An instance that was started; for one that serves, see `serving`."""
        handle = await runtime.create(spec, print)
        await runtime.start(handle, self.record)
        return handle

    async def serving(self, runtime: Runtime, **changes: Any) -> Handle:
        """An instance that listens on its port."""
        handle = await self.started(runtime, self.spec(self.serve, **changes))

        async def listening() -> bool:
            return await runtime.listens(handle)

        await eventually(listening, what="it listens")
        return handle

    async def record(self, identity: ProcessIdentity, port: int) -> None:
        """In place of a journal."""
        self.recorded.append((identity, port))

    def _runtime(self) -> Runtime:
        root = self.directory / "instances"
        if self.podman is None:
            return ProcessRuntime(root, range(FIRST_PORT, FIRST_PORT + 100), ENVIRON)
        engine = find_engine(str(self.engine), environ=ENVIRON)
        return OciRuntime(
            EngineCalls(engine, ENVIRON, PATIENCE),
            "the-host-id",
            secrets=self.directory / "secrets",
            environ={"NATS_URL": "nats://example"},
            address="127.0.0.1",
            sample=0.1,
        )


async def logged(runtime: Runtime, handle: Handle, line: str) -> None:
    """Return when `line` is the last line in the instance's log."""

    async def last() -> bool:
        return await runtime.last_line(handle) == line

    await eventually(last, what=f"{line!r} is the last line")
