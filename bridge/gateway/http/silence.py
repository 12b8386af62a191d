"""Connections that send no request: each is closed after a while, and costs little until then."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


def limit_silence(seconds: float) -> type[H11Protocol]:
    """uvicorn's protocol, with so many seconds for the first request of a connection."""

    class PatientProtocol(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._patience = self.loop.call_later(seconds, self._close_silent)

        def connection_lost(self, exc: Exception | None) -> None:
            self._patience.cancel()
            super().connection_lost(exc)

        def _close_silent(self) -> None:
            transport: asyncio.BaseTransport = self.transport
            if not transport.is_closing() and getattr(self, "cycle", None) is None:
                transport.close()  # no request was complete

    return PatientProtocol
