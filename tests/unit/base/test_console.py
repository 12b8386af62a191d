"""The output of the command line: text from peers is shown as it is."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from bridge.console import event_text, instances_table, out
from bridge.protocol import InstanceEvent, InstanceInfo, InstancesResponse, InstanceState, now


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


def test_text_of_a_peer_cannot_control_the_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    event = InstanceEvent.transition("web-1", "web", InstanceState.READY, InstanceState.FAILED)
    shown = io.StringIO()
    monkeypatch.setattr(out, "_file", shown)
    out.print(event_text(event.with_message("\x1b]0;owned\x07 \x1b[2J")))
    assert "\x1b" not in shown.getvalue()
    assert "\x07" not in shown.getvalue()
    assert "owned" in shown.getvalue()
