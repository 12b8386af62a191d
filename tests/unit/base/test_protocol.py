"""The payloads are serde's: what it takes, what it refuses, and the bytes it writes."""

from __future__ import annotations

import json
import struct
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

import bridge
from bridge import protocol
from bridge.errors import ProtocolError
from bridge.protocol import (
    HostStats,
    InstanceDeregistration,
    InstanceEvent,
    InstanceHealth,
    InstanceInfo,
    InstanceRegistration,
    InstanceState,
    ScaleConfig,
    ScaleRequest,
    ScaleResponse,
    decode,
    encode,
    format_time,
    parse_time,
)
from tests.paths import TESTS

STEP = InstanceState.BOOTING, InstanceState.READY

WIRE = TESTS / "wire"
NINE = (
    "InstanceDeregistration",
    "InstanceEvent",
    "InstanceHealth",
    "InstanceInfo",
    "InstanceRegistration",
    "InstanceState",
    "ScaleConfig",
    "ScaleRequest",
    "ScaleResponse",
)


def lines(name: str) -> list[Any]:
    cases = [json.loads(line) for line in (WIRE / name).read_text().splitlines()]
    return [
        pytest.param(case, id=f"{number}-{case['type']}") for number, case in enumerate(cases, 1)
    ]


@pytest.mark.parametrize("case", lines("valid.jsonl"))
def test_input_that_serde_accepts_has_the_same_meaning_here(case: dict[str, str]) -> None:
    cls: Any = getattr(bridge, case["type"])
    assert decode(cls, case["in"].encode()) == decode(cls, case["out"].encode())


@pytest.mark.parametrize("case", lines("valid.jsonl"))
def test_encode_writes_the_bytes_that_serde_writes(case: dict[str, str]) -> None:
    cls: Any = getattr(bridge, case["type"])
    value = decode(cls, case["in"].encode())
    written = msgspec.json.encode(value) if cls is InstanceState else encode(value)
    # The one difference: Python's times have no nanoseconds, and round to the next microsecond.
    assert written.decode() == case["out"].replace("08:00:00.999999999Z", "08:00:01Z")


@pytest.mark.parametrize("case", lines("invalid.jsonl"))
def test_input_that_serde_refuses_is_refused(case: dict[str, str]) -> None:
    cls: Any = getattr(bridge, case["type"])
    with pytest.raises(ProtocolError) as refused:
        decode(cls, case["in"].encode())
    assert case["type"] in str(refused.value)


@pytest.mark.parametrize("case", lines("loose.jsonl"))
def test_what_serde_takes_beyond_plain_json_and_rfc_3339_is_taken(case: dict[str, str]) -> None:
    cls: Any = getattr(bridge, case["type"])
    value, same = decode(cls, case["in"].encode()), decode(cls, case["out"].encode())
    if cls is not InstanceEvent:
        assert encode(value) == encode(same)
        return
    # Nanoseconds are rounded, or cut where msgspec cannot read the time.
    assert replace(value, timestamp=same.timestamp) == same
    assert abs(value.timestamp - same.timestamp) <= timedelta(microseconds=1)


@pytest.mark.parametrize("case", lines("loose-invalid.jsonl"))
def test_what_serde_refuses_beyond_plain_json_is_refused(case: dict[str, str]) -> None:
    with pytest.raises(ProtocolError):
        decode(getattr(bridge, case["type"]), case["in"].encode())


def test_a_usual_message_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def rewrite(*_: object) -> bytes:
        raise AssertionError("it was read again")

    monkeypatch.setattr(protocol.codec, "rewrite", rewrite)
    at = datetime(2026, 11, 21, 9, 28, 47, tzinfo=UTC)
    event = InstanceEvent.transition("web-1", "web", *STEP, at=at).with_message("why")
    registration = InstanceRegistration(
        instance_id="web-1", service="web", endpoint="h:1", metadata={"a": "b"}, started_at=at
    )
    withdrawal = InstanceDeregistration(instance_id="web-1", service="web", reason="why")
    for value in (event, registration, withdrawal, InstanceHealth(cpu_percent=1.5)):
        assert decode(type(value), encode(value)) == value


def test_a_large_message_is_not_read_again() -> None:
    with pytest.raises(ProtocolError, match="nested too deeply"):
        decode(InstanceHealth, b'{"x":' + b"[" * 500_000 + b"]" * 500_000 + b"}")


