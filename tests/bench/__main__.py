"""All rows, those of other peers and of large fleets too: ``python -m tests.bench``.

Takes what `box-bridge bench` takes; on a nats-server of its own unless -s names another.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from bridge.bench.run import BenchOptions, run_bench
from tests.bench.rows import ROWS


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument(
        "--only", action="append", default=[], help="; ".join(r.name for r in ROWS)
    )
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--effort", type=float, default=1.0)
    options.add_argument("--out", type=Path, default=Path("bench-results"))
    options.add_argument("-s", "--server", help="a NATS URL")
    options.add_argument("--json", action="store_true")
    chosen = options.parse_args()
    selected = BenchOptions(
        only=chosen.only,
        rounds=chosen.rounds,
        effort=chosen.effort,
        directory=chosen.out,
        embedded=chosen.server is None,
    )
    met = asyncio.run(run_bench(ROWS, selected, {"url": chosen.server}, json=chosen.json))
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
