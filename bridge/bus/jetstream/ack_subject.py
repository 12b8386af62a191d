"""The acknowledgement subject of a message: its position in stream and consumer. Pure."""

from __future__ import annotations

from msgspec import Struct


class AckSubject(Struct, frozen=True):
    """What the reply subject of a message states: the sequences, the time of storing in nanoseconds
    and the delivery `attempt`, from 1.
    """

    consumer: str
    stream_seq: int
    consumer_seq: int
    time_ns: int
    attempt: int = 1


def parse_position(reply: str) -> AckSubject | None:
    """The parts of a ``$JS.ACK.…`` subject, of either length; None if `reply` is not one."""
    parts = reply.split(".")
    if parts[:2] != ["$JS", "ACK"]:
        return None
    if len(parts) >= 11:  # with domain and account hash
        parts = [*parts[:2], *parts[4:]]
    if len(parts) < 9 or not all(part.isdigit() for part in parts[4:8]):
        return None
    return AckSubject(parts[3], int(parts[5]), int(parts[6]), int(parts[7]), int(parts[4]))
