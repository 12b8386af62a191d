"""A Box that kills itself with SIGKILL the first time that it comes to a named point.

python -m tests.faults.failing_box CONFIG POINT
"""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from bridge.box.daemon import Box
from bridge.box.runner.publication import InstancePublication
from bridge.box.runtimes.process.runtime import ProcessRuntime
from bridge.bus.jetstream.kv_view import KeyValueView
from bridge.bus.jetstream.publisher import Publisher
from bridge.config import load

POINTS: Final[dict[str, tuple[type, str]]] = {
    "claimed": (KeyValueView, "create"),
    "intent-written": (InstancePublication, "write_intent"),
    "spawned": (ProcessRuntime, "_spawn"),
    "recorded": (InstancePublication, "record_process"),
    "published": (Publisher, "publish"),
    "ended": (ProcessRuntime, "stop"),
}
"""The Box dies right after this method has done its work."""


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def deadly(work: Callable[..., Any]) -> Callable[..., Any]:
    """`work`, after which the process dies."""
    if inspect.iscoroutinefunction(work):

        async def wait_and_die(*args: Any, **named: Any) -> None:
            await work(*args, **named)
            die()

        return wait_and_die

    def work_and_die(*args: Any, **named: Any) -> None:
        work(*args, **named)
        die()

    return work_and_die


def main(config: str, point: str) -> None:
    owner, name = POINTS[point]
    setattr(owner, name, deadly(getattr(owner, name)))
    asyncio.run(Box(load(Path(config), environ=dict(os.environ))).run())


if __name__ == "__main__":
    main(*sys.argv[1:])
