"""The client for operators: lists, cordons, drains and rebalances hosts, and explains decisions.

Any Box answers for the fleet. An order lasts until it is lifted: it stays when its client ends, or
gives up waiting. Orders can be repeated: one that is already in force is not an error.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Final, TypeVar

from msgspec import Struct

from bridge.admin_protocol import (
    AdminRequest,
    AdminResponse,
    HistoryRequest,
    HistoryResponse,
    Host,
    HostsRequest,
    HostsResponse,
    Move,
    PlanRequest,
    PlanResponse,
    Service,
    ServicesRequest,
    ServicesResponse,
    Verb,
)
from bridge.bus.core.connection import Connection
from bridge.gateway.client import ScaleClient
from bridge.gateway.errors import DrainStuck, DrainTimeout, OrderRefused, ScaleError, WaitTimeout
from bridge.gateway.requests import RetriedRequest, new_request_id, outages_ignored
from bridge.log_protocol import LogsRequest, LogsResponse
from bridge.protocol import encode, format_time, now
from bridge.settings import NatsConfig
from bridge.subjects import EXPIRES_AT, check_name

_PAGE: Final = 1000  # hosts, or services, in one answer at most
_TIMEOUT: Final = 10.0  # seconds for an answer
_QUERY_TIMEOUT: Final = 5.0  # seconds for one query while waiting
_POLL: Final = 0.5  # seconds between queries
_STUCK_QUERIES: Final = 4  # consecutive ones: the view of the Box that answers may be behind

T = TypeVar(
    "T",
    HostsResponse,
    ServicesResponse,
    AdminResponse,
    HistoryResponse,
    PlanResponse,
    LogsResponse,
)

DrainProgress = Callable[[int, int, Host], None]
"""Called after each query with the instances that have left a host, all of them, and the host."""

MoveProgress = Callable[[int, int], None]
"""Called after each query with the number of instances that have moved, and of all moves."""


class Operator:
    """Orders and queries about the fleet's hosts, over one connection.

    Each raises NoBoxError, RequestTimeout (the outcome of an order is unknown; retry it),
    OrderRefused (nothing was changed; it says what to do), and NameRefused for an invalid name.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._subjects = connection.subjects

    @classmethod
    @contextlib.asynccontextmanager
    async def connect(
        cls, url: str | None = None, *, settings: NatsConfig | None = None, name: str = "operator"
    ) -> AsyncIterator[Operator]:
        """An operator with its own connection: see `ScaleClient.connect`."""
        async with ScaleClient.connect(url, settings=settings, name=name) as client:
            yield cls(client.connection)

    async def hosts(self, host: str = "", *, timeout: float = _TIMEOUT) -> list[Host]:
        """The live hosts, the dead ones that still have slots, and those with an order, by name;
        with `host` only that one, if there is one. `timeout` in seconds, for each page of them.
        """
        hosts: list[Host] = []
        while True:
            after = hosts[-1].name if hosts else ""
            request = HostsRequest(host=host, offset=len(hosts), limit=_PAGE, after=after)
            page = await self._ask(self._subjects.hosts, request, HostsResponse, timeout)
            hosts += page.hosts
            if not page.hosts or not _more(page, len(hosts)):
                return hosts

    async def services(self, service: str = "", *, timeout: float = _TIMEOUT) -> list[Service]:
        """The services that have a target or instances, or that a host offers, by name: how many
        instances serve, what is missing and why; with `service` only that one, if there is one.
        `timeout` in seconds, for each page of them.
        """
        services: list[Service] = []
        while True:
            after = services[-1].name if services else ""
            request = ServicesRequest(
                service=service, offset=len(services), limit=_PAGE, after=after
            )
            page = await self._ask(self._subjects.services, request, ServicesResponse, timeout)
            services += page.services
            if not page.services or not _more(page, len(services)):
                return services

    async def cordon(self, host: str, *, reason: str = "", force: bool = False) -> None:
        """Place no further slots on `host`; its instances stay. With `force` it may be a host that
        no Box has seen.
        """
        order = AdminRequest(verb=Verb.CORDON, host=_name(host), reason=reason, force=force)
        await self._order(order)

    async def uncordon(self, host: str) -> None:
        """Lift the order for `host`, whether it is a cordon or a drain."""
        await self._order(AdminRequest(verb=Verb.UNCORDON, host=_name(host)))

    async def drain(
        self,
        host: str,
        *,
        force: bool = False,
        reason: str = "",
        wait: bool = True,
        timeout: float = 600.0,
        progress: DrainProgress | None = None,
    ) -> int:
        """Replace every instance on `host` elsewhere, each Ready before the old one drains; returns
        how many there were. The host stays cordoned until `uncordon`.

        With `force` instances without room elsewhere end as well, and stay desired. With `wait` the
        call returns when the host is empty, as `emptied` does.
        """
        order = AdminRequest(verb=Verb.DRAIN, host=_name(host), force=force, reason=reason)
        response = await self._order(order)
        if wait:
            await self.emptied(host, of=response.affected, timeout=timeout, progress=progress)
        return response.affected

    async def emptied(
        self,
        host: str,
        *,
        of: int,
        timeout: float = 600.0,
        progress: DrainProgress | None = None,
    ) -> None:
        """Return when `host` is empty. It had `of` instances when its drain was ordered.

        Outages are ignored until the timeout. Raises DrainStuck if replacements keep failing, and
        DrainTimeout after `timeout` seconds. The order stays in force then; another drain resumes.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        stuck_queries, left, short = 0, of, dict[str, int]()
        while loop.time() < deadline:
            with outages_ignored():
                hosts = await self.hosts(host, timeout=min(_QUERY_TIMEOUT, deadline - loop.time()))
                report = hosts[0] if hosts else Host(name=host, live=False, used=0, services={})
                left, short = report.used, report.short
                if progress is not None:
                    progress(max(of - left, 0), max(of, left), report)
                if not left:
                    return
                stuck_queries = stuck_queries + 1 if report.stuck else 0
                if stuck_queries >= _STUCK_QUERIES:
                    raise DrainStuck(host, left, report.stuck)
            await asyncio.sleep(min(_POLL, max(0.0, deadline - loop.time())))
        raise DrainTimeout(host, left, timeout, short)

    async def rebalance(
        self,
        service: str = "",
        *,
        dry_run: bool = False,
        wait: bool = False,
        timeout: float = 600.0,
        progress: MoveProgress | None = None,
    ) -> AdminResponse:
        """Even out the hosts with the fewest moves, each replaced before it drains; with `service`
        only of that one. Returns the moves. With `wait` the call returns when they are made, as
        `moved` does.
        """
        service = check_name("service", service) if service else ""
        order = AdminRequest(
            verb=Verb.REBALANCE, service=service, dry_run=dry_run, request_id=new_request_id()
        )
        response = await self._order(order)
        if wait and not dry_run:
            await self.moved(response.moves, timeout=timeout, progress=progress)
        return response

    async def restart(
        self,
        service: str,
        instance_id: str = "",
        *,
        wait: bool = False,
        timeout: float = 600.0,
        progress: MoveProgress | None = None,
    ) -> int:
        """Replace the living instances of `service`, or one of them, by others of the same config;
        returns how many. Each replacement is Ready before its instance drains, unless there is no
        room for both. With `wait` the call returns when that is done, as `moved` does.
        """
        check_name("service", service)
        seen = await ScaleClient(self.connection).observe(service)
        order = AdminRequest(
            verb=Verb.RESTART,
            service=service,
            instance_id=check_name("instance id", instance_id) if instance_id else "",
            request_id=new_request_id(),
        )
        response = await self._order(order)
        if wait:
            old = [
                Move(service=service, slot=0, instance_id=info.id, source="", target="")
                for info in seen.instances
                if instance_id in ("", info.id)
            ]
            await self.moved(old, timeout=timeout, progress=progress)
        return response.affected

    async def moved(
        self,
        moves: list[Move],
        *,
        timeout: float = 600.0,
        progress: MoveProgress | None = None,
    ) -> None:
        """Return when the `moves` of a rebalance are made.

        Outages are ignored until the timeout. Raises WaitTimeout after `timeout` seconds, and
        ScaleError if replacements keep failing.
        """
        deadline = asyncio.get_running_loop().time() + timeout
        for name in sorted({move.service for move in moves}):
            await self._moved(name, moves, timeout, deadline, progress)

    async def history(self, service: str, *, timeout: float = _TIMEOUT) -> HistoryResponse:
        """The decisions on `service`, oldest first: the last 64, and before them those that
        answered the last 24 requests, if they are older.
        """
        request = HistoryRequest(service=check_name("service", service))
        return await self._ask(self._subjects.history, request, HistoryResponse, timeout)

    async def plan(self, service: str, replicas: int, *, timeout: float = _TIMEOUT) -> PlanResponse:
        """The effect that scaling `service` to `replicas` would have, and the reasons; nothing is
        changed. A request that would be refused or capped has a plan too.
        """
        request = PlanRequest(service=check_name("service", service), replicas=replicas)
        query = self._request(self._subjects.plan, request, timeout)
        response = await query.response(self.connection, PlanResponse)
        if response.error is not None and not response.service:
            raise OrderRefused(response, query.code)
        return response

    async def logs(
        self, host: str, request: LogsRequest, *, timeout: float = _QUERY_TIMEOUT
    ) -> LogsResponse:
        """A page of the logs of the instances on `host`. Raises OrderRefused with the reason."""
        return await self._ask(self._subjects.logs(host), request, LogsResponse, timeout)

    # ── requests ───────────────────────────────────────────────────────────────────────────

    async def _order(self, request: AdminRequest) -> AdminResponse:
        changes = not request.dry_run
        return await self._ask(
            self._subjects.admin, request, AdminResponse, _TIMEOUT, changes=changes
        )

    async def _ask(
        self,
        subject: str,
        request: Struct,
        cls: type[T],
        timeout: float,
        *,
        changes: bool = False,
    ) -> T:
        query = self._request(subject, request, timeout, changes=changes)
        response = await query.response(self.connection, cls)
        if response.error is not None:
            raise OrderRefused(response, query.code)
        return response

    def _request(
        self, subject: str, request: Struct, timeout: float, *, changes: bool = False
    ) -> RetriedRequest:
        deadline = asyncio.get_running_loop().time() + timeout
        headers = {EXPIRES_AT: format_time(now() + timedelta(seconds=timeout))}
        return RetriedRequest(subject, encode(request), deadline, timeout, headers, changes=changes)

    # ── waiting ──────────────────────────────────────────────────────────────────────────

    async def _moved(
        self,
        service: str,
        moves: list[Move],
        limit: float,
        deadline: float,
        progress: MoveProgress | None,
    ) -> None:
        """Return when the old instances of `service` have ended, and its rollout is done."""
        loop, client = asyncio.get_running_loop(), ScaleClient(self.connection)
        old = {move.instance_id for move in moves if move.service == service}
        left, stuck_queries = len(old), 0
        while loop.time() < deadline:
            with outages_ignored():
                timeout = min(_QUERY_TIMEOUT, deadline - loop.time())
                seen = await client.observe(service, timeout=timeout)
                left = sum(info.id in old for info in seen.instances)
                if progress is not None:
                    progress(len(old) - left, len(old))
                if not left and service not in seen.rolling:
                    return
                stuck_queries = stuck_queries + 1 if service in seen.stopped else 0
                if stuck_queries >= _STUCK_QUERIES:
                    raise ScaleError(f"{service}: {seen.stopped[service]}")
            await asyncio.sleep(min(_POLL, max(0.0, deadline - loop.time())))
        raise WaitTimeout(service, len(old) - left, len(old), limit)


def _more(page: HostsResponse | ServicesResponse, count: int) -> bool:
    """Whether further pages follow, after `count` items. A Box of an older version does not say."""
    return count < page.total if page.more is None else page.more


def _name(host: str) -> str:
    return check_name("host", host)
