"""A Box as a process: it runs until a signal, and its service manager is notified."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any, Final

from msgspec.structs import replace

from bridge.box.daemon import Box
from bridge.cli.reloading import ReloadTask
from bridge.cli.sd_notify import Notifier
from bridge.cli.signals import wait_until_signal
from bridge.config import load_notify
from bridge.console import err
from bridge.errors import BridgeError
from bridge.settings import Config
from bridge.tasks import task_scope

_DRAINING: Final = "Draining; once more to end everything at once."
_RELOADING: Final = (signal.SIGUSR1, signal.SIGHUP)
_LEAVING: Final = "Stopping, the instances keep running; once more to end at once."


async def run_box(
    config: Config,
    *,
    source: Callable[[], Config],
    file: Path | None,
    on_exit: str,
    is_daemon: bool,
    server: Coroutine[Any, Any, object] | None = None,
    on_ready: Callable[[], Awaitable[None]] | None = None,
) -> int:
    """Run a Box; the first signal stops it in order, the second ends it at once.

    `on_exit` applies unless it is configured. SIGUSR1 reloads the configuration from `source`,
    whose `file` is shown by `box-bridge reload`. So does SIGHUP for a daemon; other Boxes have a
    terminal, which was closed then. `server` watches a server that nothing restarts: its error
    stops the Box at once, and is raised. `on_ready` is called when the Box is ready. Returns DONE,
    or INTERRUPTED after a second signal.
    """

    def with_default(config: Config) -> Config:
        return replace(config, box=replace(config.box, on_exit=config.box.on_exit or on_exit))

    box = Box(with_default(config), source=lambda: with_default(source()))
    reloads = ReloadTask(box, file)
    notifier = Notifier(load_notify(), box)

    def stop() -> bool:
        box.stop()
        notifier.notify()
        err.print(_DRAINING if box.drains else _LEAVING)
        # A Box that leaves its instances has nothing to stop in order before it is ready.
        return box.ready or box.drains

    async def stop_without(server: Coroutine[Any, Any, object]) -> None:
        try:
            await server
        except BridgeError:
            box.stop()  # so that the end of its tasks ends the instances, too
            raise

    async def announce(ready: Callable[[], Awaitable[None]]) -> None:
        await box.wait_ready()
        await ready()

    handlers = dict.fromkeys(_RELOADING if is_daemon else _RELOADING[:1], reloads.request)
    async with task_scope() as tasks:
        beside = [tasks.create_task(reloads.run(), name="reloads")]
        if on_ready is not None:
            beside.append(tasks.create_task(announce(on_ready), name="announcement"))
        tasks.create_task(notifier.run(), name="notifier")
        if server is not None:
            tasks.create_task(stop_without(server), name="nats-server")
        try:
            return await wait_until_signal(
                tasks.create_task(box.run(), name="box"), stop, others=handlers
            )
        finally:
            for task in beside:
                task.cancel()
