"""Changing the desired state: decide, compare-and-set, and again if somebody was faster.

One attempt is under way at a time in each process; who loses a race waits until the view has
caught up with the winner. That is what keeps many Boxes that decide at once from starving.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from datetime import datetime

from msgspec.structs import replace

from bridge.box.fleet.view import FleetView
from bridge.box.scheduler.admission import Admission, AdmissionRequest, decide
from bridge.box.state.fleet_state import FleetState
from bridge.box.state.records import ServiceRecord
from bridge.errors import BusError, Conflict, CutOff, NoReply, TooLarge
from bridge.reply_codes import Refusal, ReplyCode

_log = logging.getLogger(__name__)

Amend = Callable[[FleetState], ServiceRecord | None]
"""The record that a service should have, or None to leave it. Pure."""


class Decisions:
    """Writes `box_services`. `patience` is for how many seconds a decision may lose races, `stale`
    says why what this Box sees is not current, or "".
    """

    def __init__(
        self,
        fleet: FleetView,
        patience: float,
        clock: Callable[[], datetime],
        stale: Callable[[], str] = str,
    ) -> None:
        self._fleet = fleet
        self._patience = patience
        self._clock = clock
        self._stale = stale
        self._turn = asyncio.Lock()
        self._turns = 0  # taken and waited for: a lock with waiters is free for a moment
        self._failing: set[str] = set()  # services whose record is too large; "" if all is refused

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
            self._tell(service, exc)
            raise

    def _decide(self, request: AdmissionRequest) -> Admission:
        """The admission as of now. Raises Refusal if the view is not current any more."""
        if why := self._stale():
            raise Refusal(ReplyCode.NOT_READY, why)
        return decide(request, self._fleet.state)

    async def amend(self, service: str, change: Amend) -> bool:
        """Apply `change` to the service's record; whether there was one and it was stored.

        A failure is left to the next occasion, which comes with the next change or tick.
        """
        try:
            async with self._my_turn() as deadline:
                while not self._stale() and (record := change(self._fleet.state)) is not None:
                    if await self._write(service, record, deadline):
                        return True
        except (TimeoutError, NoReply, CutOff):
            pass  # others were faster, or the bus is out, which the connection tells
        except BusError as exc:
            self._tell(service, exc)
        return False

    def _tell(self, service: str, exc: BusError) -> None:
        """Once for each outage, and for each service whose record has grown too large: whoever was
        refused asks again, a hundred times a second.
        """
        about = service if isinstance(exc, TooLarge) else ""
        level = logging.DEBUG if about in self._failing else logging.ERROR
        _log.log(level, "a decision on %s could not be stored: %s", service, exc)
        self._failing.add(about)

    @contextlib.asynccontextmanager
    async def _my_turn(self) -> AsyncIterator[float]:
        """Alone in this process, in the order of asking, until a deadline in the loop's time.

        Waiting behind this Box's own decisions is no lost race and does not count.
        """
        self._turns += 1
        try:
            async with self._turn:
                yield asyncio.get_running_loop().time() + self._patience
        finally:
            self._turns -= 1

    async def _write(self, service: str, record: ServiceRecord, deadline: float) -> bool:
        """Whether `record` is stored; if somebody was faster, the view has caught up now.

        The deadline bounds the catching up, never the write: its fate must be learned.
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
