"""JSON as serde_json reads it, where msgspec reads it otherwise. Pure.

serde_json skips the value of a field that it does not know: half a surrogate pair, or nesting of
any depth, does no harm there. It refuses a field that is given twice, and ``-0`` as an integer.
chrono takes more forms of a time than RFC 3339: ``2026-11-21 09:28:47 UTC``, as Ruby writes it.

`rewrite` makes of such a payload one that msgspec reads alike, or raises ValueError. It is slow: it
is for the rare payload that msgspec refuses, or that may hold a field twice.
"""

from __future__ import annotations

import functools
import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import msgspec

_TOKEN: Final = re.compile(
    rb"[ \t\r\n]*+"
    rb'("(?:[^"\\\x00-\x1f]++|\\["\\/bfnrt]|\\u[0-9A-Fa-f]{4})*+"'
    rb"|-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?"
    rb"|[{}\[\],:]|true|false|null)"
)
_CLOSER: Final = {b"{": b"}", b"[": b"]"}
_PUNCTUATION: Final = b"{}[],:"

_S: Final = "[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]*"
_TIME: Final = re.compile(
    rf"{_S}(?P<year>[0-9]{{1,4}}|[+-][0-9]+){_S}-{_S}(?P<month>[0-9]{{1,2}}){_S}-{_S}"
    rf"(?P<day>[0-9]{{1,2}})[tT ]{_S}(?P<hour>[0-9]{{1,2}}){_S}:{_S}(?P<minute>[0-9]{{1,2}}){_S}:"
    rf"{_S}(?P<second>[0-9]{{1,2}})(?:\.(?P<fraction>[0-9]+))?{_S}"
    rf"(?:(?:[zZ]|[uU][tT][cC])|(?P<sign>[+\-\u2212])(?P<hours>[0-9]{{2}})(?::|{_S[:-1]})*"
    rf"(?P<minutes>[0-5][0-9])){_S}"
)
_YEARS: Final = range(-262143, 262143)  # chrono's
_FIRST: Final = datetime.min.replace(tzinfo=UTC)
_LAST: Final = datetime.max.replace(tzinfo=UTC)
"""Times beyond the years 1 to 9999, which Python does not have, are taken as these."""


def rewrite(cls: Any, data: bytes) -> bytes:
    """`data` with the fields of `cls` alone, and times in RFC 3339. Raises ValueError for what
    serde_json refuses in the structure; the values are msgspec's to check.
    """
    reader = _Reader(data)
    written = reader.value(_type_info(cls))
    reader.end()
    return written


_type_info = functools.cache(msgspec.inspect.type_info)


def parse_time(text: str) -> datetime:
    """A time as chrono reads it, in UTC and to the microsecond; raises ValueError for any other.

    A leap second is the first moment of the next minute.
    """
    parts = _TIME.fullmatch(text)
    if parts is None:
        raise ValueError(f"{text[:40]!r} is not a time with an offset")
    year, second = int(parts["year"]), int(parts["second"])
    hours, minutes = int(parts["hours"] or 0), int(parts["minutes"] or 0)
    if year not in _YEARS or second > 60 or hours > 23:
        raise ValueError(f"{text[:40]!r} is out of range")
    inside = 1 <= year <= 9999
    at = datetime(
        year if inside else 2000 + year % 400,  # the days of a year repeat after 400
        int(parts["month"]),
        int(parts["day"]),
        int(parts["hour"]),
        int(parts["minute"]),
        min(second, 59),
        int((parts["fraction"] or "")[:6].ljust(6, "0")),
        tzinfo=UTC,
    )
    offset = timedelta(hours=hours, minutes=minutes) * (1 if parts["sign"] == "+" else -1)
    try:
        if inside:
            return at + timedelta(seconds=second - at.second) - offset
    except OverflowError:
        pass
    return _LAST if year > 1 else _FIRST


