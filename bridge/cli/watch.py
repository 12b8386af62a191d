"""Looking again and again, until Ctrl-C: what `--watch` does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

from rich.console import RenderableType
from rich.live import Live
from rich.text import Text

from bridge.console import err, out
from bridge.errors import BusError
from bridge.gateway.errors import ScaleError

T = TypeVar("T")

_REFRESH = 1.0  # seconds


async def watch(
    look: Callable[[], Awaitable[T]],
    picture: Callable[[T], RenderableType],
    show: Callable[[T], None],
    *,
    json: bool,
) -> None:
    """Look every second: on a terminal one `picture` after the other in its place, else each look
    is shown beneath the last. An outage is shown, and looked past.
    """
    with contextlib.ExitStack() as stack:
        live = None
        if out.is_terminal and not json:
            live = stack.enter_context(Live(console=out, screen=True, auto_refresh=False))
        stack.enter_context(contextlib.suppress(asyncio.CancelledError))  # Ctrl-C is how it ends
        while True:
            try:
                seen = await look()
            except (BusError, ScaleError) as exc:
                trouble = Text(str(exc), style="red")
                live.update(trouble, refresh=True) if live else err.print(trouble)
            else:
                live.update(picture(seen), refresh=True) if live else show(seen)
            await asyncio.sleep(_REFRESH)
