"""How a Box is asked to reload its configuration, and how it answers: a signal and a file.

The Box writes ``loaded.json`` in its data directory when it is ready, and after each reload. The
file has what is in effect, and names the process to signal: SIGUSR1, because SIGHUP ends `up`.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from bridge.box.daemon import Box
from bridge.box.reload import Changes
from bridge.box.runtimes.process_identity import ProcessIdentity, identify, is_alive
from bridge.errors import BoxError, ConfigError
from bridge.private_files import make_private
from bridge.settings import ServiceConfig

_log = logging.getLogger(__name__)

_FILE: Final = "loaded.json"


class Loaded(Struct, frozen=True, kw_only=True):
    """What a Box has loaded: from which `file`, the `services` in effect, and the outcome of its
    reload number `number`. `error` is why that one changed nothing.
    """

    host: str
    process: ProcessIdentity
    file: str
    services: dict[str, ServiceConfig]
    number: int = 0
    changes: Changes | None = None
    error: str = ""


class ReloadTask:
    """Reloads a Box when `request` is called; `run` works until cancelled."""

    def __init__(self, box: Box, file: Path | None) -> None:
        self._box = box
        self._file = "" if file is None else str(file.resolve())
        self._number = 0
        self._requested = asyncio.Event()

    def request(self) -> None:
        """Reload soon; several requests at a time are one."""
        self._requested.set()

    async def run(self) -> None:
        """Write what is in effect, and reload on request."""
        await self._box.wait_ready()
        await self._write(None, "")
        while True:
            await self._requested.wait()
            self._requested.clear()
            self._number += 1
            changes, error = None, ""
            try:
                changes = await self._box.reload()
            except ConfigError as exc:
                error = str(exc)  # the Box has logged it
            await self._write(changes, error)

    async def _write(self, changes: Changes | None, error: str) -> None:
        config, process = self._box.config, identify(os.getpid())
        assert process is not None, "this process lives"
        loaded = Loaded(
            host=config.box.name,
            process=process,
            file=self._file,
            services=config.services,
            number=self._number,
            changes=changes,
            error=error,
        )
        try:
            await asyncio.to_thread(_replace, config.data_dir / _FILE, msgspec.json.encode(loaded))
        except OSError as exc:
            _log.warning("the outcome of the reload cannot be written: %s", exc)


def _replace(file: Path, data: bytes) -> None:
    part = file.with_suffix(".part")
    make_private(part, empty=True)
    part.write_bytes(data)
    part.replace(file)


def read_loaded(data_dir: Path) -> Loaded:
    """What the Box of this data directory has loaded. Raises BoxError if no such Box runs."""
    absent = f"no Box runs with data_dir {data_dir}: give its -c, or its --data-dir"
    try:
        loaded = msgspec.json.decode((data_dir / _FILE).read_bytes(), type=Loaded)
    except FileNotFoundError as exc:
        raise BoxError(absent) from exc
    except (OSError, msgspec.MsgspecError) as exc:
        raise BoxError(f"{data_dir / _FILE} cannot be read: {exc}") from exc
    if not is_alive(loaded.process):
        raise BoxError(absent)
    return loaded


async def wait_reloaded(
    data_dir: Path, signal: Callable[[ProcessIdentity], None], *, poll: float = 0.05
) -> Loaded:
    """Have the Box reload, and return the outcome. Raises BoxError if the Box ends meanwhile."""
    before = read_loaded(data_dir)
    signal(before.process)
    while True:
        loaded = read_loaded(data_dir)
        if loaded.number != before.number:
            return loaded
        await asyncio.sleep(poll)
