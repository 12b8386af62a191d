"""The rows that `box-bridge bench` measures."""

from __future__ import annotations

from typing import Final

from bridge.bench import crowd, large, messages, registrations, requests, routes
from bridge.bench.row import Row

ROWS: Final[tuple[Row, ...]] = (
    *messages.ROWS,
    *requests.ROWS,
    *routes.ROWS,
    *registrations.ROWS,
    *large.ROWS,
    *crowd.ROWS,
)
