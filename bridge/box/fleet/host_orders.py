"""Storing the orders of operators: cordon, drain, uncordon, rebalance, restart.

An order that is in force already is accepted again; a refusal changes nothing. The planner and the
rollout of every Box act on orders, from the records alone.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import partial
from typing import Final

from msgspec.structs import replace

from bridge.admin_protocol import AdminRequest, AdminResponse, Move, Verb
from bridge.box.fleet.decisions import Decisions
from bridge.box.fleet.view import FleetView
from bridge.box.scheduler import rollout
from bridge.box.scheduler.drain_forecast import room_lacking
from bridge.box.scheduler.rebalance import balance, with_moves
from bridge.box.scheduler.reports import names
from bridge.box.scheduler.restart import is_repeated, restarted_slots, with_restart
from bridge.box.state.fleet_state import FleetState
from bridge.box.state.records import Decision, HostOrder, ServiceRecord
from bridge.errors import Conflict
from bridge.reply_codes import Refusal, ReplyCode
from bridge.subjects import check_name, cordon_key

_PATIENCE: Final = 2.0  # seconds for which an order may lose write conflicts

_Decide = Callable[[FleetState], HostOrder | None]
"""The order that a host should have, None to leave the current one. Raises Refusal. Pure."""


class HostOrders:
    """See the module. `host` is this host, which decides."""

    def __init__(
        self, fleet: FleetView, decisions: Decisions, host: str, clock: Callable[[], datetime]
    ) -> None:
        self._fleet = fleet
        self._decisions = decisions
        self._host = host
        self._clock = clock
        self._turn = asyncio.Lock()

    async def carry_out(self, request: AdminRequest, requester: str = "") -> AdminResponse:
        """Write the records that an order of the NATS user `requester` needs.

        Raises Refusal, NameRefused, NoReply if it is unknown whether the order was stored, and
        other BusErrors.
        """
        if request.verb is Verb.REBALANCE:
            return await self._rebalance(request, requester)
        if request.verb is Verb.RESTART:
            return await self._restart(request, requester)
        check_name("host", request.host)
        state = self._fleet.state
        in_advance = request.verb is Verb.CORDON and request.force
        if not in_advance and request.host not in (known := names(state)):
            listed = ", ".join(known[:20]) + (", …" if len(known) > 20 else "")
            why = (
                f"unknown host {request.host!r}: known are {listed or 'none'}; cordon with force "
                "(--force) keeps instances off a host before it joins"
            )
            raise Refusal(ReplyCode.UNKNOWN_HOST, why)
        if request.verb is Verb.UNCORDON:
            return await self._uncordon(request.host, requester)
        return await self._order(request, requester)

    async def _order(self, request: AdminRequest, requester: str) -> AdminResponse:
        """Cordon or drain."""
        at, host, drain = self._clock(), request.host, request.verb is Verb.DRAIN
        affected = self._fleet.state.used.get(host, 0)

        def decide(fleet: FleetState) -> HostOrder | None:
            order = _next_order(request, fleet, at)
            return order and replace(order, requester=requester)

        await self._put(host, decide)
        if drain and not await self._resume_rollouts(host):
            why = f"{host} is being drained, but a stopped rollout could not be resumed"
            raise Refusal(ReplyCode.BUSY, why)
        return AdminResponse(done=True, affected=affected)

    async def _put(self, host: str, decide: _Decide) -> None:
        """Store the order that `decide` gives, if it gives one. Raises Refusal."""
        orders, key = self._fleet.orders, cordon_key(host)
        loop = asyncio.get_running_loop()
        async with self._turn:
            deadline = loop.time() + _PATIENCE
            while loop.time() < deadline:
                seq = orders.seq
                self._check_readable(host)
                order = decide(self._fleet.state)
                if order is None:
                    return
                try:
                    await orders.compare_and_set(key, self._with_version(key, order), seq)
                except Conflict as exc:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout_at(deadline):
                            await orders.wait_for(seq + 1 if exc.last is None else exc.last)
                else:
                    return
        raise Refusal(ReplyCode.BUSY, "other orders kept coming first; ask again")

    async def _uncordon(self, host: str, requester: str) -> AdminResponse:
        orders, key = self._fleet.orders, cordon_key(host)
        self._check_readable(host)
        if host in self._fleet.state.orders:
            lifted = HostOrder(lifted=True, at=self._clock(), requester=requester)
            try:
                await orders.update(key, self._with_version(key, lifted), orders.revision(key))
            except Conflict as exc:
                why = f"another order for {host} came first; ask again"
                raise Refusal(ReplyCode.BUSY, why) from exc
        return AdminResponse(done=True)

    def _check_readable(self, host: str) -> None:
        """Raise Refusal if the order for `host` must not be overwritten."""
        orders, key = self._fleet.orders, cordon_key(host)
        if key not in orders.unreadable:
            return
        why = (
            f"the order for {host!r} cannot be read by Box {self._host}: a newer Box gave it, or "
            "it is damaged, and counts as a cordon; bring this Box up to date, or delete the key "
            f"{key} from the bucket {orders.bucket}"
        )
        raise Refusal(ReplyCode.UNREADABLE_RECORD, why)

    def _with_version(self, key: str, order: HostOrder) -> HostOrder:
        """The order with the version that follows the stored one."""
        stored = self._fleet.orders.get(key)
        return replace(order, version=stored.value.version + 1 if stored else 1)

    async def _resume_rollouts(self, host: str) -> bool:
        """Resume the stopped rollouts of services with slots on `host`; whether none is left."""
        state = self._fleet.state
        services = list(state.slot_counts(host))

        def resume(service: str) -> Callable[[FleetState], ServiceRecord | None]:
            why = f"the drain of {host}"
            return lambda fleet: rollout.resume(
                service, fleet, why, at=self._clock(), host=self._host
            )

        for service in services:
            if resume(service)(state) is not None:
                await self._decisions.amend(service, resume(service))
        return not any(resume(service)(state) for service in services)

    async def _restart(self, request: AdminRequest, requester: str) -> AdminResponse:
        service = check_name("service", request.service)
        record = self._fleet.state.services.get(service)
        if record is None:
            why = f"{service!r} was never scaled: see `box-bridge ps`"
            raise Refusal(ReplyCode.UNKNOWN_SERVICE, why)
        if is_repeated(record, request.request_id):
            return AdminResponse(done=True, affected=len(record.restarts))
        slots = restarted_slots(service, self._fleet.state, request.instance_id)
        if not slots:
            what = request.instance_id or f"an instance of {service}"
            why = f"{what} does not live: its host makes a new one by itself"
            raise Refusal(ReplyCode.INVALID_REQUEST, why)
        decision = Decision(
            at=self._clock(),
            host=self._host,
            replicas=0,
            request_id=request.request_id,
            requester=requester,
        )
        restarting = partial(
            with_restart, service, instance_id=request.instance_id, decision=decision
        )
        if not await self._decisions.amend(service, restarting):
            why = f"the record of {service} changed in between, or could not be stored: ask again"
            raise Refusal(ReplyCode.BUSY, why)
        return AdminResponse(done=True, affected=len(slots))

    async def _rebalance(self, request: AdminRequest, requester: str) -> AdminResponse:
        state = self._fleet.state
        if request.service and request.service not in state.services:
            check_name("service", request.service)
            why = f"{request.service!r} was never scaled: see `box-bridge ps`"
            raise Refusal(ReplyCode.UNKNOWN_SERVICE, why)
        plan = balance(state, only=request.service)
        response = AdminResponse(done=True, moves=plan.moves, waiting=plan.waiting, more=plan.more)
        if request.dry_run:
            return response
        decision = Decision(
            at=self._clock(),
            host=self._host,
            replicas=0,
            request_id=request.request_id,
            requester=requester,
        )
        failed = await self._write_moves(plan.moves, decision)
        moves = [move for move in plan.moves if move.service not in failed]
        return replace(response, moves=moves, waiting={**plan.waiting, **failed})

    async def _write_moves(self, moves: list[Move], decision: Decision) -> Mapping[str, str]:
        """Write the moves into the service records; the reason for each service that failed."""
        failed = {}
        for service, own in _by_service(moves).items():
            if not await self._decisions.amend(service, _move_change(service, own, decision)):
                failed[service] = (
                    "its record changed in between, or could not be stored (then the log of "
                    f"{self._host} has the reason): ask again"
                )
        return failed


def _next_order(request: AdminRequest, fleet: FleetState, at: datetime) -> HostOrder | None:
    """The order that a host should have after a cordon or a drain; None if it has it already.

    A host that is being drained is cordoned too, and stays cordoned. A new reason replaces the old
    one. Raises Refusal if the other hosts have no room for the instances that must move.
    """
    before = fleet.orders.get(request.host)
    cordon = request.verb is Verb.CORDON
    if before is not None and (cordon or _covers(before, request)):
        new_reason = request.reason not in ("", before.reason)
        return replace(before, reason=request.reason, at=at) if new_reason else None
    if cordon:
        return HostOrder(reason=request.reason, at=at)
    if not request.force and (short := room_lacking(request.host, fleet, at=at)):
        listed = ", ".join(f"{count} of {service}" for service, count in sorted(short.items()))
        why = (
            f"the other hosts have no room for what {request.host} runs ({listed}): add a host, "
            "scale down, or drain with force (--force), which ends instances that find no room"
        )
        raise Refusal(ReplyCode.CAPACITY_EXCEEDED, why)
    reason = request.reason or (before.reason if before else "")
    return HostOrder(draining=True, forced=request.force, reason=reason, at=at)


def _covers(order: HostOrder, request: AdminRequest) -> bool:
    return order.draining and (order.forced or not request.force)


def _move_change(
    service: str, moves: list[Move], decision: Decision
) -> Callable[[FleetState], ServiceRecord | None]:
    return lambda fleet: with_moves(service, fleet, moves, decision)


def _by_service(moves: Iterable[Move]) -> dict[str, list[Move]]:
    by_service: dict[str, list[Move]] = {}
    for move in moves:
        by_service.setdefault(move.service, []).append(move)
    return by_service
