"""What the verbs that give an order to the fleet share."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from bridge.admin_protocol import AdminResponse
from bridge.console import err, out, print_json
from bridge.errors import BridgeError
from bridge.gateway.errors import DrainStuck, DrainTimeout


def print_done(text: str, *, json: bool) -> None:
    """Print that the fleet accepted the order."""
    if json:
        print_json(AdminResponse(done=True))
    else:
        out.print(text)


@contextlib.contextmanager
def order_stands(note: str) -> Iterator[None]:
    """Print `note` if the block fails or is interrupted: the order stays in effect.

    DrainStuck and DrainTimeout pass without it, because their messages contain the same.
    """
    try:
        yield
    except (DrainStuck, DrainTimeout):
        raise
    except (asyncio.CancelledError, BridgeError):
        err.print(note)
        raise
