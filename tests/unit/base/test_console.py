"""The output of the command line: text from peers is shown as it is."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.text import Text

from bridge import console
from bridge.console import event_parts, instances_table, out, plain_table, print_line
from bridge.protocol import InstanceEvent, InstanceInfo, InstancesResponse, InstanceState, now
from tests.support import calls


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
    print_line(event_parts(event.with_message("\x1b]0;owned\x07 \x1b[2J")))
    assert "\x1b" not in shown.getvalue()
    assert "\x07" not in shown.getvalue()
    assert "owned" in shown.getvalue()


@pytest.mark.parametrize("colours", [False, True])
def test_an_event_is_printed_as_rich_would_print_it(
    monkeypatch: pytest.MonkeyPatch, *, colours: bool
) -> None:
    event = InstanceEvent.transition("web-1", "web", InstanceState.READY, InstanceState.FAILED)
    shown, wanted = io.StringIO(), io.StringIO()
    terminal = Console(
        file=shown, width=200, force_terminal=colours, color_system="256" if colours else None
    )
    monkeypatch.setattr(console, "out", terminal)
    parts = event_parts(event.with_message("it ended: [b]exit code 3[/b]"))
    print_line(parts)
    monkeypatch.setattr(terminal, "_file", wanted)
    terminal.print(Text.assemble(*parts), highlight=False)
    assert Text.from_ansi(shown.getvalue()).markup == Text.from_ansi(wanted.getvalue()).markup
    assert shown.getvalue().endswith("\n")
    assert ("\x1b[" in shown.getvalue()) is colours


def test_a_line_has_no_colours_where_the_reader_wants_none(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    terminal = Console(file=shown, force_terminal=True, color_system="256", no_color=True)
    monkeypatch.setattr(console, "out", terminal)
    print_line([("failed", "red")])
    assert shown.getvalue() == "failed\n"


def test_a_line_costs_few_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    event = InstanceEvent.transition("web-1", "web", InstanceState.READY, InstanceState.FAILED)
    terminal = Console(file=io.StringIO(), force_terminal=True, color_system="256")
    monkeypatch.setattr(console, "out", terminal)
    print_line(event_parts(event))  # rich keeps what it has rendered of a style
    assert calls(lambda: print_line(event_parts(event))) <= 85, "30,000 events take a second"


def _rendered(rows: int, *, colours: bool) -> str:
    table = plain_table("NAME", "STATE")
    table.add_column("COUNT", justify="right", no_wrap=True)
    for number in range(rows):
        state = Text("live", style="green")
        if number % 2:
            state.append(" 終わり", style="red")
        table.add_row(Text(f"[b]n-{number}[/b]"), state, str(number**2))
    shown = io.StringIO()
    Console(file=shown, width=200, force_terminal=colours, soft_wrap=True).print(table)
    return shown.getvalue()


def test_a_large_table_looks_like_a_small_one(monkeypatch: pytest.MonkeyPatch) -> None:
    small = _rendered(40, colours=False)
    coloured = _rendered(40, colours=True)
    assert "\x1b[31m" in coloured
    monkeypatch.setattr(console, "_MEASURED", 3)
    assert _rendered(40, colours=False) == small
    assert Text.from_ansi(_rendered(40, colours=True)).plain == Text.from_ansi(coloured).plain
    assert "\x1b[31m" in _rendered(40, colours=True)


def test_a_screen_renders_no_more_rows_of_a_large_table_than_it_has() -> None:
    table = plain_table("NAME")
    for number in range(2000):
        table.add_row(Text(f"n-{number}"))
    terminal = Console(file=io.StringIO(), width=80, height=10, force_terminal=True)
    lines = list(table.__rich_console__(terminal, terminal.options.update(height=10)))
    assert len(lines) < 50
