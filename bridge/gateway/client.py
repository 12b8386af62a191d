"""The client that scales services and watches their instances.

Every request carries an id and an expiry, and is sent again with the same id every second until
it is answered: a Box that froze with the first copy does not matter, and the request has one
effect however often it is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Final

from msgspec.structs import replace

from bridge.bus.core.connection import Connection
from bridge.bus.jetstream.start_position import Begin, Start
from bridge.config import load_nats
from bridge.gateway.errors import RequestTimeout, ScaleCapped, ScaleError, ScaleRefused, WaitTimeout
from bridge.gateway.events.filter import Services
from bridge.gateway.events.stream import EventStream
from bridge.gateway.goal import Goal, GoalWait, serving, settled
from bridge.gateway.requests import RetriedRequest, new_request_id, outages_ignored
from bridge.gateway.routes.watch import RouteWatch
from bridge.protocol import (
    InstancesRequest,
    InstancesResponse,
    ScaleConfig,
    ScaleRequest,
    ScaleResponse,
    encode,
    format_time,
    now,
)
from bridge.reply_codes import ReplyCode
from bridge.settings import NatsConfig
from bridge.subjects import (
    CONFIG_MODE,
    CONFIG_REPLACE,
    DRY_RUN,
    EXPIRES_AT,
    RECORD_VERSION,
    check_name,
)
from bridge.tasks import task_scope

_PAGE: Final = 10_000  # instances in one answer; a Box lists as many as `max_payload` allows
_FIRST_QUERY: Final = 0.02  # seconds after an event: the records follow the events closely
_MAX_PAUSE: Final = 1.0  # seconds between queries while no event comes
_QUERY_TIMEOUT: Final = 5.0  # seconds for one query of the instances

Progress = Callable[[InstancesResponse], None]
"""Called with the instances after each query of a wait."""


class ScaleClient:
    """Scales services and watches their instances, over one connection.

    `async with ScaleClient.connect() as client:` connects as the environment says (``NATS_URL``
    and the other variables); an existing `Connection` can be shared by passing it in.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._subjects = connection.subjects

    @classmethod
    @contextlib.asynccontextmanager
    async def connect(
        cls, url: str | None = None, *, settings: NatsConfig | None = None, name: str = "gateway"
    ) -> AsyncIterator[ScaleClient]:
        """A client with its own connection. `url` takes precedence over the environment, `settings`
        over both.

        Raises ConnectFailed if there is no server, ConfigError if the settings are wrong.
        """
        chosen = settings or load_nats(flags={"url": url})
        async with Connection.open(chosen, name=f"box-bridge {name}") as connection:
            yield cls(connection)

    async def scale(
        self,
        service: str,
        replicas: int,
        *,
        config: ScaleConfig | None = None,
        replace_config: bool = False,
        dry_run: bool = False,
        wait: bool = False,
        timeout: float | None = None,
        request_id: str | None = None,
        progress: Progress | None = None,
    ) -> ScaleResponse:
        """Set the target of `service` to `replicas` instances; returns the Box's answer.

        `config` overrides the service's configuration, with `replace_config` all of it. With
        `wait` the call returns when the instances are Ready, gateways route to them, and the others
        have ended and are withdrawn; a NATS user that may not read routes waits for the first and
        the third. `timeout` bounds the whole call, in seconds: 10 by default, 120 with `wait`.
        `request_id` repeats an earlier request.

        Raises NoBoxError, RequestTimeout (the outcome is unknown), ScaleRefused (nothing was
        changed), ScaleCapped (a lower target was set; there is no wait for it), WaitTimeout, and
        NameRefused for a service that can have no subject.
        """
        limit = timeout if timeout is not None else 120.0 if wait else 10.0
        scale = ScaleRequest(
            service=check_name("service", service),
            replicas=replicas,
            config=config or ScaleConfig(),
            request_id=request_id or new_request_id(),
        )
        headers = {EXPIRES_AT: format_time(now() + timedelta(seconds=limit))}
        if replace_config:
            headers[CONFIG_MODE] = CONFIG_REPLACE
        if dry_run:
            headers[DRY_RUN] = "true"
        deadline = asyncio.get_running_loop().time() + limit
        request = RetriedRequest(
            self._subjects.scale, encode(scale), deadline, limit, headers, scale.request_id
        )
        response = await request.response(self.connection, ScaleResponse)
        if not response.accepted:
            capped = request.code == ReplyCode.CAPPED
            error = ScaleCapped if capped else ScaleRefused
            raise error(response, request.code)
        if wait and not dry_run:
            goal = settled(
                response,
                all_replaced=replace_config or config is not None,
                version=request.reply_headers.get(RECORD_VERSION, ""),
            )
            await self._wait(service, goal, limit, deadline, progress)
        return response

    async def observe(
        self, service: str = "", *, timeout: float = _QUERY_TIMEOUT
    ) -> InstancesResponse:
        """All instances of `service`, or of every service, oldest first, in their current state.
        `timeout` in seconds, for each page of some thousands of them.

        Raises NoBoxError, RequestTimeout, and ScaleError if a Box refuses the query.
        """
        return await self._query(service, timeout)

    async def _query(self, service: str, timeout: float, version: str = "") -> InstancesResponse:
        """All instances, from a Box that has seen this `version` of the service's record."""
        request = InstancesRequest(service=service, limit=_PAGE)
        first = page = await self._page(request, timeout, version)
        instances, hosts, ranks = list(page.instances), dict(page.hosts), dict(page.ranks)
        while page.instances and _more(page, len(instances)):
            request = replace(request, offset=len(instances), after=page.next or "")
            page = await self._page(request, timeout, version)
            instances += page.instances
            hosts |= page.hosts
            ranks |= page.ranks
        return replace(
            first,
            total=len(instances),
            instances=instances,
            hosts=hosts,
            ranks=ranks,
            next=None,
        )

    def events(
        self, service: Services = None, *, start: Begin = Start.NOW
    ) -> contextlib.AbstractAsyncContextManager[EventStream]:
        """The events of one service, of several, or of all, from `start` on: see `EventStream`."""
        return EventStream.open(self.connection, service, start=start)

    async def wait_ready(
        self,
        service: str,
        n: int,
        *,
        timeout: float = 120.0,
        progress: Progress | None = None,
    ) -> InstancesResponse:
        """Return when at least `n` instances of `service` are Ready or Busy and gateways route to
        them.

        Raises NoBoxError, and WaitTimeout with what is missing and the newest failure.
        """
        deadline = asyncio.get_running_loop().time() + timeout

        def enough(seen: InstancesResponse) -> bool:
            return len(serving(seen)) >= n

        return await self._wait(service, Goal(count=n, reached=enough), timeout, deadline, progress)

    # ── requests ───────────────────────────────────────────────────────────────────────────

    async def _page(self, query: InstancesRequest, limit: float, version: str) -> InstancesResponse:
        deadline = asyncio.get_running_loop().time() + limit
        headers = {RECORD_VERSION: version} if version else None
        request = RetriedRequest(
            self._subjects.instances, encode(query), deadline, limit, headers, changes=False
        )
        page = await request.response(self.connection, InstancesResponse)
        if page.error is not None:
            raise ScaleError(page.error, request.code)
        return page

    # ── waiting ──────────────────────────────────────────────────────────────────────────

    async def _wait(
        self,
        service: str,
        goal: Goal,
        limit: float,
        deadline: float,
        progress: Progress | None,
    ) -> InstancesResponse:
        """Query the instances, and again after each event, until the goal is reached."""
        wait = GoalWait(service, goal)
        listener = await self.connection.listen(self._subjects.events(service), wait.take_event)
        routes = RouteWatch(self.connection, service, wait.changed.set)
        loop, pause = asyncio.get_running_loop(), _FIRST_QUERY
        try:
            async with task_scope() as tasks:
                tasks.create_task(routes.run(), name="routes")
                while (left := deadline - loop.time()) > 0:
                    pause = _FIRST_QUERY if wait.changed.is_set() else min(pause * 2, _MAX_PAUSE)
                    wait.changed.clear()
                    with (
                        outages_ignored() if goal.accepted else contextlib.suppress(RequestTimeout)
                    ):
                        seen = await self._query(service, min(_QUERY_TIMEOUT, left), goal.version)
                        if progress is not None:
                            progress(seen)
                        if wait.is_over(seen, routes):
                            return seen
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout_at(min(deadline, loop.time() + pause)):
                            await wait.changed.wait()
            raise WaitTimeout(service, wait.ready, goal.count, limit, wait.last_failure, wait.lacks)
        finally:
            await listener.close()


def _more(page: InstancesResponse, count: int) -> bool:
    """Whether further pages follow, after `count` instances. A Box of an older version does not
    say.
    """
    return count < page.total if page.next is None else bool(page.next)
