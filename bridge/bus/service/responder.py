"""Request-reply endpoints: bounded, concurrent, discoverable, and safe to expose.

Promises to the caller: a request gets one reply, in order, even when it is refused. Promises to the
service:

- a body over the bound never reaches a handler;
- a handler's exception reaches neither the caller nor the event loop;
- answers at once take half of the time of the event loop at most, so that its other work goes on;
- requests beyond the bounds of the queue are refused as busy before they are decoded, fairly
  between the clients (see `intake`);
- a reply goes only to an inbox, with the service's own headers.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Sequence
from typing import Final

from bridge.bus.core.connection import Connection
from bridge.bus.core.listener import Listener
from bridge.bus.core.message import Message
from bridge.bus.core.nats_client import prepare
from bridge.bus.service.discovery import Description, EndpointInfo, EndpointStats
from bridge.bus.service.endpoint import AtOnce, Deferred, Endpoint, Reply
from bridge.bus.service.intake import Intake, Waiting, client_of
from bridge.errors import BusError, NotPermitted
from bridge.log_limit import LimitedLog, cause_of
from bridge.reply_codes import Refusal, ReplyCode
from bridge.subjects import INBOXES
from bridge.tasks import task_scope

_log = logging.getLogger(__name__)

MAX_BODY: Final = 64 * 1024  # bytes
_MAX_HEADERS: Final = 64 * 1024  # bytes; they wait in the queue with the body
_WORKERS: Final = 64  # requests handled at once
_MOST_AT_ONCE: Final = 20_000_000  # nanoseconds of answers at once, without as much time between


class _Counts:
    """The counts of one endpoint, for STATS."""

    def __init__(self) -> None:
        self.requests = 0
        self.errors = 0
        self.last_error = ""
        self.nanoseconds = 0


class _Busy:
    """The refusal of a request that finds no room, made once for an endpoint."""

    def __init__(self, endpoint: Endpoint, connection: Connection) -> None:
        reply = endpoint.refuse(Refusal(ReplyCode.BUSY, "too many requests; try again"))
        self.error = reply.error
        self.prepared = prepare(reply.data, reply.headers)
        self.count = connection.metrics.requests.labels(endpoint.name, reply.outcome)


class Responder:
    """Answers on `endpoints` while `run` runs and intake is open. See the module."""

    def __init__(
        self, connection: Connection, description: Description, endpoints: Sequence[Endpoint]
    ) -> None:
        self._connection = connection
        self._description = description
        self._endpoints = endpoints
        self._counts = {endpoint.name: _Counts() for endpoint in endpoints}
        self._intake = Intake()
        self._busy = {endpoint.name: _Busy(endpoint, connection) for endpoint in endpoints}
        self._worked = 0  # nanoseconds of answers at once, less those that have passed since
        self._last = 0  # the end of the last one
        self._listeners: list[Listener] = []
        self._open = asyncio.Event()
        self._log = LimitedLog(_log)
        prefixes = connection.settings.reply_prefixes
        self._inboxes = (*INBOXES, *(prefix.rstrip(".") + "." for prefix in prefixes))

    async def run(self) -> None:
        """Answer requests until cancelled."""
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
        """Return when the server has every subscription. Raises NotPermitted if it refused one.

        A refused subscription for discovery, or for an optional endpoint, is only logged.
        """
        await self._open.wait()
        await self._connection.flush()
        wanted = {endpoint.subject for endpoint in self._endpoints if not endpoint.optional}
        for listener in self._listeners:
            if listener.denied and listener.subject in wanted:
                raise NotPermitted(listener.subject, "listen on")

    async def stop_intake(self) -> None:
        """Take no further requests, and return when all that were taken are answered."""
        for listener in self._listeners:
            await listener.close()
        self._listeners.clear()
        await self._intake.join()

    async def _listen(
        self, subject: str, handler: Callable[[Message], None], queue: str = ""
    ) -> None:
        self._listeners.append(await self._connection.listen(subject, handler, queue=queue))

    def _receive(self, endpoint: Endpoint, message: Message) -> None:
        if not self._is_inbox(message.reply):
            # A reply must not be written to a subject of the caller's choice.
            reason = "reply subject is not an inbox" if message.reply else "no reply subject"
            self._count_error(endpoint, reason)
            self._connection.metrics.refuse(endpoint.name, reason)
        elif refusal := _too_large(message):
            self._send(endpoint, message, endpoint.refuse(refusal))
        elif endpoint.at_once is not None and self._intake.empty():
            self._answer_or_defer(endpoint, message, endpoint.at_once)
        else:
            self._defer(endpoint, message, functools.partial(endpoint.handle, message))

    def _answer_or_defer(self, endpoint: Endpoint, message: Message, at_once: AtOnce) -> None:
        started = time.perf_counter_ns()
        self._worked = max(0, self._worked - (started - self._last))
        if self._worked > _MOST_AT_ONCE:
            self._last = started
            self._defer(endpoint, message, functools.partial(endpoint.handle, message))
            return
        try:
            result = at_once(message)
        except Exception:  # a bug in a handler must not end the Box: it is logged and counted
            result = self._failed(endpoint)
        self._last = time.perf_counter_ns()
        self._worked += self._last - started
        self._counts[endpoint.name].nanoseconds += self._last - started
        if isinstance(result, Reply):
            self._send(endpoint, message, result)
        else:
            self._defer(endpoint, message, result)

    def _defer(self, endpoint: Endpoint, message: Message, work: Deferred) -> None:
        client = client_of(message)
        if self._intake.has_room(client, message.size):
            self._intake.put_nowait(Waiting(client, endpoint, message, work))
        else:
            self._shed(endpoint, message, client)

    def _shed(self, endpoint: Endpoint, message: Message, client: str) -> None:
        """Refuse a request as busy, at a tenth of the cost of `_send`."""
        busy, counts = self._busy[endpoint.name], self._counts[endpoint.name]
        counts.requests += 1
        counts.errors += 1
        counts.last_error = busy.error
        busy.count.inc()
        self._log.report(
            "busy",
            "%d requests wait for an answer: more requests of %s are refused as busy",
            self._intake.qsize(),
            client,
        )
        try:
            self._connection.reply(message.reply, busy.prepared)
        except BusError:  # a flood is logged already
            self._connection.metrics.refuse(endpoint.name, "reply not sent")

    def _is_inbox(self, reply: str) -> bool:
        return reply.startswith(self._inboxes) and "*" not in reply and ">" not in reply

    async def _work(self) -> None:
        while True:
            waiting = await self._intake.get()
            endpoint, message = waiting.endpoint, waiting.message
            started = time.perf_counter_ns()
            try:
                reply = await waiting.work()
            except Exception:  # as above
                reply = self._failed(endpoint)
            finally:
                self._intake.task_done()
            self._counts[endpoint.name].nanoseconds += time.perf_counter_ns() - started
            if reply is not None:
                self._send(endpoint, message, reply)
            await asyncio.sleep(0)  # one request of each worker in a turn of the loop

    def _failed(self, endpoint: Endpoint) -> Reply:
        """The reply after a handler's exception. It has no details of the exception."""
        self._log.report(
            endpoint.name,
            "answering on %s failed",
            endpoint.subject,
            level=logging.ERROR,
            exc_info=True,
        )
        why = "internal error: see the log of the Box"
        return endpoint.refuse(Refusal(ReplyCode.INTERNAL_ERROR, why))

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
            cause = endpoint.name, *cause_of(exc)
            self._log.report(cause, "a reply on %s could not be sent: %s", endpoint.subject, exc)

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
            except BusError:  # not logged, as anyone may send such requests
                self._connection.metrics.refuse("discovery", "reply not sent")

    def _infos(self) -> list[EndpointInfo]:
        return [
            EndpointInfo(name=endpoint.name, subject=endpoint.subject, queue_group=endpoint.queue)
            for endpoint in self._endpoints
        ]

    def _stats(self) -> list[EndpointStats]:
        refused = self._connection.metrics.refusals()
        stats = []
        for endpoint in self._endpoints:
            counts = self._counts[endpoint.name]
            stats.append(
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
        return stats


def _too_large(message: Message) -> Refusal | None:
    """The refusal of a request that exceeds a bound."""
    body = len(message.data)
    headers = message.size - body
    if body > MAX_BODY:
        why = f"a body of {body} bytes is too large: at most {MAX_BODY}"
    elif headers > _MAX_HEADERS:
        why = f"headers of {headers} bytes are too large: at most {_MAX_HEADERS}"
    else:
        return None
    return Refusal(ReplyCode.TOO_LARGE, why)