def _rfc3339(token: bytes) -> bytes:
    """A string that holds a time, as msgspec takes it."""
    text = json.loads(token)
    try:
        msgspec.convert(text, datetime).astimezone(UTC)
    except (msgspec.ValidationError, OverflowError):
        return b'"%s"' % parse_time(text).isoformat().encode()
    return token


class _Reader:
    """A cursor over the tokens of a payload."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def end(self) -> None:
        """Raises ValueError if anything but white space is left."""
        if self._data[self._at :].strip(b" \t\r\n"):
            raise ValueError(f"trailing characters (byte {self._at})")

    def value(self, kind: msgspec.inspect.Type) -> bytes:
        """The next value, as a field of this kind."""
        kinds = kind.types if isinstance(kind, msgspec.inspect.UnionType) else (kind,)
        start, token = self._at, self._next()
        for one in kinds:
            if isinstance(one, msgspec.inspect.StructType) and token == b"{":
                return self._struct(one)
            if isinstance(one, msgspec.inspect.ListType) and token == b"[":
                return self._list(one)
            if isinstance(one, msgspec.inspect.DictType) and token == b"{":
                return self._map(one)
            if isinstance(one, msgspec.inspect.DateTimeType) and token.startswith(b'"'):
                return _rfc3339(token)
        if token == b"-0":
            return b"-0.0"  # which is no integer
        self._at = start
        self._skip()
        return self._data[start : self._at]

    def _struct(self, kind: msgspec.inspect.StructType) -> bytes:
        known = {field.encode_name: field for field in kind.fields}
        found: dict[str, bytes] = {}
        first = True
        while (key := self._key(first=first)) is not None:
            first, name = False, json.loads(key)
            name.encode()  # half a surrogate pair is no key, known or not
            if name not in known:
                self._skip()
            elif name in found:
                raise ValueError(f"duplicate field `{name}`")
            else:
                found[name] = self.value(known[name].type)
        pairs = (b'"%s":%s' % (name.encode(), value) for name, value in found.items())
        return b"{%s}" % b",".join(pairs)

    def _map(self, kind: msgspec.inspect.DictType) -> bytes:
        pairs: list[bytes] = []
        while (key := self._key(first=not pairs)) is not None:
            pairs.append(key + b":" + self.value(kind.value_type))
        return b"{%s}" % b",".join(pairs)

    def _list(self, kind: msgspec.inspect.ListType) -> bytes:
        values: list[bytes] = []
        while not self._closes(b"]", first=not values):
            values.append(self.value(kind.item_type))
        return b"[%s]" % b",".join(values)

    def _key(self, *, first: bool) -> bytes | None:
        """The next key of an object and its colon; None at the end of the object."""
        if self._closes(b"}", first=first):
            return None
        key = self._next()
        if not key.startswith(b'"') or self._next() != b":":
            raise ValueError(f"expected a key (byte {self._at})")
        return key

    def _closes(self, closer: bytes, *, first: bool) -> bool:
        """Whether the object or array ends here; else what stands before its next item is read."""
        start, token = self._at, self._next()
        if token == closer:
            return True
        if first:
            self._at = start
        elif token != b",":
            raise ValueError(f"expected `,` (byte {self._at})")
        return False

    def _skip(self) -> None:
        """Read one value of any depth, checking its structure alone."""
        closers: list[bytes] = []
        opened = False
        while True:
            if closers:
                while closers and self._closes(closers[-1], first=opened):
                    closers.pop()
                    opened = False
                if not closers:
                    return
                if closers[-1] == b"}" and (
                    not self._next().startswith(b'"') or self._next() != b":"
                ):
                    raise ValueError(f"expected a key (byte {self._at})")
            token = self._next()
            opened = token in _CLOSER
            if opened:
                closers.append(_CLOSER[token])
            elif token in _PUNCTUATION:
                raise ValueError(f"expected a value (byte {self._at})")
            if not closers:
                return

    def _next(self) -> bytes:
        found = _TOKEN.match(self._data, self._at)
        if found is None:
            raise ValueError(f"invalid character (byte {self._at})")
        self._at = found.end()
        return found[1]
