"""Carrying out what an operator orders: cordon, drain, uncordon, rebalance.

An order that stands already is fine; a refusal changes nothing. What an order sets going is done
by every Box's planner and by the rollout, from the records alone.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Final

from msgspec.structs import replace

from bridge.admin_protocol import AdminRequest, AdminResponse, Move, Verb
from bridge.box.fleet.decisions import Decisions
from bridge.box.fleet.view import FleetView
from bridge.box.scheduler import rollout
from bridge.box.scheduler.drain_forecast import lacking
from bridge.box.scheduler.rebalance import balance, marked
from bridge.box.scheduler.reports import names
from bridge.box.state.fleet_state import FleetState
from bridge.box.state.records import Decision, HostOrder, ServiceRecord
from bridge.errors import Conflict
from bridge.reply_codes import Refusal, ReplyCode
from bridge.subjects import check_name, cordon_key

_PATIENCE: Final = 2.0  # seconds for which an order may lose races

_Decide = Callable[[FleetState], HostOrder | None]
"""The order that a host should have; None to leave it. Raises Refusal. Pure."""


class HostOrders:
    """See the module. `host` is the one that decides."""

    def __init__(
        self, fleet: FleetView, decisions: Decisions, host: str, clock: Callable[[], datetime]
    ) -> None:
        self._fleet = fleet
        self._decisions = decisions
        self._host = host
        self._clock = clock
        self._turn = asyncio.Lock()

    async def obey(self, asked: AdminRequest) -> AdminResponse:
        """Carry out an order as far as records go. Raises Refusal, NameRefused, NoReply if
        it is unknown whether the order was stored, and other BusErrors.
        """
        if asked.verb is Verb.REBALANCE:
            return await self._rebalance(asked)
        check_name("host", asked.host)
        state = self._fleet.state
        kept_away = asked.verb is Verb.CORDON and asked.force
        if not kept_away and asked.host not in (known := names(state)):
            listed = ", ".join(known[:20]) + (", …" if len(known) > 20 else "")
            why = (
                f"unknown host {asked.host!r}: known are {listed or 'none'}; cordon with force "
                "(--force) keeps instances off one that is yet to come"
            )
            raise Refusal(ReplyCode.UNKNOWN_HOST, why)
        if asked.verb is Verb.UNCORDON:
            return await self._uncordon(asked.host)
        return await self._order(asked)

    async def _order(self, asked: AdminRequest) -> AdminResponse:
        """Cordon or drain."""
        at, host, drains = self._clock(), asked.host, asked.verb is Verb.DRAIN
        affected = self._fleet.state.used.get(host, 0)
        await self._put(host, lambda fleet: _ordered(asked, fleet, at))
        if drains and not await self._resume(host):
            why = f"{host} is being drained, but a stopped rollout could not be resumed"
            raise Refusal(ReplyCode.BUSY, why)
        return AdminResponse(done=True, affected=affected)

    async def _put(self, host: str, decide: _Decide) -> None:
        """Store the order that `decide` names. Raises Refusal."""
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
                    await orders.compare_and_set(key, self._next(key, order), seq)
                except Conflict as exc:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout_at(deadline):
                            await orders.wait_for(seq + 1 if exc.last is None else exc.last)
                else:
                    return
        raise Refusal(ReplyCode.BUSY, "other orders kept coming first; ask again")

    async def _uncordon(self, host: str) -> AdminResponse:
        orders, key = self._fleet.orders, cordon_key(host)
        self._check_readable(host)
        if host in self._fleet.state.orders:
            lifted = HostOrder(lifted=True, at=self._clock())
            try:
                await orders.update(key, self._next(key, lifted), orders.revision(key))
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

    def _next(self, key: str, order: HostOrder) -> HostOrder:
        """The order, as the next one for its host."""
        there = self._fleet.orders.get(key)
        return replace(order, version=there.value.version + 1 if there else 1)

    async def _resume(self, host: str) -> bool:
        """Have rollouts that stopped go on, of the services that have slots on `host`; whether all
        do that could be written.
        """
        state = self._fleet.state
        services = list(state.slot_counts(host))

        def stopped(service: str) -> Callable[[FleetState], ServiceRecord | None]:
            why = f"the drain of {host}"
            return lambda fleet: rollout.resumed(
                service, fleet, why, at=self._clock(), host=self._host
            )

        for service in services:
            if stopped(service)(state) is not None:
                await self._decisions.amend(service, stopped(service))
        return not any(stopped(service)(state) for service in services)

    async def _rebalance(self, asked: AdminRequest) -> AdminResponse:
        state = self._fleet.state
        if asked.service and asked.service not in state.services:
            check_name("service", asked.service)
            why = f"nothing was ever asked for {asked.service!r}: see `box-bridge ps`"
            raise Refusal(ReplyCode.UNKNOWN_SERVICE, why)
        found = balance(state, only=asked.service)
        response = AdminResponse(
            done=True, moves=found.moves, waiting=found.waiting, more=found.more
        )
        if asked.dry_run:
            return response
        missed = await self._mark(found.moves, asked.request_id)
        kept = [move for move in found.moves if move.service not in missed]
        waiting = {**found.waiting, **missed}
        return replace(response, moves=kept, waiting=waiting)

    async def _mark(self, moves: list[Move], request_id: str) -> Mapping[str, str]:
        """Write the moves into their services' records; why not, for those that could not be."""
        decision = Decision(at=self._clock(), host=self._host, replicas=0, request_id=request_id)
        missed = {}
        for service, own in _by_service(moves).items():
            change = _marking(service, own, decision)
            if not await self._decisions.amend(service, change):
                missed[service] = (
                    "it changed meanwhile, or was not stored, as the log of "
                    f"{self._host} says then: ask again"
                )
        return missed


def _ordered(asked: AdminRequest, fleet: FleetState, at: datetime) -> HostOrder | None:
    """The order that a host should have after a cordon or a drain; None if it has it already.
    Raises Refusal if the other hosts have no room for what must move.

    A host that is being drained is cordoned, and stays so; a new reason takes the place of the old.
    """
    before = fleet.orders.get(asked.host)
    cordon = asked.verb is Verb.CORDON
    if before is not None and (cordon or _drains_as(before, asked)):
        new_reason = asked.reason not in ("", before.reason)
        return replace(before, reason=asked.reason, at=at) if new_reason else None
    if cordon:
        return HostOrder(reason=asked.reason, at=at)
    if not asked.force and (short := lacking(asked.host, fleet, at=at)):
        listed = ", ".join(f"{count} of {service}" for service, count in sorted(short.items()))
        why = (
            f"the other hosts have no room for what {asked.host} runs ({listed}): add a host, "
            "scale down, or drain with force (--force), which ends what has nowhere to go"
        )
        raise Refusal(ReplyCode.CAPACITY_EXCEEDED, why)
    reason = asked.reason or (before.reason if before else "")
    return HostOrder(draining=True, forced=asked.force, reason=reason, at=at)


def _drains_as(order: HostOrder, asked: AdminRequest) -> bool:
    return order.draining and (order.forced or not asked.force)


def _marking(
    service: str, moves: list[Move], decision: Decision
) -> Callable[[FleetState], ServiceRecord | None]:
    return lambda fleet: marked(service, fleet, moves, decision)


def _by_service(moves: Iterable[Move]) -> dict[str, list[Move]]:
    found: dict[str, list[Move]] = {}
    for move in moves:
        found.setdefault(move.service, []).append(move)
    return found
