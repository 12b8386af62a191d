"""An event as a CloudEvent: what the HTTP binding asks for, and what is promised beside it."""

from __future__ import annotations

from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.gateway.relay.cloudevents import ce_headers, dead_headers, header_value
from bridge.protocol import InstanceEvent, InstanceState
from tests.unit.fleets import AT

S = InstanceState
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def event(from_state: S = S.BOOTING, to_state: S = S.READY) -> InstanceEvent:
    return InstanceEvent.transition("web-1", "web", from_state, to_state, at=AT)


def test_an_event_has_the_attributes_of_a_cloud_event() -> None:
    assert ce_headers(event(), box_seq=2, seq=9, host="box-a") == {
        "Content-Type": "application/json",
        "ce-specversion": "1.0",
        "ce-id": "web-1.2",
        "ce-source": "/box/box-a",
        "ce-type": "dev.box-bridge.instance.ready",
        "ce-subject": "web-1",
        "ce-time": "2026-11-21T08:00:00Z",
    }


def test_a_note_is_no_change_of_state() -> None:
    headers = ce_headers(event(S.READY, S.READY), box_seq=3, seq=9, host="")
    assert headers["ce-type"] == "dev.box-bridge.instance.note"
    assert headers["ce-source"] == "/box"


def test_what_no_box_has_numbered_has_an_id_of_its_own_too() -> None:
    assert ce_headers(event(), box_seq=0, seq=9, host="")["ce-id"] == "web-1.stream-9"


@pytest.mark.parametrize("state", [state for state in S if state is not S.READY])
def test_each_state_has_a_type_of_its_own(state: S) -> None:
    headers = ce_headers(event(S.READY, state), box_seq=1, seq=9, host="box-a")
    assert headers["ce-type"] == f"dev.box-bridge.instance.{state.value.lower()}"


def test_a_valid_trace_is_passed_on_and_an_invalid_one_is_not() -> None:
    headers = ce_headers(event(), box_seq=2, seq=9, host="box-a", traceparent=TRACE)
    assert headers["traceparent"] == headers["ce-traceparent"] == TRACE
    for wrong in ("", "x", TRACE.upper(), TRACE + "\r\nX-Evil: 1", TRACE + "-"):
        assert "traceparent" not in ce_headers(
            event(), box_seq=2, seq=9, host="box-a", traceparent=wrong
        )


def test_a_header_value_is_encoded_as_the_binding_shows() -> None:
    assert header_value("Euro € 😀") == "Euro%20%E2%82%AC%20%F0%9F%98%80"
    assert header_value('50% of "it"') == "50%25%20of%20%22it%22"
    plain = "".join(map(chr, range(0x21, 0x7F))).replace('"', "").replace("%", "")
    assert header_value(plain) == plain


@given(st.text())
def test_any_text_survives_as_a_header_value(text: str) -> None:
    value = header_value(text)
    assert all(0x21 <= ord(char) <= 0x7E for char in value)
    assert unquote(value, errors="strict") == text


@given(host=st.text(), trace=st.text())
def test_a_host_name_cannot_break_out_of_a_header(host: str, trace: str) -> None:
    headers = ce_headers(event(), box_seq=1, seq=9, host=host, traceparent=trace)
    assert all(value.isascii() and value.isprintable() for value in headers.values())


def test_a_dead_letter_keeps_the_headers_of_the_event_and_adds_the_reason() -> None:
    original = {"Nats-Msg-Id": "web-1.2", "Box-Seq": "2", "Box-Host": "box-a", "x": "a\nb"}
    found = dead_headers(original, reason="HTTP 400:\r\nno", attempts=1, seq=7, durable="relay")
    assert found == {
        "Box-Seq": "2",
        "Box-Host": "box-a",
        "x": "a b",
        "Nats-Msg-Id": "relay.web-1.2",
        "Box-Dead-Id": "web-1.2",
        "Box-Dead-Reason": "HTTP 400: no",
        "Box-Dead-Attempts": "1",
        "Box-Dead-Seq": "7",
    }


def test_a_dead_letter_gives_the_server_no_orders() -> None:
    orders = {"Nats-Rollup": "all", "nats-expected-last-sequence": "1", "NATS-TTL": "1"}
    found = dead_headers(orders, reason="", attempts=1, seq=7, durable="relay")
    assert found["Nats-Msg-Id"] == "relay.seq.7"
    assert [name for name in found if name.lower().startswith("nats-")] == ["Nats-Msg-Id"]
