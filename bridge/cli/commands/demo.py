"""`demo`: the main job on real input, step by step, each one verified."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from bridge.cli.exit_codes import DONE, FAILED, INTERRUPTED
from bridge.cli.flags import Json
from bridge.console import out, print_json
from bridge.protocol import InstanceEvent, now


async def demo(
    *,
    keep: Annotated[
        bool, Parameter(negative="", help="Keep the directory with logs and store afterwards.")
    ] = False,
    json: Json = False,
) -> int:
    """Run a demonstration that verifies each step, in 30 seconds.

    It starts a NATS server and Boxes on this machine, in a temporary directory.
    An instance crashes, one drains, a host dies and a host is drained. The exit
    code is 0 only if every step is as expected. For example:

        box-bridge demo
        box-bridge demo --keep --json
    """
    import asyncio
    import shutil
    import signal
    import tempfile

    from bridge.demo.narration import Narration
    from bridge.demo.run import run_demo
    from bridge.observe import configure_logging

    configure_logging("error")
    # Its instances would outlive a killed process: these signals end it in order, as Ctrl-C does.
    if (task := asyncio.current_task()) is not None:
        for number in (signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    directory = Path(tempfile.mkdtemp(prefix="box-bridge-demo-"))
    try:
        report = await run_demo(Narration(quiet=json), directory, _draw)
    except asyncio.CancelledError:
        return INTERRUPTED
    finally:
        if keep:
            out.print(f"Logs and store: {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)
    if json:
        print_json(report)
    return DONE if report.ok else FAILED


def _draw(events: Sequence[InstanceEvent]) -> None:
    from bridge.cli.timeline.history import History
    from bridge.cli.timeline.text import render_text

    history = History(since=None, most=100)
    for event in events:
        history.add(event)
    for row in render_text(history.timeline(now()), width=max(40, min(80, out.width - 20))):
        out.print(row, no_wrap=True)
