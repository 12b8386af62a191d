"""The requests that wait for a worker: bounded, and fair between the clients that sent them.

A client is known by its inbox, or by what the server says of it where a service import shares that.
Neither costs the decoding of a request. Clients take turns, so a flood delays a request of another
client by one request at most for each client. A client may wait with as many requests as there are
places left: however much one sends, half of the places stay free for others.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final

import msgspec
from msgspec import Struct

from bridge.bus.core.message import Message
from bridge.bus.service.endpoint import Deferred, Endpoint

_PLACES: Final = 8192  # requests that may wait
_BYTES: Final = 32 * 1024 * 1024  # of waiting requests
_SHARED: Final = b"Nats-Request-Info:"


class Waiting(Struct, frozen=True, gc=False):
    """A request that waits, and the rest of the work on it."""

    client: str
    endpoint: Endpoint
    message: Message
    work: Deferred


class _Client:
    """The waiting requests of one client."""

    __slots__ = ("requests", "size")

    def __init__(self) -> None:
        self.requests: deque[Waiting] = deque()
        self.size = 0  # bytes


class Intake(asyncio.Queue[Waiting]):
    """A queue from which each client's first request is taken in turn."""

    def __init__(self, places: int = _PLACES, size: int = _BYTES) -> None:
        self._clients: dict[str, _Client] = {}  # the next one to take its turn comes first
        self._free = places
        self._free_size = size
        self._count = 0
        super().__init__()

    def has_room(self, client: str, size: int) -> bool:
        """Whether another request of `client`, of `size` bytes, may wait."""
        own = self._clients.get(client)
        if own is None:
            return self._free > 0 and size <= self._free_size
        return len(own.requests) < self._free and own.size + size <= self._free_size

    # ── what asyncio.Queue lets a subclass define ─────────────────────────────────────────

    def _init(self, maxsize: int) -> None:
        """Nothing: the places are counted by client."""

    def _put(self, item: Waiting) -> None:
        own = self._clients.get(item.client)
        if own is None:
            own = self._clients[item.client] = _Client()
        own.requests.append(item)
        own.size += item.message.size
        self._free -= 1
        self._free_size -= item.message.size
        self._count += 1

    def _get(self) -> Waiting:
        client = next(iter(self._clients))
        own = self._clients.pop(client)
        item = own.requests.popleft()
        own.size -= item.message.size
        if own.requests:
            self._clients[client] = own  # behind the others
        self._free += 1
        self._free_size += item.message.size
        self._count -= 1
        return item

    def qsize(self) -> int:
        """How many requests wait."""
        return self._count

    def empty(self) -> bool:
        """Whether no request waits."""
        return not self._count


class _Requester(Struct):
    """A client, as the server describes it to the service that it imports."""

    acc: str = ""
    user: str = ""
    name: str = ""


def client_of(message: Message) -> str:
    """The client that sent a request: two of its requests have the same one.

    A client without a share of an import is its inbox: ``_INBOX.<id>``, or its own prefix.
    """
    if _SHARED in message.raw_headers:
        info = message.headers.get(_SHARED.decode().rstrip(":"), "")
        try:
            requester = msgspec.json.decode(info, type=_Requester)
        except msgspec.MsgspecError:
            return ""
        return f"{requester.acc} {requester.user} {requester.name}"
    reply = message.reply
    first = reply.find(".") + 1
    end = reply.find(".", first)
    return reply[:end] if end > 0 else reply[:first]
