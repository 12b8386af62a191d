"""`up` and `box`: run a Box until a signal; its instances drain then, or stay.

What `up` started ends with it, for it is how one tries things out. What `box` started stays unless
it is told otherwise: an upgrade of the Box restarts no instance.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from msgspec.structs import replace

from bridge.box.daemon import Box
from bridge.bus.embedded_server import EmbeddedServer
from bridge.cli.connect import configuration, require_services
from bridge.cli.exit_codes import DONE, INTERRUPTED
from bridge.cli.sd_notify import Notifier
from bridge.config import load_log, load_notify
from bridge.console import err
from bridge.observe import configure_logging
from bridge.settings import Config, NatsConfig
from bridge.tasks import task_scope

_DRAINING: Final = "Draining; once more to end everything at once."
_LEAVING: Final = "Stopping, the instances keep running; once more to end at once."


async def run_up(
    file: Path | None,
    box: Mapping[str, Any],
    nats: Mapping[str, Any],
    *,
    port: int,
    level: str | None,
    json: bool,
) -> int:
    """A NATS server and a Box, until a signal."""
    _configure_logging(level, json)
    config = _settled(require_services(configuration(file, box, nats)), on_exit="drain")
    async with EmbeddedServer(config.data_dir / "nats", port=port) as server:
        # Credentials, TLS and a domain are for other servers; this one knows none of them.
        told = config.nats
        own = NatsConfig(url=server.url, prefix=told.prefix, reply_prefixes=told.reply_prefixes)
        config = replace(config, nats=own)
        if not json:
            err.print(f"NATS server: {server.url}   store and logs: {config.data_dir}")
            first = min(config.services, default="web --image …")
            err.print(f"Try: box-bridge scale {first} 2 --wait -s {server.url}\n")
        # Without its server this Box can tell nobody anything, and would wait for it for ever.
        async with task_scope() as tasks:
            tasks.create_task(server.watch(), name="nats-server")
            return await _until_signal(config)


async def run_box(
    file: Path | None,
    box: Mapping[str, Any],
    nats: Mapping[str, Any],
    *,
    level: str | None,
    json: bool,
) -> int:
    """A Box on an existing NATS, until a signal."""
    _configure_logging(level, json)
    config = require_services(configuration(file, box, nats))
    return await _until_signal(_settled(config, on_exit="leave"))


def _settled(config: Config, *, on_exit: str) -> Config:
    """`config`, with `on_exit` where nobody said what becomes of the instances."""
    return replace(config, box=replace(config.box, on_exit=config.box.on_exit or on_exit))


async def _until_signal(config: Config) -> int:
    """Run a Box; the first signal stops it in order, the second ends it at once."""
    box = Box(config)
    notifier = Notifier(load_notify(), box)
    loop = asyncio.get_running_loop()
    async with task_scope() as tasks:
        tasks.create_task(notifier.run(), name="notifier")
        work = tasks.create_task(box.run(), name="box")
        signals = 0

        def on_signal() -> None:
            nonlocal signals
            signals += 1
            if signals == 1:
                box.stop()
                notifier.tell()
                err.print(_DRAINING if box.drains else _LEAVING)
            # What leaves its instances has nothing to do in order before it is ready.
            if signals > 1 or not (box.ready or box.drains):
                work.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, on_signal)
        try:
            await asyncio.wait([work])
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
        return INTERRUPTED if signals > 1 and work.cancelled() else DONE


def _configure_logging(level: str | None, json: bool) -> None:
    log = load_log(level, "json" if json else None)
    configure_logging(log.level, log.style)