@pytest.mark.parametrize("name", NINE)
def test_the_nine_types_are_importable_from_bridge(name: str) -> None:
    assert getattr(bridge, name) is getattr(protocol, name)
    assert name in bridge.__all__


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"service":"web"}', "replicas"),
        (b'{"service":"web","replicas":-1}', "replicas"),
        (b'{"service":"web","replicas":1,"config":{"vcpus":256}}', "config.vcpus"),
        (b'{"service":"web","replicas":1,"config":{"port_map":["a",1]}}', "config.port_map[1]"),
        (b'{"service":7,"replicas":1}', "service"),
    ],
)
def test_a_refusal_names_the_field(body: bytes, field: str) -> None:
    with pytest.raises(ProtocolError) as refused:
        decode(ScaleRequest, body)
    assert refused.value.field == field
    assert field in str(refused.value)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nonsense",
        b"[" * 100_000,
        b'{"service":"a","replicas":1,"x":' + b"[" * 100_000,
        b'{"service":"\xff","replicas":1}',
        b'{"service":"a","replicas":1,"unknown":"\xff"}',
        b'\xef\xbb\xbf{"service":"a","replicas":1}',
    ],
    ids=["empty", "not-json", "brackets", "nested-unknown", "not-utf8", "not-utf8-unknown", "bom"],
)
def test_input_that_is_not_json_is_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(ScaleRequest, body)


def test_a_u64_has_an_upper_bound_although_msgspec_has_none() -> None:
    assert decode(InstanceHealth, b'{"memory_bytes":18446744073709551615}').memory_bytes
    with pytest.raises(ProtocolError):
        decode(InstanceHealth, b'{"memory_bytes":18446744073709551616}')


def test_states_are_lower_case_for_people_and_capitalised_on_the_wire() -> None:
    assert [str(state) for state in InstanceState] == [
        "creating",
        "booting",
        "ready",
        "busy",
        "draining",
        "stopping",
        "stopped",
        "failed",
    ]
    assert [state.value for state in InstanceState] == [str(s).capitalize() for s in InstanceState]


def test_a_transition_has_no_message_until_it_is_given_one() -> None:
    before = datetime.now(UTC)
    event = InstanceEvent.transition("i-1", "web", InstanceState.BOOTING, InstanceState.READY)
    assert before <= event.timestamp <= datetime.now(UTC)
    assert (event.instance_id, event.service, event.message) == ("i-1", "web", "")
    changed = event.with_message("OOM killed")
    assert (changed.message, event.message) == ("OOM killed", "")
    assert changed.timestamp == event.timestamp


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("2026-11-21T08:00:00Z", "2026-11-21T08:00:00Z"),
        ("2026-11-21T08:00:00.1Z", "2026-11-21T08:00:00.100Z"),
        ("2026-11-21T08:00:00.000Z", "2026-11-21T08:00:00Z"),
        ("2026-11-21T08:00:00.000100Z", "2026-11-21T08:00:00.000100Z"),
        ("2026-11-21T16:00:00.5+08:00", "2026-11-21T08:00:00.500Z"),
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
    ],
)
def test_times_are_written_as_chrono_writes_them(text: str, written: str) -> None:
    at = parse_time(text)
    assert at.tzinfo is UTC
    assert format_time(at) == written
    event = InstanceEvent.transition("i", "s", InstanceState.READY, InstanceState.READY, at=at)
    assert f'"timestamp":"{written}"'.encode() in encode(event)


def test_a_message_that_looks_like_a_time_is_unchanged() -> None:
    event = InstanceEvent.transition("i", "s", InstanceState.READY, InstanceState.READY)
    event = event.with_message('at "2026-11-21T08:00:00.500000Z"')
    assert decode(InstanceEvent, encode(event)) == event


def test_a_time_without_an_offset_is_an_error_both_ways() -> None:
    naive = datetime(2026, 11, 21)  # noqa: DTZ001
    event = InstanceEvent.transition("i", "s", InstanceState.READY, InstanceState.READY, at=naive)
    with pytest.raises(ProtocolError):
        encode(event)
    with pytest.raises(ProtocolError):
        parse_time("2026-11-21T08:00:00")


def test_a_time_that_utc_cannot_hold_is_taken_as_the_nearest() -> None:
    value = decode(
        InstanceRegistration,
        b'{"instance_id":"i","service":"s","endpoint":"h:1",'
        b'"started_at":"0001-01-01T00:00:00+08:00"}',
    )
    assert value.started_at == datetime.min.replace(tzinfo=UTC)


# ── property tests: any value comes back as it went ──────────────────────────────────────

