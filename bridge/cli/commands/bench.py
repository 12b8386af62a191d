"""`bench`: measure, print the table, and write JSON and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from bridge.cli.exit_codes import DONE, FAILED
from bridge.cli.flags import Json, Link


async def bench(
    *,
    only: Annotated[
        list[str] | None, Parameter(negative="", help="Only this row; may be given again.")
    ] = None,
    rounds: Annotated[
        int, Parameter(validator=Number(gte=1, lte=1000), help="Measurements of each side.")
    ] = 5,
    effort: Annotated[
        float,
        Parameter(
            validator=Number(gt=0, lte=100),
            help="Work of a round; below 1 a run is shorter and less accurate.",
        ),
    ] = 1.0,
    out: Annotated[
        Path | None, Parameter(help="Write bench.json and bench.svg into this directory.")
    ] = None,
    embedded: Annotated[
        bool, Parameter(negative="", help="Start a nats-server for the run, as `up` does.")
    ] = False,
    link: Link | None = None,
    json: Json = False,
) -> int:
    """Measure the speed on your NATS, beside plain nats-py.

    A row does the same work both ways, in turn; only the ratio of the two counts.
    The run uses streams, buckets and subjects under a prefix of its own, and
    deletes them at the end. Some rows start a Box that runs a small service. The
    exit code is 1 if a row misses its goal. For example:

        box-bridge bench --embedded
        box-bridge bench -s nats://nats.example.com:4222 --only consume
        box-bridge bench --rounds 9 --out results
    """
    from bridge.bench.rows import ROWS
    from bridge.bench.run import BenchOptions, run_bench

    options = BenchOptions(
        only=only or (), rounds=rounds, effort=effort, directory=out, embedded=embedded
    )
    met = await run_bench(ROWS, options, (link or Link()).flags(), json=json)
    return DONE if met else FAILED
