"""The limits of the server, the account and the streams, and what is left of them.

A limit that is reached stops a fleet in parts: events wait, instances are not announced, a Box
receives no requests. `limits` reports each one before that, with the setting that raises it. It
changes and stores nothing.
"""

from __future__ import annotations

from typing import Final

from nats.js.api import StreamInfo

from bridge.auth.roles import ANY, API, Role, grants
from bridge.bus.core.connection import Connection
from bridge.bus.core.message import Message
from bridge.bus.diagnostics import permissions
from bridge.bus.jetstream import topology
from bridge.diagnostics import Finding, fail, ok, warn
from bridge.errors import BusError

FULL: Final = 0.8  # of a limit
BOX_CONSUMERS: Final = 5  # four buckets and the withdrawals
GATEWAY_CONSUMERS: Final = 2  # events and registrations

_RECORD: Final = 1024 * 1024  # bytes: the largest record of a service
_MESSAGE: Final = 64 * 1024  # bytes: the largest event, registration and request
_OWN_SUBSCRIPTIONS: Final = 2 + BOX_CONSUMERS  # the replies, a read of the stream, the followers


async def limits(connection: Connection, role: Role, name: str) -> Finding:
    """Whether the limits leave room for the user `name` of `role`."""
    needed = len(permissions.needed(connection.settings, role, name).subscribe) + _OWN_SUBSCRIPTIONS
    if refusal := await _refusal(connection, needed):
        return fail(
            f"{needed} subscriptions are needed: {refusal}",
            "raise max_subscriptions of the server, or in the limits of the account or the user",
        )
    largest = connection.max_payload
    if largest < _MESSAGE:
        return fail(
            f"max_payload of the server is {largest} bytes; an event may have {_MESSAGE}",
            f"set max_payload to {_RECORD} or more",
        )
    inspected = grants(role, ANY, connection.subjects, inbox="").publish
    streams = [str(config.name) for config in topology.streams(connection.subjects)]
    infos = [
        info
        for stream in streams
        if f"{API}STREAM.INFO.{stream}" in inspected
        and (info := await topology.stream_info(connection, stream))
    ]
    if near := {str(info.config.name): lines for info in infos if (lines := _near(info))}:
        return warn(
            "; ".join(line for lines in near.values() for line in lines),
            f"raise the limits of {', '.join(near)} with `nats stream edit`: what does not fit "
            "waits, or is refused",
        )
    if largest < _RECORD:
        return warn(
            f"max_payload of the server is {largest} bytes; the record of a service with many "
            f"instances may have {_RECORD}",
            f"set max_payload to {_RECORD} or more",
        )
    return ok(f"{needed} subscriptions, {largest} bytes a message, no stream near its limits")


async def _refusal(connection: Connection, count: int) -> str:
    """Why the server does not grant `count` subscriptions at once; empty if it does.

    A server that refuses one ends the connection, so this has a connection of its own.
    """
    try:
        async with Connection.open(connection.settings, name="box-bridge doctor") as other:
            for _ in range(count):
                await other.listen(other.new_inbox(), _ignore)
            # A refusal arrives before the PONG of a later PING, which the second one is.
            await other.flush()
            await other.flush()
    except BusError as exc:
        return str(exc)
    return ""


def _near(info: StreamInfo) -> list[str]:
    """What the stream has nearly reached of its limits."""
    config, state = info.config, info.state
    uses = (
        ("bytes", state.bytes, config.max_bytes),
        ("messages", state.messages, config.max_msgs),
        ("consumers", state.consumer_count, config.max_consumers),
    )
    return [
        f"{config.name} holds {has} of {most} {unit}"
        for unit, has, most in uses
        if most and most > 0 and has >= most * FULL
    ]


def _ignore(message: Message) -> None:
    """Ignore a message: the subject is unknown to others."""
