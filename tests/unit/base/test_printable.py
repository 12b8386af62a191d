"""No output shows a character of a peer that controls a terminal, a log or a document."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Callable
from xml.etree import ElementTree

import pytest
from msgspec import Struct
from prometheus_client import generate_latest
from rich.table import Table
from rich.text import Text

from bridge import console, svg
from bridge.cli.timeline.history import History
from bridge.cli.timeline.svg import render_svg
from bridge.cli.timeline.text import render_text
from bridge.console import (
    err,
    event_parts,
    notices,
    one_line,
    out,
    plain_table,
    print_json,
    print_line,
)
from bridge.gateway.relay.cloudevents import ce_headers, dead_headers
from bridge.gateway.relay.webhook import judge
from bridge.observe import Metrics, configure_logging
from bridge.printable import indented, printable, printable_json
from bridge.protocol import InstanceEvent, InstancesResponse, InstanceState, now

FORGED = "2026-11-28T00:00:00.000Z ERROR   forged"
HOSTILE = [
    "\x1b]0;owned\x07\x1b[31mX",  # sets the title and the colour
    "\x9b31mX\x85\x90",  # the same with C1 characters
    f"x\n{FORGED}",
    f"x\r\n{FORGED}\r",
    f"x\u2028{FORGED}\u2029\x0b\x0c",
    "\u202egnp.exe\u2066\u200b\ufeff",  # reversed and invisible letters
    "lone \ud800 surrogate",
    "\x00\x08\x7f\uffff",
    "[/red][link=http://x]</title><script>alert(1)</script>&",
    "\U000e0041 tag",
]


def unsafe(text: str, *, lines: bool = False) -> set[str]:
    return {c for c in text if not c.isprintable() and not (lines and c == "\n")}


def failing(text: str) -> InstanceEvent:
    event = InstanceEvent.transition("web-1", "web", InstanceState.BOOTING, InstanceState.FAILED)
    return event.with_message(text)


def logged(text: str, style: str) -> str:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    shown, stderr = io.StringIO(), sys.stderr
    try:
        sys.stderr = shown
        configure_logging("info", style)
        logging.getLogger("test").error("a peer sent %s", text)
        try:
            raise ValueError(text)
        except ValueError:
            logging.getLogger("test").exception("it failed")
    finally:
        sys.stderr = stderr
        root.handlers[:] = before
        root.setLevel(level)
    return shown.getvalue()


def printed(*values: object, to: console._PlainConsole = out) -> str:
    shown, file = io.StringIO(), to._file
    try:
        to._file = shown
        to.print(*values)
    finally:
        to._file = file
    return shown.getvalue()


def event_line(text: str) -> str:
    shown, file = io.StringIO(), out._file
    try:
        out._file = shown
        print_line(event_parts(failing(text)))
    finally:
        out._file = file
    return shown.getvalue()


def table_of(text: str) -> Table:
    table = plain_table("NAME", "WHY")
    table.add_row(Text(text), text)
    return table


def timeline_of(text: str) -> History:
    history = History(since=None, most=10)
    history.add(failing(text))
    return history


def metrics_page(text: str) -> str:
    metrics = Metrics()
    metrics.refuse("registry", text)
    return generate_latest(metrics.registry).decode()


def relay_headers(text: str) -> str:
    event = failing("")
    ce = ce_headers(event, box_seq=1, seq=1, host=text, traceparent=text)
    dead = dead_headers({"X": text}, reason=text, attempts=1, seq=1, durable="relay")
    return " ".join([*ce.values(), *dead.values()])


ONE_LINE: dict[str, Callable[[str], str]] = {
    "event": lambda text: event_line(text).removesuffix("\n"),
    "error": lambda text: printed(Text(text), to=err).removesuffix("\n"),
    "notice": lambda text: " ".join(
        one_line(line).plain
        for line in notices(
            InstancesResponse(total=0, instances=[], hosts={}, notices={"web": text})
        )
    ),
    "relay headers": relay_headers,
    "webhook answer": lambda text: judge(500, printable(text)).reason,
    "timeline": lambda text: " ".join(
        row.plain for row in render_text(timeline_of(text).timeline(now()), width=60)
    ),
}


@pytest.mark.parametrize("show", ONE_LINE.values(), ids=ONE_LINE)
@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_an_output_of_one_line_is_one_line_of_printable_characters(
    show: Callable[[str], str], text: str
) -> None:
    assert unsafe(show(text)) == set()


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_a_table_has_a_line_for_each_row_whatever_its_cells_hold(text: str) -> None:
    shown = printed(table_of(text))
    assert unsafe(shown, lines=True) == set()
    assert shown.count("\n") == 2


@pytest.mark.parametrize("style", ["text", "json"])
@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_no_line_of_the_log_is_of_a_peer(style: str, text: str) -> None:
    lines = logged(text, style).splitlines()
    assert not any(unsafe(line) for line in lines)
    assert not any(line.startswith(FORGED) for line in lines)


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_a_metric_label_is_one_line(text: str) -> None:
    page = metrics_page(text)
    assert unsafe(page, lines=True) == set()
    assert "\\n" not in page


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_a_picture_has_neither_markup_nor_control_characters_of_a_peer(text: str) -> None:
    history = timeline_of(text)
    picture = render_svg(history.timeline(now()), text)
    assert unsafe(picture, lines=True) == set()
    assert "<script" not in picture
    ElementTree.fromstring(picture)  # noqa: S314, it is our own
    ElementTree.fromstring(svg.document(text, [svg.heading(text)], width=9, height=9))  # noqa: S314


class _Text(Struct):
    says: str


@pytest.mark.parametrize("text", [text for text in HOSTILE if "\ud800" not in text], ids=ascii)
def test_json_has_each_character_of_a_peer_as_an_escape(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    print_json(_Text(text))
    shown = capsys.readouterr().out
    assert unsafe(shown, lines=True) == set()
    assert json.loads(shown) == {"says": text}


def test_letters_of_every_script_stay_as_they_are() -> None:
    for text in ("naïve – 終わり 🚀", "a b", ""):
        assert printable(text) == text == printable_json(text)
    assert printable("a\tb\x1bc") == "a b�c"
    assert indented("one\ntwo") == "one\n    two"
