"""Every row of the table: the product's own, and those that only a checkout can measure."""

from __future__ import annotations

from bridge.bench import rows
from bridge.bench.row import Row
from tests.bench import others

ROWS: tuple[Row, ...] = (*rows.ROWS, *others.ROWS)
