"""The timeline of instances, as text and as SVG."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.cli.timeline.history import History, Timeline
from bridge.cli.timeline.svg import render_svg
from bridge.cli.timeline.text import format_length, render_text
from bridge.printable import printable
from bridge.protocol import InstanceEvent, InstanceState
from tests.unit.fleets import AT

S = InstanceState
SVG = "{http://www.w3.org/2000/svg}"


def event(
    name: str, from_state: S, to_state: S, seconds: float, message: str = ""
) -> InstanceEvent:
    at = AT + timedelta(seconds=seconds)
    step = InstanceEvent.transition(name, "web", from_state, to_state, at=at)
    return step.with_message(message)


def drawn(
    events: Iterable[InstanceEvent], *, now: float, since: float | None = None, most: int = 50
) -> Timeline:
    begin = None if since is None else AT + timedelta(seconds=since)
    history = History(since=begin, most=most)
    for one in events:
        history.add(one)
    return history.timeline(AT + timedelta(seconds=now))


def parsed(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text)  # noqa: S314, it is our own


def rows(timeline: Timeline, width: int = 10) -> list[str]:
    return [row.plain for row in render_text(timeline, width=width)]


TWO = [
    event("web-a", S.CREATING, S.BOOTING, 0),
    event("web-b", S.CREATING, S.BOOTING, 5),
    event("web-a", S.BOOTING, S.READY, 2),
    event("web-a", S.READY, S.FAILED, 5, "exit code 3"),
    event("web-b", S.BOOTING, S.READY, 10),
]


def test_each_instance_has_a_row_drawn_to_scale() -> None:
    shown = rows(drawn(TWO, now=10))
    assert shown[:2] == ["web-a ░░███✗    ", "web-b      ░░░░█"]
    assert "10.0s" in shown[2]
    assert "web-a  exit code 3" in shown[3]


def test_the_bar_of_a_living_instance_ends_now_and_that_of_an_ended_one_does_not() -> None:
    assert rows(drawn(TWO, now=20))[:2] == ["web-a ░█✗       ", "web-b   ░░░█████"]


def test_a_timeline_of_ended_instances_ends_at_the_last_end() -> None:
    ended = [*TWO[:1], *TWO[2:4]]
    assert rows(drawn(ended, now=1000))[0] == "web-a ░░░░█████✗"


def test_a_window_shows_the_instances_that_were_there_in_their_states() -> None:
    events = [
        event("web-gone", S.CREATING, S.BOOTING, 0),
        event("web-old", S.CREATING, S.BOOTING, 0),
        event("web-gone", S.BOOTING, S.FAILED, 1),
        event("web-old", S.BOOTING, S.READY, 2),
        event("web-late", S.READY, S.BUSY, 105),  # its beginning is no longer stored
    ]
    timeline = drawn(events, now=110, since=100)
    assert rows(timeline)[:2] == ["web-old  ██████████", "web-late █████▓▓▓▓▓"]
    assert timeline.left_out == 0


def test_a_note_is_kept_and_changes_no_state() -> None:
    events = [*TWO[:1], TWO[2], event("web-a", S.READY, S.READY, 5, "unhealthy: 500")]
    timeline = drawn(events, now=10)
    assert rows(timeline)[0] == "web-a ░░████████"
    assert [note.message for note in timeline.instances[0].notes] == ["unhealthy: 500"]


def test_of_too_many_instances_those_that_ended_first_are_left_out_and_counted() -> None:
    crashes = [
        event(f"web-{number}", state, to, number)
        for number in range(30)
        for state, to in ((S.CREATING, S.BOOTING), (S.BOOTING, S.FAILED))
    ]
    timeline = drawn([event("web-alive", S.CREATING, S.BOOTING, 0), *crashes], now=60, most=5)
    assert [life.instance_id for life in timeline.instances] == [
        "web-alive",
        *(f"web-{number}" for number in range(26, 30)),
    ]
    assert timeline.left_out == 26
    assert "26 more that ended earlier" in render_svg(timeline, "web")


def test_events_from_a_clock_that_is_ahead_are_drawn() -> None:
    timeline = drawn(TWO, now=3)
    assert timeline.end == AT + timedelta(seconds=10)


def test_without_events_the_timeline_says_so() -> None:
    assert rows(drawn([], now=0)) == ["no events"]
    parsed(render_svg(drawn([], now=0), "web"))


def test_the_text_of_a_peer_cannot_control_the_terminal() -> None:
    events = [*TWO[:1], event("web-a", S.BOOTING, S.FAILED, 5, "\x1b[2Jgone\r\n\u202eodd")]
    text = "\n".join(rows(drawn(events, now=5)))
    assert "\x1b" not in text
    assert "�[2Jgone  �odd" in text


def test_a_long_message_is_cut() -> None:
    events = [event("web-a", S.BOOTING, S.FAILED, 5, "x" * 400)]
    assert drawn(events, now=5).instances[0].last.message == "x" * 300 + "…"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.04, "0.0s"), (59.94, "59.9s"), (90, "1m30s"), (3660, "1h01m"), (180000, "2d02h")],
)
def test_a_length_has_two_units(seconds: float, said: str) -> None:
    assert format_length(seconds) == said


# ── as SVG ───────────────────────────────────────────────────────────────────────────────


def test_the_svg_has_each_span_to_scale_and_the_reason_of_a_failure() -> None:
    root = parsed(render_svg(drawn(TWO, now=10), "web: instances"))
    bars_of = {
        rect.findtext(f"{SVG}title"): (rect.get("class"), rect.get("width"))
        for rect in root.iter(f"{SVG}rect")
        if rect.find(f"{SVG}title") is not None
    }
    assert bars_of["web-a: booting"] == ("booting", "180")
    assert bars_of["web-a: ready"] == ("ready", "270")
    assert bars_of["web-b: booting"] == ("booting", "450")
    [*_, why] = [path.findtext(f"{SVG}title") for path in root.iter(f"{SVG}path")]
    assert why is not None
    assert why.startswith("web-a: failed 2026-11-21T08:00:05Z exit code 3")
    assert "prefers-color-scheme:dark" in render_svg(drawn(TWO, now=10), "web")
    shown = [text.text for text in root.iter(f"{SVG}text")]
    assert {"web: instances", "web-a", "web-b", *map(str, S)} <= set(shown)


@given(message=st.text(), name=st.text(min_size=1, max_size=70))
def test_the_text_of_a_peer_never_becomes_markup(message: str, name: str) -> None:
    events = [
        event(printable(name), S.CREATING, S.BOOTING, 0),
        event(printable(name), S.BOOTING, S.BOOTING, 1, message),
        event(printable(name), S.BOOTING, S.FAILED, 2, f"</title><script>{message}"),
    ]
    root = parsed(render_svg(drawn(events, now=2), message and "<b>"))
    names = {element.tag.removeprefix(SVG) for element in root.iter()}
    assert names <= {"svg", "title", "style", "rect", "text", "path", "circle"}


def test_the_svg_of_a_busy_week_stays_small() -> None:
    flaps = [event("web-a", S.CREATING, S.READY, 0)]
    for number in range(1, 20_000):
        states = (S.READY, S.BUSY) if number % 2 else (S.BUSY, S.READY)
        flaps.append(event("web-a", *states, number * 30))
    assert len(render_svg(drawn(flaps, now=600_000), "web")) < 250_000


@pytest.mark.parametrize("seconds", [0.3, 5, 45, 600, 7200, 86400, 604800, 10**8])
def test_the_axis_has_two_to_nine_times_for_any_length(seconds: float) -> None:
    events = [event("web-a", S.CREATING, S.BOOTING, 0)]
    root = parsed(render_svg(drawn(events, now=seconds), "web"))
    ticks = [text for text in root.iter(f"{SVG}text") if text.get("text-anchor") == "middle"]
    assert 2 <= len(ticks) <= 9
