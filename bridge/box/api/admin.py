"""What a Box answers to operators: `box.hosts`, `box.services`, `box.admin`, `box.history` and
`box.plan`.

Any Box answers for the fleet. An order is written by compare-and-set over all orders, so that two
drains never count on the same room. A request whose outcome this Box does not know gets no reply:
the caller asks again, and an order that stands already is as good as one that was given.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Final

from msgspec.structs import replace

from bridge.admin_protocol import (
    AdminRequest,
    AdminResponse,
    Answer,
    HistoryRequest,
    HistoryResponse,
    HostsRequest,
    HostsResponse,
    PlanRequest,
    PlanResponse,
    ServicesRequest,
    ServicesResponse,
)
from bridge.box.api.scale import expiry
from bridge.box.fleet.decisions import Decisions
from bridge.box.fleet.host_orders import HostOrders
from bridge.box.fleet.view import FleetView
from bridge.box.scheduler import reports
from bridge.box.scheduler.admission import AdmissionRequest, expired
from bridge.box.state.records import ServiceRecord
from bridge.bus.core.connection import Connection
from bridge.bus.core.message import Message
from bridge.bus.jetstream import replay
from bridge.bus.service.responder import Endpoint, Reply
from bridge.errors import BusError, CutOff, NoReply, ProtocolError
from bridge.protocol import ScaleRequest, decode, encode
from bridge.subjects import check_name

_HEADER_ROOM: Final = 1024  # bytes of a reply that are not its payload
_PAGE: Final = 1000  # hosts, or services, in one reply, whatever was asked for
_READERS: Final = 4  # histories read at once: each makes a consumer
_HISTORY_PATIENCE: Final = 5.0  # seconds

_Handler = Callable[[Message], Awaitable[Reply]]


class AdminApi:
    """Answers operators from the fleet's state. `why_not` says why this Box must not, or ""."""

    def __init__(
        self,
        connection: Connection,
        fleet: FleetView,
        ledger: Decisions,
        host: str,
        clock: Callable[[], datetime],
        why_not: Callable[[], str],
    ) -> None:
        self._connection = connection
        self._fleet = fleet
        self._host = host
        self._clock = clock
        self._why_not = why_not
        self._orders = HostOrders(fleet, ledger, host, clock)
        self._readers = asyncio.Semaphore(_READERS)
        self._turn = asyncio.Lock()

    def all(self) -> list[Endpoint]:
        """The endpoints, for a Responder."""
        subjects = self._connection.subjects
        return [
            self._endpoint("hosts", subjects.hosts, self._hosts, _no_hosts),
            self._endpoint("services", subjects.services, self._services, _no_services),
            self._endpoint("admin", subjects.admin, self._admin, _not_done),
            self._endpoint("history", subjects.history, self._history, _no_history),
            self._endpoint("plan", subjects.plan, self._plan, _no_plan),
        ]

    def _endpoint(
        self, name: str, subject: str, answer: _Handler, refusal: Callable[[str], Answer]
    ) -> Endpoint:
        def refuse(error: str) -> Reply:
            return _refused(refusal(error))

        async def handle(message: Message) -> Reply | None:
            async with (
                self._turn
            ):  # tenths of a second, maybe: the loop goes on between two answers
                await asyncio.sleep(0)
            try:
                if error := self._refusal(message):
                    return refuse(error)
                return await answer(message)
            except ProtocolError as exc:
                return refuse(str(exc))
            except NoReply:
                return None
            except CutOff:
                return refuse("not ready: this Box is cut off from NATS; ask again")
            except BusError as exc:
                return refuse(f"the fleet's store refused: {exc}")

        queue = self._connection.subjects.queue
        return Endpoint(name=name, subject=subject, queue=queue, handle=handle, refuse=refuse)

    def _refusal(self, message: Message) -> str:
        """Why the request is not even looked at; empty if it is."""
        at, expires_at = self._clock(), expiry(message)
        if expires_at is not None and expires_at <= at:
            return expired(expires_at, at, self._host)
        why_not = self._why_not()
        return f"not ready: {why_not}; ask again" if why_not else ""

    # ── the answers ──────────────────────────────────────────────────────────────────────

    async def _hosts(self, message: Message) -> Reply:
        asked = decode(HostsRequest, message.data or b"{}")
        state = self._fleet.state
        names = [name for name in reports.names(state) if asked.host in ("", name)]
        page = names[asked.offset : asked.offset + min(asked.limit, _PAGE)]
        hosts = reports.hosts(state, page, at=self._clock())

        def cut(count: int) -> HostsResponse:
            return HostsResponse(total=len(names), hosts=hosts[:count])

        return self._fitting(cut, len(hosts))

    async def _services(self, message: Message) -> Reply:
        asked = decode(ServicesRequest, message.data or b"{}")
        state = self._fleet.state
        names = [name for name in reports.service_names(state) if asked.service in ("", name)]
        page = names[asked.offset : asked.offset + min(asked.limit, _PAGE)]
        services = reports.services(state, page, at=self._clock())

        def cut(count: int) -> ServicesResponse:
            return ServicesResponse(total=len(names), services=services[:count])

        return self._fitting(cut, len(services))

    async def _admin(self, message: Message) -> Reply:
        response = await self._orders.obey(decode(AdminRequest, message.data))
        return Reply(data=encode(response)) if response.done else _refused(response)

    async def _history(self, message: Message) -> Reply:
        service = decode(HistoryRequest, message.data).service
        check_name("service", service)
        if service not in self._fleet.state.services:
            return _refused(_no_history(f"nothing was ever asked for {service!r}"))
        bucket = self._connection.subjects.services_bucket
        records: dict[int, ServiceRecord] = {}

        def take(message: Message) -> None:
            try:
                record = decode(ServiceRecord, message.data)
            except ProtocolError:
                self._connection.metrics.refuse("history", "unreadable record")
            else:
                records[record.version] = record  # it may come again

        async with self._readers:
            await replay.read(
                self._connection,
                f"KV_{bucket}",
                f"$KV.{bucket}.{service}",
                take,
                timeout=_HISTORY_PATIENCE,
            )
        entries = reports.history(records[version] for version in sorted(records))

        def cut(count: int) -> HistoryResponse:
            omitted = len(entries) - count
            return HistoryResponse(service=service, entries=entries[omitted:], omitted=omitted)

        return self._fitting(cut, len(entries))

    async def _plan(self, message: Message) -> Reply:
        request = decode(PlanRequest, message.data)
        asked = AdmissionRequest(
            request=ScaleRequest(service=request.service, replicas=request.replicas),
            host=self._host,
            at=self._clock(),
        )
        plan = reports.plan(asked, self._fleet.state)
        lines = len(plan.slots) + len(plan.hosts)
        return self._fitting(lambda count: _shortened(plan, count), lines)

    def _fitting(self, cut: Callable[[int], Answer], count: int) -> Reply:
        """The reply with as many of `count` items as the server lets through."""
        limit = self._connection.max_payload - _HEADER_ROOM
        data = encode(cut(count))
        while len(data) > limit and count:
            count = min(count - 1, count * limit // len(data))
            data = encode(cut(count))
        return Reply(data=data)


def _refused(response: Answer) -> Reply:
    return Reply(data=encode(response), outcome="refused", error=response.error or "")


def _no_hosts(error: str) -> HostsResponse:
    return HostsResponse(total=0, hosts=[], error=error)


def _no_services(error: str) -> ServicesResponse:
    return ServicesResponse(total=0, services=[], error=error)


def _not_done(error: str) -> AdminResponse:
    return AdminResponse(done=False, error=error)


def _no_history(error: str) -> HistoryResponse:
    return HistoryResponse(service="", entries=[], error=error)


def _no_plan(error: str) -> PlanResponse:
    return PlanResponse(
        service="",
        replicas=0,
        accepted=False,
        before=0,
        target=0,
        slots=[],
        hosts=[],
        error=error,
    )


def _shortened(plan: PlanResponse, count: int) -> PlanResponse:
    """The plan with `count` lines, of which the hosts' come first: they say why."""
    hosts = plan.hosts[:count]
    slots = plan.slots[: count - len(hosts)]
    omitted = len(plan.hosts) + len(plan.slots) - len(hosts) - len(slots)
    return replace(plan, hosts=hosts, slots=slots, omitted=omitted)
