"""A message as it came off the wire: nothing decoded that a hostile peer could break."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

_LINE: Final = b"NATS/1.0"
_NONE: Final[Mapping[str, str]] = {}


class Message:
    """One message. `subject` and `reply` are always text: bytes that are not UTF-8 come as
    ``\\xNN``, which no valid subject contains. Headers are parsed when first asked for.
    """

    __slots__ = ("_headers", "_malformed", "_raw", "_status", "data", "reply", "subject")

    def __init__(self, subject: str, reply: str, data: bytes, raw_headers: bytes) -> None:
        self.subject = subject
        self.reply = reply
        self.data = data
        self._raw = raw_headers
        self._headers: Mapping[str, str] | None = None if raw_headers else _NONE
        self._status = 0
        self._malformed = False

    @property
    def size(self) -> int:
        """The bytes of headers and payload together."""
        return len(self._raw) + len(self.data)

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers; of a name given twice, the last value. See `malformed`."""
        if self._headers is None:
            self._headers = self._parse()
        return self._headers

    @property
    def status(self) -> int:
        """The server's inline status (503 no responders, 100 idle heartbeat), 0 if none."""
        if self._headers is None:
            self._headers = self._parse()
        return self._status

    @property
    def malformed(self) -> bool:
        """Whether the header block breaks its own format; what could be read is in `headers`."""
        if self._headers is None:
            self._headers = self._parse()
        return self._malformed

    def _parse(self) -> Mapping[str, str]:
        first, _, rest = self._raw.partition(b"\r\n")
        if not first.startswith(_LINE):
            self._malformed = True
            return _NONE
        status = first[len(_LINE) + 1 : len(_LINE) + 4]
        if status.isdigit():
            self._status = int(status)
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
