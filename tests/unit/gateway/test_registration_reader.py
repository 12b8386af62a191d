"""Registrations read in one go, against the plain way: decoded, checked and copied one by one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bridge.bus.core.message import Message
from bridge.errors import ProtocolError
from bridge.gateway.routes.index import Route
from bridge.gateway.routes.registration_reader import RegistrationReader
from bridge.protocol import InstanceRegistration, InstanceState, decode, encode, now
from bridge.subjects import BOX_HOST
from bridge.validation import DISAGREE, check_endpoint, check_metadata

KEY = ("web", "web-1")
GOOD: dict[str, Any] = {
    "instance_id": "web-1",
    "service": "web",
    "endpoint": "10.0.0.5:8080",
    "metadata": {"zone": "a"},
    "started_at": "2026-01-01T00:00:00Z",
}


def message(data: bytes, host: str | None = "box-a") -> Message:
    lines = "" if host is None else f"{BOX_HOST}: {host}\r\n"
    return Message("", "", data, f"NATS/1.0\r\n{lines}\r\n".encode())


def plainly(told: Message, service: str, instance_id: str) -> Route | str:
    """What `RegistrationReader.read` does, nothing remembered."""
    value = decode(InstanceRegistration, told.data)
    if (value.service, value.instance_id) != (service, instance_id):
        return DISAGREE
    try:
        check_endpoint(value.endpoint)
        check_metadata(value.metadata)
    except ProtocolError as exc:
        return exc.field
    return Route(
        service=value.service,
        instance_id=value.instance_id,
        endpoint=value.endpoint,
        state=InstanceState.READY,
        host=told.headers.get(BOX_HOST, ""),
        metadata=value.metadata,
        started_at=value.started_at,
    )


_FIELDS = {
    "instance_id": st.sampled_from(["web-1", "web-2", 7]),
    "service": st.sampled_from(["web", "api", None]),
    "endpoint": st.sampled_from(
        ["a:1", "a:65535", "a:65536", "a:0", "a", "[::1]:80", "[x]:80", "[::1]:99999", "", "ä:1", 1]
    ),
    "metadata": st.one_of(
        st.dictionaries(st.sampled_from("abä"), st.sampled_from(["", "x", "é"]), max_size=3),
        st.sampled_from([None, [], {"a": 1}, {"a": "x" * 20_000}, {"a": {}}, {"big": "y" * 2_000}]),
    ),
    "started_at": st.sampled_from(
        [
            *("2026-01-01T02:00:00+02:00", "2026-01-01T00:00:00", "soon", "2026-01-01T00:00:00.5Z"),
            *("2026-01-01 00:00:00 UTC", "0001-01-01T00:00:00+02:00"),
        ]
    ),
}
_CHANGED = st.fixed_dictionaries({}, optional=_FIELDS)
_MESSAGES = st.lists(
    st.tuples(
        _CHANGED,
        st.sampled_from(["as it is", "spaced", "escaped", "cut", "twice"]),
        st.sampled_from([None, "", "box-a", "box-b", "b" * 2_000]),
    ),
    min_size=1,
    max_size=8,
)


def written(changed: dict[str, Any], how: str) -> bytes:
    told = GOOD | changed
    if how == "spaced":
        return json.dumps(told, indent=2, ensure_ascii=False).encode()
    if how == "twice":  # which is refused, as serde does
        told |= {"metadata": {"first": "does not count"}}
    data = json.dumps(told, ensure_ascii=how == "escaped").encode()
    if how == "twice":
        return data[:-1] + b', "metadata": {"second": "counts"}}'
    return data[: len(data) // 2] if how == "cut" else data


@given(_MESSAGES)
@example([({}, "as it is", "box-a")] * 2)
def test_what_is_read_is_what_the_plain_way_reads(
    told: list[tuple[dict[str, Any], str, str | None]],
) -> None:
    announced = RegistrationReader(limit=3)
    for changed, how, host in [*told, *told]:  # the second time some of it is remembered
        data = written(changed, how)
        found: list[Any] = []
        for read in (announced.read, plainly):
            try:
                found.append(read(message(data, host), *KEY))
            except ProtocolError:
                found.append("malformed")
        assert found[0] == found[1]


def test_bytes_that_are_no_text_are_refused_wherever_they_stand() -> None:
    announced = RegistrationReader()
    good = json.dumps(GOOD).encode()
    for place in (b'"zone"', b'"a"', b"10.0.0.5"):
        with pytest.raises(ProtocolError):
            announced.read(message(good.replace(place, place[:1] + b"\xff" + place[1:])), *KEY)
    assert isinstance(announced.read(message(good), *KEY), Route)


def test_what_equal_ones_say_is_kept_once() -> None:
    announced = RegistrationReader()
    one = announced.read(message(written({"metadata": {"a": "1", "b": "2"}}, "as it is")), *KEY)
    other = announced.read(message(written({"metadata": {"b": "2", "a": "1"}}, "spaced")), *KEY)
    assert isinstance(one, Route)
    assert isinstance(other, Route)
    assert one.metadata is other.metadata
    assert one.service is other.service
    assert one.host is other.host


def test_what_is_remembered_is_bounded() -> None:
    announced = RegistrationReader(limit=3)
    for number in range(10):
        changed = {"metadata": {"number": str(number)}, "service": f"web-{number}"}
        told = message(written(changed, "as it is"), f"box-{number}")
        route = announced.read(told, f"web-{number}", "web-1")
        assert isinstance(route, Route)
        assert route.metadata == changed["metadata"]
    long = {"metadata": {"long": "x" * 5_000}}
    announced.read(message(written(long, "as it is"), "b" * 5_000), *KEY)
    kept = [value for value in vars(announced).values() if isinstance(value, dict)]
    assert len(kept) == 5
    assert all(len(values) <= 3 for values in kept)
    assert all(len(raw) <= 1024 for values in kept for raw in values if isinstance(raw, bytes))


@pytest.mark.parametrize("ttl", ["never", "Never"])
def test_a_registration_that_would_never_expire_is_refused(ttl: str) -> None:
    registration = InstanceRegistration(
        instance_id="web-1", service="web", endpoint="10.0.0.1:80", metadata={}, started_at=now()
    )
    headers = f"NATS/1.0\r\nNats-TTL: {ttl}\r\n\r\n".encode()
    message = Message("box.register.web.web-1", "", encode(registration), headers)
    reader = RegistrationReader()
    for _ in range(2):
        with pytest.raises(ProtocolError, match="Nats-TTL"):
            reader.read(message, "web", "web-1")
