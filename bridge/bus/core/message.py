"""A message as it came off the wire: nothing decoded that a hostile peer could break."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from msgspec import Struct

_LINE: Final = b"NATS/1.0"
_BLANK: Final = " \t\n\r\x0b\x0c"  # what bytes.strip takes away


class Message(Struct, eq=False, gc=False):
    """One message. `subject` and `reply` are always text: bytes that are not UTF-8 come as
    ``\\xNN``, which no valid subject contains. `raw_headers` are the headers as they came: what
    many messages have in common need be parsed but once. They are parsed when first asked for.
    """

    subject: str
    reply: str
    data: bytes
    raw_headers: bytes
    _headers: dict[str, str] | None = None
    _malformed: bool = False

    @property
    def size(self) -> int:
        """The bytes of headers and payload together."""
        return len(self.raw_headers) + len(self.data)

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers; of a name given twice, the last value. See `malformed`."""
        if self._headers is None:
            self._headers = self._parse() if self.raw_headers else {}
        return self._headers

    @property
    def status(self) -> int:
        """The server's inline status (503 no responders, 100 idle heartbeat), 0 if none.

        Read from the first line alone: the headers of an event are nobody's business until asked
        for, and parsing them took a third of the time that reading an event takes.
        """
        raw = self.raw_headers
        if raw[8:10] == b"\r\n" or not raw.startswith(_LINE):
            return 0
        status = raw.partition(b"\r\n")[0][len(_LINE) + 1 : len(_LINE) + 4]
        return int(status) if status.isdigit() else 0

    @property
    def malformed(self) -> bool:
        """Whether the header block breaks its own format; what could be read is in `headers`."""
        _ = self.headers  # parsed now, if not before
        return self._malformed

    def _parse(self) -> dict[str, str]:
        first, _, rest = self.raw_headers.partition(b"\r\n")
        if not first.startswith(_LINE):
            self._malformed = True
            return {}
        if not rest.isascii():
            return self._parse_lines(rest)
        headers: dict[str, str] = {}
        for line in rest.decode("ascii").split("\r\n"):
            if line:
                name, colon, value = line.partition(":")
                name = name.strip(_BLANK)
                headers[name] = value.strip(_BLANK)
                if not (colon and name):
                    self._malformed = True
        return headers

    def _parse_lines(self, rest: bytes) -> dict[str, str]:
        """The same for any bytes: lines that are no text are left out. ASCII need not be tried line
        by line.
        """
        headers: dict[str, str] = {}
        for line in rest.split(b"\r\n"):
            if not line:
                continue
            name, colon, value = line.partition(b":")
            try:
                headers[name.strip().decode("ascii")] = value.strip().decode()
                self._malformed |= not colon or not name.strip()
            except UnicodeDecodeError:
                self._malformed = True
        return headers


Handler = Callable[[Message], None]
"""Called in the read loop for each message: it must not block, and its errors are counted."""
