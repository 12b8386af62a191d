"""An instance event as a CloudEvent 1.0 over HTTP, in binary content mode.

The body is the event's JSON as it came from the bus. The attributes of the CloudEvent are ``ce-``
headers, by the HTTP Protocol Binding for CloudEvents 1.0.2 (3.1, Binary Content Mode). Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import quote

from bridge.printable import printable
from bridge.protocol import InstanceEvent, format_time
from bridge.subjects import TRACEPARENT, valid_trace

TYPE: Final = "dev.box-bridge.instance"
"""The start of ``ce-type``; the new state of the instance follows, or ``note``."""

_PLAIN: Final = "".join(chr(code) for code in range(0x21, 0x7F) if chr(code) not in '"%')


def event_id(event: InstanceEvent, box_seq: int, seq: int) -> str:
    """``<instance_id>.<box_seq>``: unique together with the source, so that a receiver can drop
    repeated deliveries. An event without a number of a Box (`box_seq` 0) is named by its sequence
    in the stream, ``<instance_id>.stream-<seq>``.
    """
    return f"{event.instance_id}.{box_seq or f'stream-{seq}'}"


def event_type(event: InstanceEvent) -> str:
    """``dev.box-bridge.instance.ready``; an event that changes no state is a ``….note``."""
    kind = "note" if event.from_state is event.to_state else str(event.to_state)
    return f"{TYPE}.{kind}"


def ce_headers(
    event: InstanceEvent, *, box_seq: int, seq: int, host: str, traceparent: str = ""
) -> dict[str, str]:
    """The headers of the request whose body is the event's JSON.

    `host` is the Box that reported it, empty if unknown. A valid `traceparent` becomes the HTTP
    header and, as the binding requires of extensions, an attribute.
    """
    name = quote(host, safe="", errors="replace")
    attributes = {
        "specversion": "1.0",
        "id": event_id(event, box_seq, seq),
        "source": f"/box/{name}" if host else "/box",  # a URI reference
        "type": event_type(event),
        "subject": event.instance_id,
        "time": format_time(event.timestamp),
    }
    headers = {"Content-Type": "application/json"}
    if valid_trace(traceparent):
        attributes[TRACEPARENT] = headers[TRACEPARENT] = traceparent
    return headers | {f"ce-{name}": header_value(value) for name, value in attributes.items()}


def header_value(value: str) -> str:
    """`value` as the binding encodes it in a header (3.1.3.2): space, double-quote, percent and
    characters outside U+0021 to U+007E are percent-encoded as UTF-8.
    """
    return quote(value, safe=_PLAIN, errors="replace")


def dead_headers(
    original: Mapping[str, str], *, reason: str, attempts: int, seq: int, durable: str
) -> dict[str, str]:
    """The headers of a dead letter: those of the event, and why it is one.

    The server's own (``Nats-…``) are left out: they would be orders to it. The id of the event is
    in ``Box-Dead-Id``; ``Nats-Msg-Id`` is unique for this `durable`.
    """
    kept = {
        name: one_line(value)
        for name, value in original.items()
        if not name.lower().startswith("nats-") and name.isprintable()
    }
    message_id = one_line(original.get("Nats-Msg-Id", "")) or f"seq.{seq}"
    return kept | {
        "Nats-Msg-Id": f"{durable}.{message_id}",
        "Box-Dead-Id": message_id,
        "Box-Dead-Reason": one_line(reason)[:500],
        "Box-Dead-Attempts": str(attempts),
        "Box-Dead-Seq": str(seq),
    }


def one_line(value: str) -> str:
    """`value` in one line of printable characters."""
    return " ".join(printable(value).split())
