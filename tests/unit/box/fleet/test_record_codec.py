"""What is a record of a bucket, and what is not."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest

from bridge.box.fleet.record_codec import HOST, ORDER, SERVICE, SLOT, RecordCodec, RecordKind
from bridge.box.state import lifecycle
from bridge.box.state.records import HostOrder, HostRecord, ServiceRecord, SlotRecord
from bridge.bus.jetstream.kv_view import NotARecord
from bridge.errors import ProtocolError
from bridge.protocol import InstanceEvent, InstanceState, ScaleRequest, encode
from tests.unit.fleets import AT

INFO: Final = lifecycle.begin("web-a", "web", AT).info
RECORDS: Final[list[tuple[RecordKind[Any], str, Any]]] = [
    (SERVICE, "web", ServiceRecord(version=7, target=1, slots=[0])),
    (ORDER, "cordon.box-a", HostOrder(draining=True, version=7)),
    (SLOT, "web.0", SlotRecord(host="box-a", host_id="id", config="c", seq=1, info=INFO)),
    (
        HOST,
        "box-a",
        HostRecord(host_id="i", runtime="process", cpus=1, max_instances=1, services={}),
    ),
]
kinds = pytest.mark.parametrize(
    ("kind", "key", "record"), RECORDS, ids=lambda value: str(value)[:9]
)


def changed(data: bytes, **fields: object) -> bytes:
    return json.dumps({**json.loads(data), **fields}).encode()


@kinds
def test_a_record_names_its_type_its_key_and_its_writer(
    kind: RecordKind[Any], key: str, record: Any
) -> None:
    codec = RecordCodec(kind, "box-a")
    data = codec.encode(key, record)
    assert data.startswith(
        b'{"type":"%s","key":"%s","writer":"box-a",' % (kind.name.encode(), key.encode())
    )
    assert codec.decode(key, data) == record


@kinds
def test_a_record_of_a_box_before_the_marks_is_read(
    kind: RecordKind[Any], key: str, record: Any
) -> None:
    assert RecordCodec(kind, "box-a").decode(key, encode(record)) == record


FOREIGN: Final = {
    "nothing": b"",
    "an empty object": b"{}",
    "null": b"null",
    "a list": b"[]",
    "nested": b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "an acknowledgement": b'{"stream":"KV_box_services","seq":5}',
    "a repeated acknowledgement": b'{"stream":"X","seq":5,"duplicate":true,"domain":"d"}',
    "an answer of the API": b'{"type":"io.nats.jetstream.api.v1.stream_info_response","config":{}}',
    "an error of the API": b'{"type":"io.nats.jetstream.api.v1.x","error":{"code":404}}',
    "a request": encode(ScaleRequest(service="web", replicas=3)),
    "an event": encode(
        InstanceEvent.transition("web-a", "web", InstanceState.READY, InstanceState.FAILED, at=AT)
    ),
    "an answer of a Box": b'{"request_id":"","accepted":true,"current_replicas":1}',
}


@kinds
@pytest.mark.parametrize("what", FOREIGN)
def test_what_other_programs_say_is_never_a_record(
    kind: RecordKind[Any], key: str, record: Any, what: str
) -> None:
    with pytest.raises(NotARecord if kind.journaled else ProtocolError):
        RecordCodec(kind, "box-a").decode(key, FOREIGN[what])


@kinds
def test_a_record_of_another_type_or_key_or_writer_is_none(
    kind: RecordKind[Any], key: str, record: Any
) -> None:
    codec = RecordCodec(kind, "box-a")
    data = codec.encode(key, record)
    for other, other_key, other_record in RECORDS:
        if other is not kind:
            for foreign in (
                RecordCodec(other, "box-a").encode(other_key, other_record),
                encode(other_record),
            ):
                with pytest.raises((ProtocolError, NotARecord)):
                    codec.decode(key, foreign)
    for wrong in (
        changed(data, key="other"),
        changed(data, type="other"),
        changed(data, writer=""),
        changed(data, writer="a.b"),
        changed(data, writer=None),
        changed(data, key=None),
        changed(data, type=7),
    ):
        with pytest.raises((ProtocolError, NotARecord), match="not a record"):
            codec.decode(key, wrong)


@pytest.mark.parametrize(("kind", "key", "record"), RECORDS[2:])
def test_only_a_host_writes_its_own_claims_and_its_own_record(
    kind: RecordKind[Any], key: str, record: Any
) -> None:
    codec = RecordCodec(kind, "box-a")
    with pytest.raises(ProtocolError, match="box-b may not write it"):
        codec.decode(key, changed(codec.encode(key, record), writer="box-b"))


@pytest.mark.parametrize(("kind", "key", "record"), RECORDS[:2])
@pytest.mark.parametrize(
    "version", [7 + 2**32 + 1, 2**52, 2**53, 2**63, 2**64, 10**400, -1, 1.5, 1e300, "9", None, [1]]
)
def test_a_version_rises_by_a_bounded_step(
    kind: RecordKind[Any], key: str, record: Any, version: object
) -> None:
    codec = RecordCodec(kind, "box-a", lambda key: 7)
    data = codec.encode(key, record)
    for marked in (data, encode(record)):
        with pytest.raises(NotARecord):
            codec.decode(key, changed(marked, version=version))
    for good in (0, 1, 8, 2**32):
        assert codec.decode(key, changed(data, version=good)).version == good


def test_a_box_that_knows_no_version_accepts_those_that_leave_room_for_decisions() -> None:
    codec, (_, key, record) = RecordCodec(SERVICE, "box-a"), RECORDS[0]
    data = codec.encode(key, record)
    assert codec.decode(key, changed(data, version=2**52)).version == 2**52
    with pytest.raises(NotARecord):
        codec.decode(key, changed(data, version=2**52 + 1))


def test_a_newer_record_with_the_marks_is_unreadable_and_not_foreign() -> None:
    codec, (_, key, record) = RecordCodec(SERVICE, "box-a"), RECORDS[0]
    with pytest.raises(ProtocolError, match="target"):
        codec.decode(key, changed(codec.encode(key, record), target="2 of class gold"))
