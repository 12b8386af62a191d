"""Where a message that a consumer delivers stands, as its reply subject says. Pure."""

from __future__ import annotations

from msgspec import Struct


class AckSubject(Struct, frozen=True):
    """Where in its stream and consumer a message is, as its reply subject says, and for which time
    it comes.
    """

    consumer: str
    stream_seq: int
    consumer_seq: int
    time_ns: int
    attempt: int = 1


def parse_position(reply: str) -> AckSubject | None:
    """The position in a ``$JS.ACK.…`` reply subject, of either length; None if it is none."""
    parts = reply.split(".")
    if parts[:2] != ["$JS", "ACK"]:
        return None
    if len(parts) >= 11:  # with domain and account hash
        parts = [*parts[:2], *parts[4:]]
    if len(parts) < 9 or not all(part.isdigit() for part in parts[4:8]):
        return None
    return AckSubject(parts[3], int(parts[5]), int(parts[6]), int(parts[7]), int(parts[4]))
