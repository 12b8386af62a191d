"""One HTTP/1.1 request on one connection, where the status of the response is what counts.

A response is what its status line says. What follows the line never makes an error of it: a header
may be long or malformed, a body compressed, badly framed or endless. The connection is then not
used again. An HTTP library refuses such a response whole, and the caller would repeat a request
that succeeded.

`Channel.open` and `Channel.send` raise OSError, TimeoutError and BadResponse; `failure` turns any
exception into a sentence.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

from msgspec import Struct

from bridge.errors import BridgeError

_PIECE: Final = 64 * 1024  # bytes that are read at a time
_MAX_BODY: Final = 64 * 1024  # bytes of a body after which the connection is not used again
_MAX_HEAD: Final = 1024 * 1024  # bytes of a status line and its headers
_MAX_STATUS: Final = 64  # bytes in which a status must stand
_AFTER_STATUS: Final = 1.0  # seconds for the headers, then again for the body
_QUOTED: Final = 60  # letters of something that is not HTTP
_SWITCHING: Final = 101  # the one final status below 200
_MAX_INTERIM: Final = 100  # interim responses before a final one
_CRLF: Final = b"\r\n"
_TLS_ALERT: Final = b"\x15\x03"

HEADER_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110, 5.6.2

_STATUS: Final = re.compile(rb"\s*HTTP/\d+(?:\.\d+)?[ \t]+(\d{3})(?!\d)")
_END_OF_HEAD: Final = re.compile(rb"\r?\n\r?\n")
_CHUNK: Final = re.compile(rb"(?:\r\n)?([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\n]*)?\r?\n")

MakeSocket = Callable[[int, int, int], socket.socket]
"""Makes a non-blocking socket of a family, type and protocol."""


class BadResponse(BridgeError):
    """What came is not an HTTP/1.x response, or nothing came. The outcome is unknown.

    Fix: check that the port serves HTTP, and whether with or without TLS.
    """


class Response(Struct, frozen=True, kw_only=True):
    """A final response. `headers` are by lower-case name, the first of each; they are empty where
    they could not be read. `body` is the start of the body.
    """

    status: int
    headers: Mapping[str, str] = {}
    body: bytes = b""


def _plain_socket(family: int, kind: int, protocol: int) -> socket.socket:
    made = socket.socket(family, kind, protocol)
    made.setblocking(False)
    return made


class Channel:
    """A connection for requests, one after the other. `reusable` says whether it can take another
    one. `silent` is True until the first byte of a response to the current request.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._buffer = bytearray()
        self._framed = False
        self.silent = True

    @classmethod
    async def open(
        cls,
        host: str,
        port: int,
        *,
        deadline: float,
        tls: ssl.SSLContext | None = None,
        server_name: str = "",
        make_socket: MakeSocket = _plain_socket,
    ) -> Channel:
        """Connect before `deadline` (loop time). Of several addresses of the host each gets its
        share of the time. `server_name` is the name for TLS where it is not `host`.
        """
        loop = asyncio.get_running_loop()
        async with asyncio.timeout_at(deadline):
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            connected = await _connect(found, deadline, make_socket)
            try:
                reader, writer = await asyncio.open_connection(
                    sock=connected,
                    ssl=tls,
                    server_hostname=(server_name or host) if tls else None,
                )
            except BaseException:
                connected.close()
                raise
        return cls(reader, writer)

    @property
    def reusable(self) -> bool:
        """Whether the last response was read to its end and the peer keeps the connection."""
        return self._framed and not self._reader.at_eof() and not self._writer.is_closing()

    def close(self) -> None:
        """Close at once; TLS does not wait for the peer's goodbye."""
        if self._writer.get_extra_info("ssl_object") is None:
            self._writer.close()
        else:
            self._writer.transport.abort()

    async def send(self, request: bytes, *, deadline: float, body: int = 0) -> Response:
        """Send `request` and return the response: its status alone, or its headers and at most
        `body` bytes of its body too.

        A status that came before `deadline` (loop time) counts. The headers, and then the body,
        get another second each.
        """
        self.silent, self._framed = True, False
        self._writer.write(request)
        async with asyncio.timeout_at(deadline):
            status = await self._final_status()
        headers: dict[str, str] = {}
        start = bytearray()
        with contextlib.suppress(OSError, BadResponse, EOFError):  # TimeoutError is an OSError
            if body:
                async with asyncio.timeout(_AFTER_STATUS):
                    headers = _parse(head := await self._head())
                async with asyncio.timeout(_AFTER_STATUS):
                    await self._read_body(status, headers, start)
                kept = "close" not in headers.get("connection", "").lower()
                self._framed = kept and head.startswith(b"HTTP/1.1") and not self._buffer
        return Response(status=status, headers=headers, body=bytes(start[:body]))

    # ── reading ──────────────────────────────────────────────────────────────────────────

    async def _more(self) -> None:
        """Read on; raises EOFError at the end."""
        piece = await self._reader.read(_PIECE)
        if not piece:
            raise EOFError
        self.silent = False
        self._buffer += piece

    async def _final_status(self) -> int:
        for _ in range(_MAX_INTERIM):
            status = await self._status()
            if status >= 200 or status == _SWITCHING:
                return status
            await self._head()
        raise BadResponse(f"{_MAX_INTERIM} interim responses (1xx) came, and no final one")

    async def _status(self) -> int:
        while (found := _STATUS.match(self._buffer)) is None:
            if len(self._buffer) > _MAX_STATUS or b"\n" in self._buffer.lstrip():
                break
            try:
                await self._more()
            except EOFError:
                break
        if found:
            return int(found[1])
        if not self._buffer:
            raise BadResponse("the connection was closed without a response")
        if self._buffer.startswith(_TLS_ALERT):
            raise BadResponse("the response is TLS: use https")
        quoted = bytes(self._buffer[:_QUOTED]).decode("latin-1")
        raise BadResponse(f"the response is not HTTP/1.x: {quoted!r}")

    async def _head(self) -> bytes:
        """The status line and the headers, taken from what was read."""
        searched = 0
        while (end := _END_OF_HEAD.search(self._buffer, searched)) is None:
            if len(self._buffer) > _MAX_HEAD:
                raise BadResponse(f"the headers are longer than {_MAX_HEAD} bytes")
            searched = max(0, len(self._buffer) - 3)
            try:
                await self._more()
            except EOFError as exc:
                raise BadResponse("the connection was closed within the headers") from exc
        head = bytes(self._buffer[: end.start()])
        del self._buffer[: end.end()]
        return head

    async def _read_body(self, status: int, headers: Mapping[str, str], into: bytearray) -> None:
        """Read the body to its end; raises EOFError for one that has none, or is long."""
        if status in (204, 304):
            return
        if "transfer-encoding" in headers:
            while size := await self._chunk_size():
                await self._read(size, into)
            while len(self._buffer) < len(_CRLF):
                await self._more()
            if not self._buffer.startswith(_CRLF):  # a trailer
                raise EOFError
            del self._buffer[: len(_CRLF)]
            return
        length = headers.get("content-length", "")
        known = length.isascii() and length.isdecimal()
        await self._read(int(length[:18]) if known else sys.maxsize, into)

    async def _read(self, size: int, into: bytearray) -> None:
        """Read `size` bytes of the body."""
        while size:
            if not self._buffer:
                await self._more()
            piece = self._buffer[:size]
            del self._buffer[:size]
            into += piece
            size -= len(piece)
            if len(into) > _MAX_BODY:
                raise EOFError

    async def _chunk_size(self) -> int:
        while (found := _CHUNK.match(self._buffer)) is None:
            if len(self._buffer) > _MAX_BODY:
                raise EOFError
            await self._more()
        size = int(found[1], 16)
        del self._buffer[: found.end()]
        return size


