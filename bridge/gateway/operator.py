"""Looking after the hosts: seeing them, emptying them, spreading what they run, and asking why.

Any Box answers for all. An order lasts until it is taken back, whatever becomes of who gave it: a
wait that is given up leaves it in place. Orders can be repeated: what stands already is fine.
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
from bridge.protocol import encode, format_time, now
from bridge.settings import NatsConfig
from bridge.subjects import EXPIRES_AT, check_name

_PATIENCE: Final = 10.0  # seconds for an answer
_LOOK: Final = 5.0  # seconds for one look while waiting
_POLL: Final = 0.5  # seconds between looks
_SURE: Final = 4  # looks in a row: the view of the Box that answers may be a moment behind

T = TypeVar("T", HostsResponse, ServicesResponse, AdminResponse, HistoryResponse, PlanResponse)

DrainProgress = Callable[[int, int, Host], None]
"""Told how many of how many instances have left a host, and how that stands, at each look."""

MoveProgress = Callable[[int, int], None]
"""Told how many of how many instances have moved, at each look."""


class Operator:
    """Orders and questions about the fleet's hosts, over one connection.

    Each raises NoBoxError, RequestTimeout (the outcome of an order is unknown; ask again),
    OrderRefused (nothing was changed; it says what to do), and NameRefused for what can be no name.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._subjects = connection.subjects

    @classmethod
    @contextlib.asynccontextmanager
    async def connect(
        cls, url: str | None = None, *, settings: NatsConfig | None = None, name: str = "operator"
    ) -> AsyncIterator[Operator]:
        """An operator of its own connection: as `ScaleClient.connect`."""
        async with ScaleClient.connect(url, settings=settings, name=name) as client:
            yield cls(client.connection)

    async def hosts(self, host: str = "", *, timeout: float = _PATIENCE) -> list[Host]:
        """The live hosts, those that are dead and still hold slots, and those under an order, by
        name; with `host` that one alone, if it is there. `timeout` in seconds.
        """
        found: list[Host] = []
        while True:
            request = HostsRequest(host=host, offset=len(found))
            page = await self._ask(self._subjects.hosts, request, HostsResponse, timeout)
            found += page.hosts
            if len(found) >= page.total or not page.hosts:
                return found

    async def services(self, service: str = "", *, timeout: float = _PATIENCE) -> list[Service]:
        """The services that are wanted, run or offered, by name: how many of each serve, and what
        is missing and why; with `service` that one alone, if it is there. `timeout` in seconds.
        """
        found: list[Service] = []
        while True:
            request = ServicesRequest(service=service, offset=len(found))
            page = await self._ask(self._subjects.services, request, ServicesResponse, timeout)
            found += page.services
            if len(found) >= page.total or not page.services:
                return found

    async def cordon(self, host: str, *, reason: str = "", force: bool = False) -> None:
        """Have nothing placed on `host` from now on; what it runs stays. With `force` that may be a
        host that is yet to come.
        """
        order = AdminRequest(verb=Verb.CORDON, host=_name(host), reason=reason, force=force)
        await self._order(order)

    async def uncordon(self, host: str) -> None:
        """Take back the order for `host`, be it a cordon or a drain."""
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
        """Have every instance on `host` replaced elsewhere, and Ready there before it drains;
        returns how many there were. The host is cordoned until `uncordon`.

        With `force` instances that have nowhere to go end all the same, and stay desired. With
        `wait` it returns when the host is empty, as `emptied` does.
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
        """Return when `host` is empty, which had `of` instances when its drain was ordered.

        That nobody answers for a while, or can be asked, is looked past. Raises DrainStuck when
        replacements keep failing, DrainTimeout after `timeout` seconds; the order stands then, and
        draining again goes on.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        stuck_looks, left, short = 0, of, dict[str, int]()
        while loop.time() < deadline:
            with outages_ignored():
                found = await self.hosts(host, timeout=min(_LOOK, deadline - loop.time()))
                there = found[0] if found else Host(name=host, live=False, used=0, services={})
                left, short = there.used, there.short
                if progress is not None:
                    progress(max(of - left, 0), max(of, left), there)
                if not left:
                    return
                stuck_looks = stuck_looks + 1 if there.stuck else 0
                if stuck_looks >= _SURE:
                    raise DrainStuck(host, left, there.stuck)
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
        of that one alone. Returns the moves. With `wait` it returns when they are made, as `moved`
        does.
        """
        service = check_name("service", service) if service else ""
        order = AdminRequest(
            verb=Verb.REBALANCE, service=service, dry_run=dry_run, request_id=new_request_id()
        )
        response = await self._order(order)
        if wait and not dry_run:
            await self.moved(response.moves, timeout=timeout, progress=progress)
        return response

    async def moved(
        self,
        moves: list[Move],
        *,
        timeout: float = 600.0,
        progress: MoveProgress | None = None,
    ) -> None:
        """Return when the `moves` of a rebalance are made.

        That nobody answers for a while, or can be asked, is looked past. Raises WaitTimeout after
        `timeout` seconds, ScaleError when replacements keep failing.
        """
        deadline = asyncio.get_running_loop().time() + timeout
        for name in sorted({move.service for move in moves}):
            await self._moved(name, moves, timeout, deadline, progress)

    async def history(self, service: str, *, timeout: float = _PATIENCE) -> HistoryResponse:
        """The decisions on `service`, oldest first: the last 64, and before them those of the last
        24 requests that are older.
        """
        request = HistoryRequest(service=check_name("service", service))
        return await self._ask(self._subjects.history, request, HistoryResponse, timeout)

    async def plan(
        self, service: str, replicas: int, *, timeout: float = _PATIENCE
    ) -> PlanResponse:
        """What scaling `service` to `replicas` would do, and why; nothing is changed. A plan that
        would be refused or capped is an answer like any other.
        """
        request = PlanRequest(service=check_name("service", service), replicas=replicas)
        question = self._question(self._subjects.plan, request, timeout)
        response = await question.response(self.connection, PlanResponse)
        if response.error is not None and not response.service:
            raise OrderRefused(response, question.code)
        return response

    # ── asking ───────────────────────────────────────────────────────────────────────────

    async def _order(self, request: AdminRequest) -> AdminResponse:
        changes = not request.dry_run
        return await self._ask(
            self._subjects.admin, request, AdminResponse, _PATIENCE, changes=changes
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
        question = self._question(subject, request, timeout, changes=changes)
        response = await question.response(self.connection, cls)
        if response.error is not None:
            raise OrderRefused(response, question.code)
        return response

    def _question(
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
        """Return when the old instances of `service` are gone, and so is its rollout."""
        loop, client = asyncio.get_running_loop(), ScaleClient(self.connection)
        old = {move.instance_id for move in moves if move.service == service}
        left, stuck_looks = len(old), 0
        while loop.time() < deadline:
            with outages_ignored():
                seen = await client.observe(service, timeout=min(_LOOK, deadline - loop.time()))
                left = sum(info.id in old for info in seen.instances)
                if progress is not None:
                    progress(len(old) - left, len(old))
                if not left and service not in seen.rolling:
                    return
                stuck_looks = stuck_looks + 1 if service in seen.stopped else 0
                if stuck_looks >= _SURE:
                    raise ScaleError(f"{service}: {seen.stopped[service]}")
            await asyncio.sleep(min(_POLL, max(0.0, deadline - loop.time())))
        raise WaitTimeout(service, len(old) - left, len(old), limit)


def _name(host: str) -> str:
    return check_name("host", host)
