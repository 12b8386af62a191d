"""What `--watch` does: fetch and show again, every second, until Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

from rich.console import RenderableType
from rich.live import Live
from rich.text import Text

from bridge.cli.exit_codes import DONE
from bridge.console import err, out
from bridge.errors import BusError
from bridge.gateway.errors import ScaleError

T = TypeVar("T")

_REFRESH = 1.0  # seconds


async def show(
    fetch: Callable[[], Awaitable[T]],
    render: Callable[[T], RenderableType],
    print_once: Callable[[T], None],
    *,
    watch: bool,
    json: bool,
) -> int:
    """Fetch and print once, or with `watch` every second until Ctrl-C; returns the exit code.

    On a terminal, `watch` replaces the rendered value in place; elsewhere it prints each value. An
    error of the bus or of a Box is shown, and the next second it fetches again.
    """
    if not watch:
        print_once(await fetch())
        return DONE
    with contextlib.suppress(asyncio.CancelledError):  # Ctrl-C
        await _refresh(fetch, render, print_once, in_place=out.is_terminal and not json)
    return DONE


async def _refresh(
    fetch: Callable[[], Awaitable[T]],
    render: Callable[[T], RenderableType],
    print_once: Callable[[T], None],
    *,
    in_place: bool,
) -> None:
    with contextlib.ExitStack() as stack:
        live = None
        if in_place:
            live = stack.enter_context(Live(console=out, screen=True, auto_refresh=False))
        while True:
            try:
                value = await fetch()
            except (BusError, ScaleError) as exc:
                error = Text(str(exc), style="red")
                live.update(error, refresh=True) if live else err.print(error)
            else:
                live.update(render(value), refresh=True) if live else print_once(value)
            await asyncio.sleep(_REFRESH)