async def _connect(addresses: list[Any], deadline: float, make_socket: MakeSocket) -> socket.socket:
    """The first of `addresses` that takes the connection; raises what the last one raised."""
    loop = asyncio.get_running_loop()
    for left, (family, kind, protocol, _, address) in zip(
        range(len(addresses), 0, -1), addresses, strict=True
    ):
        made = make_socket(family, kind, protocol)
        try:
            async with asyncio.timeout((deadline - loop.time()) / left):
                await loop.sock_connect(made, address)
        except OSError:  # TimeoutError is one
            made.close()
            if left == 1:
                raise
        except BaseException:
            made.close()
            raise
        else:
            return made
    raise OSError("no address")  # getaddrinfo names one at least


def _parse(head: bytes) -> dict[str, str]:
    """The first header of each name, in lower case. What is no header is left out."""
    headers: dict[str, str] = {}
    for line in head.decode("latin-1").split("\n")[1:]:
        name, colon, value = line.partition(":")
        key, value = name.strip().lower(), value.strip()
        if colon and headers.setdefault(key, value) != value and key == "content-length":
            headers[key] = ""  # two lengths are none
    return headers


def failure(exc: BaseException, where: str) -> str:
    """What went wrong with a connection to `where` (``host:port``), as a sentence."""
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"the certificate of {where} is refused: {exc.verify_message}"
    if isinstance(exc, ssl.SSLError):
        reason = (exc.reason or str(exc)).lower().replace("_", " ")
        return f"TLS with {where} failed: {reason}"
    if isinstance(exc, ConnectionRefusedError):
        return f"connection refused by {where}"
    if isinstance(exc, ConnectionError):
        return f"connection closed by {where}"
    if isinstance(exc, socket.gaierror):
        return f"the name of {where} cannot be resolved: {exc.strerror}"
    if isinstance(exc, BadResponse):
        return f"{exc} ({where})"
    if isinstance(exc, OSError) and exc.strerror:
        return f"{exc.strerror.lower()} ({where})"
    return f"{type(exc).__name__}: {exc}"
