"""Changing the desired state: decide, compare-and-set, and decide again after a write conflict.

Each process makes one attempt at a time. After a conflict it waits until its view includes the
winning write. That keeps many Boxes that decide at once from starving one another.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from typing import Final

from msgspec.structs import replace

from bridge.box.fleet.view import FleetView
from bridge.box.scheduler.admission import Admission, AdmissionRequest, decide
from bridge.box.state.fleet_state import FleetState
from bridge.box.state.records import ServiceRecord
from bridge.errors import BusError, Conflict, CutOff, NoReply, TooLarge
from bridge.reply_codes import Refusal, ReplyCode

_log = logging.getLogger(__name__)

_NAMES: Final = 1000  # services whose failure is remembered

Amend = Callable[[FleetState], ServiceRecord | None]
"""The record that a service should have, or None to leave it. Pure."""


class Decisions:
    """Writes `box_services`.

    A decision may lose write conflicts for `patience` seconds. `blocker` gives the reason why the
    view of this Box may not be current.
    """

    def __init__(
        self,
        fleet: FleetView,
        patience: float,
        clock: Callable[[], datetime],
        blocker: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._fleet = fleet
        self._patience = patience
        self._clock = clock
        self._blocker = blocker
        self._turn = asyncio.Lock()
        self._turns = 0  # held and awaited: a lock with waiters is free for a moment
        self._failing: set[str] = set()  # services whose record is too large; "" for all services

    def answer(self, request: AdmissionRequest) -> Admission | None:
        """The admission of a request that changes nothing. None if a record must be written, or
        while an earlier request is being decided: then `decide` it. Raises Refusal.

        Most requests of a fleet repeat its current state. They need no turn, no task and no wait.
        """
        if self._turns:
            return None
        admission = self._decide(request)
        return admission if admission.record is None else None

    async def decide(self, request: AdmissionRequest) -> Admission:
        """The admission of a request, after its record is stored.

        Raises Refusal, NoReply if it is unknown whether the record was stored (the client
        must retry with the same request_id), and other BusErrors if it was not.
        """
        service = request.request.service
        try:
            async with self._my_turn() as deadline:
                request = replace(request, at=self._clock())  # it may have expired in the queue
                while True:
                    admission = self._decide(request)
                    if admission.record is None:
                        return admission
                    if await self._write(service, admission.record, deadline):
                        return admission
        except TimeoutError as exc:
            why = "other decisions kept coming first; ask again"
            raise Refusal(ReplyCode.BUSY, why) from exc
        except (NoReply, CutOff):
            raise
        except BusError as exc:
            self._log_failure(service, exc)
            raise

    def _decide(self, request: AdmissionRequest) -> Admission:
        """The admission as of now. Raises Refusal if the view is not current any more."""
        if blocker := self._blocker():
            raise Refusal(ReplyCode.NOT_READY, blocker)
        if (service := request.request.service) in self._fleet.held:
            why = f"the store has lost the record of {service}, and a Box writes it back"
            raise Refusal(ReplyCode.NOT_READY, why)
        return decide(request, self._fleet.state)

    async def amend(self, service: str, change: Amend) -> bool:
        """Apply `change` to the service's record; whether it gave a record and that was stored.

        A failure is not retried here: the next change or tick comes back to it.
        """
        try:
            async with self._my_turn() as deadline:
                while not self._blocker() and (record := change(self._fleet.state)) is not None:
                    if await self._write(service, record, deadline):
                        return True
        except (TimeoutError, NoReply, CutOff):
            pass  # other Boxes were faster, or the bus is out, which the connection logs
        except BusError as exc:
            self._log_failure(service, exc)
        return False

    def _log_failure(self, service: str, exc: BusError) -> None:
        """Log an error once per outage, and once per service whose record is too large.

        Clients that are refused may retry a hundred times a second.
        """
        about = service if isinstance(exc, TooLarge) else ""
        level = logging.DEBUG if about in self._failing else logging.ERROR
        _log.log(level, "a decision on %s could not be stored: %s", service, exc)
        if len(self._failing) >= _NAMES:  # requests may name ever new services
            self._failing.clear()
        self._failing.add(about)

    @contextlib.asynccontextmanager
    async def _my_turn(self) -> AsyncIterator[float]:
        """Exclude other decisions of this process, in order of arrival; gives the deadline.

        The deadline is in the loop's time. It does not include the wait for this Box's own earlier
        decisions, because that is no write conflict.
        """
        self._turns += 1
        try:
            async with self._turn:
                yield asyncio.get_running_loop().time() + self._patience
        finally:
            self._turns -= 1

    async def _write(self, service: str, record: ServiceRecord, deadline: float) -> bool:
        """Whether `record` is stored; after a conflict the view includes the winning write.

        The deadline bounds the wait for the view, not the write: its outcome must become known.
        """
        services = self._fleet.services
        seq = services.seq
        try:
            await services.compare_and_set(service, record, seq)
        except Conflict as exc:
            async with asyncio.timeout_at(deadline):
                await services.wait_for(seq + 1 if exc.last is None else exc.last)
                return False
        except TooLarge as exc:
            what = f"the record of {service}, with {len(record.slots)} slots,"
            less = "ask for fewer instances or a smaller config"
            raise TooLarge(exc.subject, exc.problem, what=what, less=less) from exc
        self._failing -= {service, ""}
        return True
