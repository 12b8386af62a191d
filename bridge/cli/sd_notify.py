"""Notifications of a Box to the service manager: ready, stopping, status and watchdog.

The protocol is sd_notify(3): datagrams of ``NAME=value`` lines to a socket. They are sent from the
event loop, so that a Box whose loop stalls sends nothing, and the watchdog ends it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Final

from bridge.box.daemon import Box
from bridge.printable import printable
from bridge.settings import NotifyConfig

_log = logging.getLogger(__name__)

_TICK: Final = 1.0  # seconds between looks at the state of the Box


class Notifier:
    """Notifies the service manager of one Box. Without a socket it does nothing."""

    def __init__(self, config: NotifyConfig, box: Box) -> None:
        self._box = box
        self._address = config.address
        self._watchdog = config.watchdog
        self._delivered: set[str] = set()
        self._reachable = True

    async def run(self) -> None:
        """Send each change, and ping twice in each interval of the watchdog, until cancelled."""
        self.notify()
        await self._box.wait_ready()
        while True:
            self.notify(ping=self._watchdog > 0)
            await asyncio.sleep(min(_TICK, self._watchdog / 2 or _TICK))

    def notify(self, *, ping: bool = False) -> None:
        """Send the lines that changed; lines that cannot be delivered are sent again next time."""
        lines = {f"STATUS={printable(self._box.blocker() or 'ready')}"}
        if self._box.ready:
            lines.add("READY=1")
        if self._box.stopping:
            lines.add("STOPPING=1")
        changes = [*sorted(lines - self._delivered), *(["WATCHDOG=1"] if ping else [])]
        if self._address and changes and self._send("\n".join(changes)):
            self._delivered = lines

    def _send(self, text: str) -> bool:
        """Send without blocking; returns whether the socket took it."""
        address = self._address
        if address.startswith("@"):  # stands for the zero byte of an abstract socket
            address = "\0" + address[1:]
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
                out.setblocking(False)
                out.sendto(text.encode(), address)
        except OSError as exc:
            if self._reachable:
                _log.warning("cannot notify the service manager at %s: %s", self._address, exc)
            self._reachable = False
            return False
        self._reachable = True
        return True
