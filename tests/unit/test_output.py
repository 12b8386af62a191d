"""What the command line shows: as it is, whoever said it."""

from __future__ import annotations

import io

from rich.console import Console

from bridge.cli.output import instances_table
from bridge.protocol import InstanceInfo, InstancesResponse, InstanceState, now


def test_an_address_in_brackets_is_shown_whole() -> None:
    info = InstanceInfo(
        id="web-1",
        state=InstanceState.READY,
        service="web",
        created_at=now(),
        endpoint="[fd00::1]:20000",
    )
    seen = InstancesResponse(total=1, instances=[info], hosts={"web-1": "[red]box"})
    shown = io.StringIO()
    Console(file=shown, width=200).print(instances_table(seen))
    assert "[fd00::1]:20000" in shown.getvalue()
    assert "[red]box" in shown.getvalue()
