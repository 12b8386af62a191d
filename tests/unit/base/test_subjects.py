"""Names become subject tokens, and nothing else may."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.errors import ConfigError, NameRefused
from bridge.subjects import Subjects, is_name, parse_slot_key, slot_key

BAD = ["", ".", "a.b", "*", ">", "a b", "A", "-a", "a-", "a" * 64, "é", "a\n", "a\0", "web.>", "_"]


@pytest.mark.parametrize("name", BAD)
def test_text_that_is_not_a_token_builds_no_subject(name: str) -> None:
    subjects = Subjects()
    for build in (
        subjects.events,
        subjects.stats,
        lambda bad: subjects.register("web", bad),
        lambda bad: subjects.register(bad, "i-1"),
        lambda bad: subjects.deregister(bad, "i-1"),
        lambda bad: slot_key(bad, 1),
    ):
        with pytest.raises(NameRefused):
            build(name)


@given(st.from_regex(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True))
def test_every_name_of_the_contract_is_accepted(name: str) -> None:
    assert is_name(name)
    assert Subjects().events(name) == f"box.events.{name}"
    assert parse_slot_key(slot_key(name, 7)) == (name, 7)


def test_everything_starts_with_the_prefix() -> None:
    subjects = Subjects(prefix="fleet-2")
    assert subjects.scale == "fleet-2.scale"
    assert subjects.queue == "fleet-2"
    assert subjects.events_stream == "FLEET-2_EVENTS"
    assert subjects.slots_bucket == "fleet-2_slots"
    with pytest.raises(ConfigError):
        Subjects(prefix="a.b")


@pytest.mark.parametrize(
    "key", ["web", "web.", "web.x", ".1", "web.-1", "a.b.1", "web.١", "web.007"]
)
def test_a_key_that_is_not_a_slots_is_refused(key: str) -> None:
    with pytest.raises(NameRefused):
        parse_slot_key(key)