texts = st.text(st.characters(codec="utf-8"), max_size=40)
u32 = st.integers(0, 2**32 - 1)
zones = st.sampled_from([UTC, timezone(timedelta(hours=8)), timezone(timedelta(hours=-3.5))])
times = st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1), timezones=zones)  # noqa: DTZ001
states = st.sampled_from(InstanceState)
maps = st.dictionaries(texts, texts, max_size=4)
singles = st.floats(width=32, allow_nan=False, allow_infinity=False)
configs = st.builds(
    ScaleConfig,
    image=st.none() | texts,
    vcpus=st.none() | st.integers(0, 255),
    memory_mib=st.none() | u32,
    env=maps,
    port_map=st.lists(texts, max_size=3),
)
healths = st.builds(
    InstanceHealth,
    cpu_percent=st.none() | singles,
    memory_bytes=st.none() | st.integers(0, 2**64 - 1),
    inflight_requests=u32,
    healthy=st.booleans(),
)
infos = st.builds(
    InstanceInfo,
    id=texts,
    state=states,
    service=texts,
    created_at=times,
    ready_at=st.none() | times,
    endpoint=st.none() | texts,
    health=healths,
)
values = st.one_of(
    configs,
    healths,
    infos,
    st.builds(ScaleRequest, service=texts, replicas=u32, config=configs, request_id=texts),
    st.builds(
        ScaleResponse,
        request_id=texts,
        accepted=st.booleans(),
        current_replicas=u32,
        target_replicas=u32,
        instances=st.lists(infos, max_size=3),
        error=st.none() | texts,
    ),
    st.builds(
        InstanceEvent,
        instance_id=texts,
        service=texts,
        from_state=states,
        to_state=states,
        timestamp=times,
        message=texts,
    ),
    st.builds(
        InstanceRegistration,
        instance_id=texts,
        service=texts,
        endpoint=texts,
        metadata=maps,
        started_at=times,
    ),
    st.builds(InstanceDeregistration, instance_id=texts, service=texts, reason=texts),
)


def as_single(value: Any) -> Any:
    """`value` with its floats as the f32 that they are on the wire."""
    return json.loads(encode(value), parse_float=msgspec.json.decode)


@given(values)
def test_any_value_survives_encode_and_decode(value: Any) -> None:
    data = encode(value)
    again = decode(type(value), data)
    assert encode(again) == data  # a fixed point: what one peer writes another writes too
    assert as_single(again) == as_single(value)


@given(values)
def test_every_field_is_written_in_the_contracts_order(value: Any) -> None:
    assert list(json.loads(encode(value))) == [f.name for f in msgspec.structs.fields(value)]


@given(values)
def test_times_are_decoded_in_utc_and_unchanged(value: Any) -> None:
    again = decode(type(value), encode(value))
    for field in msgspec.structs.fields(value):
        before, after = getattr(value, field.name), getattr(again, field.name)
        if isinstance(before, datetime):
            assert after == before
            assert after.tzinfo is UTC


@given(st.dictionaries(texts, healths, max_size=3))
def test_stats_survive_encode_and_decode(stats: HostStats) -> None:
    assert encode(decode(HostStats, encode(stats))) == encode(stats)


@given(singles)
def test_a_float_keeps_the_value_of_its_f32(value: float) -> None:
    health = decode(InstanceHealth, encode(InstanceHealth(cpu_percent=value)))
    assert health.cpu_percent is not None
    assert struct.pack("f", health.cpu_percent) == struct.pack("f", value)


@given(st.binary(max_size=200), st.sampled_from(NINE))
def test_no_bytes_raise_anything_but_a_protocol_error(data: bytes, name: str) -> None:
    try:
        decode(getattr(bridge, name), data)
    except ProtocolError:
        return


NOTE = InstanceEvent.transition("web-a", "web", InstanceState.READY, InstanceState.READY)
LATEST = datetime.max.replace(tzinfo=timezone(-timedelta(hours=1)))


@pytest.mark.parametrize(
    ("event", "problem"),
    [
        (NOTE.with_message("\udcff"), "not Unicode: surrogates"),
        (replace(NOTE, timestamp=LATEST), "outside the years"),
    ],
    ids=["text that is not Unicode", "a time beyond the year 9999"],
)
def test_a_value_that_has_no_json_is_a_protocol_error(event: InstanceEvent, problem: str) -> None:
    with pytest.raises(ProtocolError, match=problem) as raised:
        encode(event)
    assert isinstance(raised.value.__cause__, (UnicodeEncodeError, OverflowError))
