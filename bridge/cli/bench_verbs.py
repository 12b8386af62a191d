"""The verb that measures."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from bridge.cli.flags import Json, Link


def bench(
    *,
    only: Annotated[
        list[str] | None, Parameter(negative="", help="This row alone; may be given again.")
    ] = None,
    rounds: Annotated[
        int, Parameter(validator=Number(gte=1, lte=1000), help="How often each side is measured.")
    ] = 5,
    effort: Annotated[
        float,
        Parameter(
            validator=Number(gt=0, lte=100),
            help="How much is done in a round: below 1 it is quicker, and tells less.",
        ),
    ] = 1.0,
    out: Annotated[
        Path | None, Parameter(help="Write bench.json and bench.svg into this directory.")
    ] = None,
    embedded: Annotated[
        bool, Parameter(negative="", help="Start a nats-server for it, as `up` does.")
    ] = False,
    link: Link | None = None,
    json: Json = False,
) -> int:
    """Measure how fast this is on your NATS, beside plain nats-py doing the same work.

    It uses streams, buckets and subjects under a prefix of its own, which no fleet hears of, and
    deletes them at the end; a Box that runs a little service is started for the rows that ask one.
    Both sides of a row take turns, so that only their ratio counts. The exit code is 1 when a row
    misses its goal. For example:

        box-bridge bench --embedded
        box-bridge bench -s nats://nats.example.com:4222 --only scale-same --only consume
        box-bridge bench --rounds 9 --out results
    """
    from bridge.bench.rows import ROWS
    from bridge.bench.run import BenchOptions, run_bench

    asked = BenchOptions(
        only=only or (), rounds=rounds, effort=effort, directory=out, embedded=embedded
    )
    return asyncio.run(run_bench(ROWS, asked, (link or Link()).flags(), json=json))
