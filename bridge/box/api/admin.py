"""The endpoints for operators: `box.hosts`, `box.services`, `box.admin`, `box.history` and
`box.plan`.

Any Box answers for the fleet. An order is written by compare-and-set over all orders, so that two
drains never count on the same room. If this Box does not know the outcome of a request it sends no
reply: the client retries, and an order that exists already counts as carried out.
"""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_right
from collections.abc import Awaitable, Callable
from typing import Final

from msgspec.structs import replace

from bridge.admin_protocol import (
    AdminRequest,
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
from bridge.box.api import replies
from bridge.box.api.context import ApiContext
from bridge.box.api.replies import fitted, refusal_of
from bridge.box.api.request_headers import expiry
from bridge.box.fleet.host_orders import HostOrders
from bridge.box.scheduler import reports
from bridge.box.scheduler.admission import AdmissionRequest, decide, expired
from bridge.box.state.records import ServiceRecord, check_service
from bridge.bus.core.message import Message
from bridge.bus.jetstream import replay
from bridge.bus.service.endpoint import Endpoint, Refuse, Reply
from bridge.errors import BusError, NoReply, ProtocolError
from bridge.protocol import ScaleRequest, decode, encode
from bridge.reply_codes import Refusal, ReplyCode
from bridge.subjects import REPLY_CODE, check_name

_log = logging.getLogger(__name__)

_PAGE: Final = 1000  # hosts, or services, in one reply at most
_READERS: Final = 4  # histories read at once: each makes a consumer
_HISTORY_PATIENCE: Final = 5.0  # seconds

_Handler = Callable[[Message], Awaitable[Reply]]


class AdminApi:
    """Answers operators from the fleet's state."""

    def __init__(self, api: ApiContext) -> None:
        self._api = api
        self._orders = HostOrders(api.fleet, api.decisions, api.host, api.clock)
        self._readers = asyncio.Semaphore(_READERS)
        self._turn = asyncio.Lock()

    def endpoints(self) -> list[Endpoint]:
        """The endpoints, for a Responder."""
        subjects = self._api.connection.subjects
        return [
            self._endpoint("hosts", subjects.hosts, self._hosts, replies.refused_hosts),
            self._endpoint("services", subjects.services, self._services, replies.refused_services),
            self._endpoint("admin", subjects.admin, self._admin, replies.refused_order),
            self._endpoint("history", subjects.history, self._history, replies.refused_history),
            self._endpoint("plan", subjects.plan, self._plan, replies.refused_plan),
        ]

    def _endpoint(self, name: str, subject: str, answer: _Handler, refuse: Refuse) -> Endpoint:
        async def handle(message: Message) -> Reply | None:
            # An answer may take tenths of a second: the loop goes on between two of them.
            async with self._turn:
                await asyncio.sleep(0)
            try:
                self._check(message)
                return await answer(message)
            except NoReply:
                return None
            except (ProtocolError, BusError, Refusal) as exc:
                return refuse(refusal_of(exc))

        queue = self._api.connection.subjects.queue
        return Endpoint(name=name, subject=subject, queue=queue, handle=handle, refuse=refuse)

    def _check(self, message: Message) -> None:
        """Raise Refusal if the request has expired, or this Box must not answer now."""
        at, expires_at = self._api.clock(), expiry(message)
        if expires_at is not None and expires_at <= at:
            raise expired(expires_at, at, self._api.host)
        self._api.check_ready()

    # ── the answers ──────────────────────────────────────────────────────────────────────

    async def _hosts(self, message: Message) -> Reply:
        request = decode(HostsRequest, message.data or b"{}")
        state = self._api.fleet.state
        names = [name for name in reports.names(state) if request.host in ("", name)]
        page = _page(names, request)
        hosts = reports.hosts(state, names[page], at=self._api.clock())

        def first(count: int) -> HostsResponse:
            more = page.start + count < len(names)
            return HostsResponse(total=len(names), hosts=hosts[:count], more=more)

        return self._reply(first, len(hosts))

    async def _services(self, message: Message) -> Reply:
        request = decode(ServicesRequest, message.data or b"{}")
        state = self._api.fleet.state
        names = [name for name in reports.service_names(state) if request.service in ("", name)]
        page = _page(names, request)
        services = reports.services(state, names[page], at=self._api.clock())

        def first(count: int) -> ServicesResponse:
            more = page.start + count < len(names)
            return ServicesResponse(total=len(names), services=services[:count], more=more)

        return self._reply(first, len(services))

    async def _admin(self, message: Message) -> Reply:
        request = decode(AdminRequest, message.data)
        requester = self._api.requester(message)
        response = await self._orders.carry_out(request, requester)
        if requester and not request.dry_run:
            about = request.host or request.service or "all services"
            _log.info("%s of %s is carried out for %s", request.verb.value, about, requester)
        return Reply(data=encode(response))

    async def _history(self, message: Message) -> Reply:
        service = decode(HistoryRequest, message.data).service
        check_name("service", service)
        if service not in self._api.fleet.state.services:
            why = f"{service!r} was never scaled"
            raise Refusal(ReplyCode.UNKNOWN_SERVICE, why)
        bucket = self._api.connection.subjects.services_bucket
        records: dict[int, ServiceRecord] = {}

        def take(message: Message) -> None:
            try:
                record = decode(ServiceRecord, message.data)
                check_service(service, record)
            except ProtocolError:
                self._api.connection.metrics.refuse("history", "unreadable record")
            else:
                records[record.version] = record  # a record may be delivered twice

        async with self._readers:
            await replay.read(
                self._api.connection,
                f"KV_{bucket}",
                f"$KV.{bucket}.{service}",
                take,
                timeout=_HISTORY_PATIENCE,
            )
        entries = reports.history(records[version] for version in sorted(records))

        def last(count: int) -> HistoryResponse:
            omitted = len(entries) - count
            return HistoryResponse(service=service, entries=entries[omitted:], omitted=omitted)

        return self._reply(last, len(entries))

    async def _plan(self, message: Message) -> Reply:
        question = decode(PlanRequest, message.data)
        request = AdmissionRequest(
            request=ScaleRequest(service=question.service, replicas=question.replicas),
            host=self._api.host,
            at=self._api.clock(),
        )
        admission = decide(request, self._api.fleet.state)
        plan = reports.plan(request, admission, self._api.fleet.state)
        reply = self._reply(
            lambda count: _shortened(plan, count), len(plan.slots) + len(plan.hosts)
        )
        code = admission.code
        return reply if code is None else replace(reply, headers={REPLY_CODE: code})

    def _reply(self, shortened: Callable[[int], Answer], count: int) -> Reply:
        data, _ = fitted(shortened, count, self._api.connection.max_payload)
        return Reply(data=data)


def _page(names: list[str], request: HostsRequest | ServicesRequest) -> slice:
    """The part of the sorted `names` that is on the requested page."""
    start = bisect_right(names, request.after) if request.after else request.offset
    return slice(start, start + min(request.limit, _PAGE))


def _shortened(plan: PlanResponse, count: int) -> PlanResponse:
    """The plan with `count` lines, of which the hosts' come first: they give the reasons."""
    hosts = plan.hosts[:count]
    slots = plan.slots[: count - len(hosts)]
    omitted = len(plan.hosts) + len(plan.slots) - len(hosts) - len(slots)
    return replace(plan, hosts=hosts, slots=slots, omitted=omitted)
