"""`events`: what happens, as it happens."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

from bridge.bus.follow import Reset
from bridge.cli import DONE
from bridge.cli.connect import connected
from bridge.cli.output import err, event_text, out, print_json
from bridge.gateway.events import EventStream, Gap


async def run_events(service: str | None, flags: Mapping[str, Any], *, json: bool) -> int:
    """Print events until interrupted."""
    async with connected(flags, "events") as connection:
        with contextlib.suppress(asyncio.CancelledError):  # Ctrl-C is how it ends
            async with EventStream.open(connection, service) as events:
                if not json and out.is_terminal:
                    err.print("Waiting for events; Ctrl-C ends.", style="bright_black")
                async for event in events:
                    if isinstance(event, Gap):
                        err.print(f"too slow: missed stream sequences {event.first}–{event.last}")
                    elif isinstance(event, Reset):
                        err.print(f"stream {event.reason}: goes on with sequence {event.next}")
                    elif json:
                        print_json(event)
                    else:
                        out.print(event_text(event))
    return DONE
