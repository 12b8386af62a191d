"""What the service manager is told of a Box: ready, stopping, how it is, and that its loop turns.

The protocol is sd_notify(3): datagrams of ``NAME=value`` lines to a socket. They are sent from the
event loop, so that a Box whose loop stalls falls silent, and the watchdog ends it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Final

from bridge.box.daemon import Box
from bridge.settings import NotifyConfig

_log = logging.getLogger(__name__)

_TICK: Final = 1.0  # seconds between looks at how the Box is


class Notifier:
    """Tells of one Box. Without a socket to tell, it does nothing."""

    def __init__(self, config: NotifyConfig, box: Box) -> None:
        self._box = box
        self._address = config.address
        self._watchdog = config.watchdog
        self._told: set[str] = set()
        self._heard = True

    async def run(self) -> None:
        """Tell what changes, and ping twice in each interval of the watchdog, until cancelled."""
        self.tell()
        await self._box.wait_ready()
        while True:
            self.tell(ping=self._watchdog > 0)
            await asyncio.sleep(min(_TICK, self._watchdog / 2 or _TICK))

    def tell(self, *, ping: bool = False) -> None:
        """Tell what is new; what does not get through is new the next time as well."""
        lines = {f"STATUS={self._box.blocker() or 'ready'}"}
        if self._box.ready:
            lines.add("READY=1")
        if self._box.stopping:
            lines.add("STOPPING=1")
        news = [*sorted(lines - self._told), *(["WATCHDOG=1"] if ping else [])]
        if self._address and news and self._send("\n".join(news)):
            self._told = lines

    def _send(self, text: str) -> bool:
        """Whether it got through; the loop waits for nobody who does not listen."""
        address = self._address
        if address.startswith("@"):  # that stands for the zero byte of an abstract socket
            address = "\0" + address[1:]
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
                out.setblocking(False)
                out.sendto(text.encode(), address)
        except OSError as exc:
            if self._heard:
                _log.warning("cannot tell the service manager at %s: %s", self._address, exc)
            self._heard = False
            return False
        self._heard = True
        return True
