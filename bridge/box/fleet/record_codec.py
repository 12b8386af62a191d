"""How the fleet's records are written into their buckets, and what is accepted as one.

Each value names its type, its key and its writer, so it proves what it is: ``{}``, an answer of
JetStream's API, an event, or the record of another key is never a record. Boxes before 0.2 wrote no
such marks. A value without all three is accepted if it has the fields that those Boxes always wrote
and can be decoded.

A value that is no record counts as absent in the buckets whose records every Box journals: the
Boxes write the real one back. Elsewhere it counts as unreadable, so that its key is not free. A
value with the marks that cannot be decoded is from a newer Box, and is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Generic, TypeVar

import msgspec
from msgspec import Raw, Struct

from bridge.box.state.records import (
    HostOrder,
    HostRecord,
    ServiceRecord,
    SlotRecord,
    check_claim,
    check_host,
    check_order,
    check_service,
    follows,
)
from bridge.bus.jetstream.kv_view import NotARecord, Record
from bridge.errors import ProtocolError
from bridge.protocol import decode, encode
from bridge.subjects import is_name, last_token

T = TypeVar("T", bound=Struct)
V = TypeVar("V", ServiceRecord, HostOrder)

_FOREIGN: Final = (ValueError, msgspec.MsgspecError, RecursionError, OverflowError)


class RecordKind(Generic[T]):
    """One type of record. `required` are the fields that every Box has always written.

    `author` gives the host that must have written a record; None means any. With `journaled` every
    Box has the record in its journal.
    """

    def __init__(
        self,
        name: str,
        cls: type[T],
        check: Callable[[str, T], None],
        required: Sequence[str],
        *,
        author: Callable[[str, T], str] | None = None,
        journaled: bool = False,
    ) -> None:
        self.name: Final = name
        self.cls: Final = cls
        self.check: Final = check
        self.author: Final = author
        self.journaled: Final = journaled
        marks = [(mark, str | None, None) for mark in ("type", "key", "writer")]
        shape = msgspec.defstruct(f"{cls.__name__}Shape", [*((f, Raw) for f in required), *marks])
        self.shape: Final[msgspec.json.Decoder[Any]] = msgspec.json.Decoder(shape)


SERVICE: Final = RecordKind(
    "service", ServiceRecord, check_service, ("version", "target", "slots"), journaled=True
)
ORDER: Final = RecordKind("order", HostOrder, check_order, ("version", "draining"), journaled=True)
SLOT: Final = RecordKind(
    "slot", SlotRecord, check_claim, ("host", "info"), author=lambda key, claim: claim.host
)
HOST: Final = RecordKind(
    "host", HostRecord, check_host, ("host_id", "services"), author=lambda key, record: key
)


def newest(
    stored: Callable[[str], Record[V] | None], journaled: Mapping[str, V]
) -> Callable[[str], int]:
    """The highest version that this Box knows of the record under a key, as a function.

    The last token of a key is the name in the journal.
    """

    def version(key: str) -> int:
        record, kept = stored(key), journaled.get(last_token(key))
        return max(record.value.version if record else 0, kept.version if kept else 0)

    return version


class RecordCodec(Generic[T]):
    """Writes and reads the records of one kind. `host` writes those that have no author.

    `newest` gives the highest version of a key's record that this Box knows, 0 if it knows none.
    """

    def __init__(
        self, kind: RecordKind[T], host: str, newest: Callable[[str], int] = lambda key: 0
    ) -> None:
        self._kind = kind
        self._host = host
        self._newest = newest

    def encode(self, key: str, value: T) -> bytes:
        """`value` with its marks. They come first, and are names: nothing in them needs a quote."""
        author = self._kind.author
        writer = self._host if author is None else author(key, value)
        marks = f'{{"type":"{self._kind.name}","key":"{key}","writer":"{writer}",'
        return marks.encode() + encode(value)[1:]

    def decode(self, key: str, data: bytes) -> T:
        """The record. Raises NotARecord for what is none, ProtocolError for an unreadable one."""
        kind = self._kind
        try:
            shape = kind.shape.decode(data)
        except _FOREIGN as exc:
            raise self._refusal(str(exc)) from exc
        marks = shape.type, shape.key, shape.writer
        marked = marks != (None, None, None)
        if marked and (marks[:2] != (kind.name, key) or not is_name(shape.writer or "")):
            raise self._refusal(f"its marks are {marks!r:.200}")
        if kind.journaled:
            self._check_version(key, shape.version)
        try:
            value = decode(kind.cls, data)
            kind.check(key, value)
        except ProtocolError as exc:
            if marked:
                raise
            raise self._refusal(str(exc)) from exc
        if marked and kind.author is not None and shape.writer != kind.author(key, value):
            raise self._refusal(f"{shape.writer} may not write it")
        return value

    def _check_version(self, key: str, raw: Raw) -> None:
        """Raise NotARecord for a version that no Box reaches by decisions."""
        try:
            version = msgspec.json.decode(raw, type=int)
        except _FOREIGN as exc:
            raise self._refusal("its version is not a number of 64 bits") from exc
        newest = self._newest(key)
        if version < 0 or not follows(version, newest):
            raise self._refusal(f"version {version} does not follow {newest}")

    def _refusal(self, why: str) -> ProtocolError | NotARecord:
        problem = f"not a record: {why}"
        if self._kind.journaled:
            return NotARecord(problem)
        return ProtocolError(self._kind.cls.__name__, "", problem)
