"""Request-reply endpoints: bounded, concurrent, discoverable, and safe to expose.

What a caller can rely on: a request gets one reply, in turn, even when it is refused. What the
service can rely on: a body over the bound never reaches a handler, a handler's exception
reaches neither the caller nor the loop, more requests, or bytes, than can wait are refused as
busy, and a reply goes to nothing but an inbox, with the service's own headers.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from msgspec import Struct, field

from bridge.bus.core.connection import Connection, Listener
from bridge.bus.core.message import Message
from bridge.bus.service.discovery import Description, EndpointInfo, EndpointStats
from bridge.errors import BusError, NotPermitted
from bridge.subjects import INBOXES
from bridge.tasks import task_scope

_log = logging.getLogger(__name__)

MAX_BODY: Final = 64 * 1024  # bytes
_MAX_HEADERS: Final = 64 * 1024  # bytes; they wait in the queue with the body
_WORKERS: Final = 64  # requests handled at once
_BACKLOG: Final = 4096  # requests that may wait for a worker
_MAX_WAITING: Final = 16 * 1024 * 1024  # bytes of those, beyond which no other may wait


class Reply(Struct, frozen=True, kw_only=True):
    """What goes back: the service's own payload and headers, and how the request ended.

    `outcome` is a word for the metrics; `error` is set when the request was refused.
    """

    data: bytes
    headers: dict[str, str] = field(default_factory=dict)
    outcome: str = "ok"
    error: str = ""


Handle = Callable[[Message], Awaitable[Reply | None]]
"""Answers a request. None sends nothing: the outcome is unknown, the caller asks again."""

Refuse = Callable[[str], Reply]
"""The reply that tells the caller why a request was refused before it was looked at."""


AtOnce = Callable[[Message], Reply | None]
"""Answers what takes no waiting, in the read loop; None leaves it to `handle`."""


class Endpoint(Struct, frozen=True, kw_only=True):
    """One subject and who answers on it. `at_once` is asked first while no request waits: an answer
    that takes no waiting then takes no queue and no switch of tasks either (a tenth of its time).
    """

    name: str
    subject: str
    queue: str
    handle: Handle
    refuse: Refuse
    at_once: AtOnce | None = None


class _Counts:
    """What STATS tells of one endpoint."""

    def __init__(self) -> None:
        self.requests = 0
        self.errors = 0
        self.last_error = ""
        self.nanoseconds = 0


class Responder:
    """Answers on `endpoints` while `run` runs and intake is open. See the module."""

    def __init__(
        self, connection: Connection, description: Description, endpoints: Sequence[Endpoint]
    ) -> None:
        self._connection = connection
        self._description = description
        self._endpoints = endpoints
        self._counts = {endpoint.name: _Counts() for endpoint in endpoints}
        self._queue: asyncio.Queue[tuple[Endpoint, Message]] = asyncio.Queue(_BACKLOG)
        self._waiting = 0  # bytes
        self._listeners: list[Listener] = []
        self._open = asyncio.Event()
        prefixes = connection.settings.reply_prefixes
        self._inboxes = (*INBOXES, *(prefix.rstrip(".") + "." for prefix in prefixes))

    async def run(self) -> None:
        """Answer until cancelled."""
        async with task_scope() as tasks:
            for number in range(_WORKERS):
                tasks.create_task(self._work(), name=f"responder-{number}")
            for endpoint in self._endpoints:
                receive = functools.partial(self._receive, endpoint)
                await self._listen(endpoint.subject, receive, endpoint.queue)
            for subject in self._description.subjects:
                await self._listen(subject, self._discover)
            self._open.set()
            await asyncio.Event().wait()

    async def listening(self) -> None:
        """Return when the server knows of every endpoint; raises NotPermitted if it refuses one.

        Discovery may be refused: the log says so.
        """
        await self._open.wait()
        await self._connection.flush()
        wanted = {endpoint.subject for endpoint in self._endpoints}
        for listener in self._listeners:
            if listener.denied and listener.subject in wanted:
                raise NotPermitted(listener.subject, "listen on")

    async def stop_intake(self) -> None:
        """Take no further requests, and return when those taken are answered."""
        for listener in self._listeners:
            await listener.close()
        self._listeners.clear()
        await self._queue.join()

    async def _listen(
        self, subject: str, handler: Callable[[Message], None], queue: str = ""
    ) -> None:
        self._listeners.append(await self._connection.listen(subject, handler, queue=queue))

    def _receive(self, endpoint: Endpoint, message: Message) -> None:
        if not self._is_inbox(message.reply):
            # Nothing may be written to a subject of the caller's choice; nothing is done either.
            reason = "reply subject is not an inbox" if message.reply else "no reply subject"
            self._count_error(endpoint, reason)
            self._connection.metrics.refuse(endpoint.name, reason)
        elif problem := _too_large(message):
            self._send(endpoint, message, endpoint.refuse(problem))
        elif self._queue.full() or self._waiting >= _MAX_WAITING:
            self._send(endpoint, message, endpoint.refuse("Busy: too many requests; try again"))
        elif not (self._queue.empty() and self._answered_at_once(endpoint, message)):
            self._waiting += message.size
            self._queue.put_nowait((endpoint, message))

    def _answered_at_once(self, endpoint: Endpoint, message: Message) -> bool:
        if endpoint.at_once is None:
            return False
        started = time.perf_counter_ns()
        try:
            reply = endpoint.at_once(message)
        except Exception:
            reply = self._failed(endpoint)
        if reply is None:
            return False
        self._counts[endpoint.name].nanoseconds += time.perf_counter_ns() - started
        self._send(endpoint, message, reply)
        return True

    def _is_inbox(self, reply: str) -> bool:
        return reply.startswith(self._inboxes) and "*" not in reply and ">" not in reply

    async def _work(self) -> None:
        while True:
            endpoint, message = await self._queue.get()
            self._waiting -= message.size
            started = time.perf_counter_ns()
            try:
                reply = await endpoint.handle(message)
            except Exception:
                reply = self._failed(endpoint)
            finally:
                self._queue.task_done()
            self._counts[endpoint.name].nanoseconds += time.perf_counter_ns() - started
            if reply is not None:
                self._send(endpoint, message, reply)

    def _failed(self, endpoint: Endpoint) -> Reply:
        """For a handler's exception: the caller learns nothing of it."""
        _log.exception("answering on %s failed", endpoint.subject)
        return endpoint.refuse("internal error: see the log of the Box")

    def _send(self, endpoint: Endpoint, message: Message, reply: Reply) -> None:
        self._counts[endpoint.name].requests += 1
        metrics = self._connection.metrics
        metrics.requests.labels(endpoint.name, reply.outcome).inc()
        if reply.error:
            self._count_error(endpoint, reply.error)
        try:
            self._connection.publish(message.reply, reply.data, headers=reply.headers)
        except BusError as exc:
            metrics.refuse(endpoint.name, "reply not sent")
            _log.warning("a reply on %s could not be sent: %s", endpoint.subject, exc)

    def _count_error(self, endpoint: Endpoint, error: str) -> None:
        counts = self._counts[endpoint.name]
        counts.errors += 1
        counts.last_error = error

    # ── discovery ────────────────────────────────────────────────────────────────────────

    def _discover(self, message: Message) -> None:
        if not self._is_inbox(message.reply):
            self._connection.metrics.refuse("discovery", "reply subject is not an inbox")
            return
        verb = message.subject.split(".")[1]
        answer = self._description.answer(verb, self._infos, self._stats)
        if answer is not None:
            try:
                self._connection.publish(message.reply, answer)
            except BusError:  # not worth a line in the log: anybody may ask
                self._connection.metrics.refuse("discovery", "reply not sent")

    def _infos(self) -> list[EndpointInfo]:
        return [
            EndpointInfo(name=endpoint.name, subject=endpoint.subject, queue_group=endpoint.queue)
            for endpoint in self._endpoints
        ]

    def _stats(self) -> list[EndpointStats]:
        refused = self._connection.metrics.refusals()
        found = []
        for endpoint in self._endpoints:
            counts = self._counts[endpoint.name]
            found.append(
                EndpointStats(
                    name=endpoint.name,
                    subject=endpoint.subject,
                    queue_group=endpoint.queue,
                    num_requests=counts.requests,
                    num_errors=counts.errors,
                    last_error=counts.last_error,
                    processing_time=counts.nanoseconds,
                    average_processing_time=counts.nanoseconds // max(counts.requests, 1),
                    data={
                        key.partition(": ")[2]: count
                        for key, count in refused.items()
                        if key.startswith(f"{endpoint.name}: ")
                    },
                )
            )
        return found


def _too_large(message: Message) -> str:
    """What to tell the sender of a request that takes too much room; empty if it does not."""
    body = len(message.data)
    headers = message.size - body
    if body > MAX_BODY:
        return f"a body of {body} bytes is too large: at most {MAX_BODY}"
    if headers > _MAX_HEADERS:
        return f"headers of {headers} bytes are too large: at most {_MAX_HEADERS}"
    return ""
