"""Reading the logs of a host's instances over the bus, page by page. Not part of the wire contract.

A client asks the Box of a host for a page, and for the next one when it has used it. A Box keeps
nothing for a reader between two pages, so a slow reader costs nothing.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta, Struct, field

from bridge.protocol import U32, Time

MAX_READS: Final = 200
"""The most logs in one request."""

Name = Annotated[str, Meta(max_length=63)]
Stream = Literal["stdout", "stderr"]
Position = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class LogRead(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A request for the next part of one log.

    `position` is the `next` of the part before. Without it the part begins with the oldest line
    that is kept, or where `tail` and `since` say: `tail` lines before the end, or with the lines
    from that time on.
    """

    instance_id: Name
    stream: Stream
    position: Position | None = None
    tail: U32 | None = None
    since: Time | None = None


class LogsRequest(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A request to the Box of one host: the parts that `reads` names, and the instances of `name`,
    which is an instance or a service.
    """

    name: Name = ""
    reads: Annotated[list[LogRead], Meta(max_length=MAX_READS)] = field(default_factory=list)


class LoggedInstance(Struct, frozen=True, kw_only=True):
    """An instance whose logs are on the host; `ended`: its process has ended."""

    id: str
    ended: bool


class LogChunk(Struct, frozen=True, kw_only=True):
    """A part of one log: `data`, whose first byte is at `position`.

    - `marks`: pairs of a position and a time in nanoseconds since 1970. What is before the position
      had been written by that time.
    - `next`: the position to ask for next; `more`: whether there is more at once.
    - `ended`: the instance has ended, so nothing will follow what is there.
    """

    instance_id: str
    stream: Stream
    position: Position
    data: bytes
    marks: list[tuple[int, int]]
    next: Position
    more: bool
    ended: bool


class LogsResponse(Struct, frozen=True, kw_only=True):
    """The parts, as many as fit into a reply, and the instances."""

    instances: list[LoggedInstance] = field(default_factory=list)
    chunks: list[LogChunk] = field(default_factory=list)
    error: str | None = None
