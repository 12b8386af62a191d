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
from bridge.box.scheduler.admission import AdmissionRequest, decide, refuse
from bridge.box.state.fleet_state import FleetState
from bridge.box.state.records import ServiceRecord
from bridge.errors import BusError, Conflict, CutOff, NoReply, TooLarge
from bridge.protocol import ScaleResponse

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

    def answer(self, asked: AdmissionRequest) -> ScaleResponse | None:
        """The answer to a request that changes nothing; None where something is to be written, or
        where one that came earlier is being decided: then `decide` it.

        Most of a fleet's requests repeat what is so. They need no turn, no task and no wait.
        """
        if self._turns:
            return None
        if why := self._stale():
            return self._refused(asked, f"not ready: {why}; ask again")
        verdict = decide(asked, self._fleet.state)
        return verdict.response if verdict.record is None else None

    async def decide(self, asked: AdmissionRequest) -> ScaleResponse | None:
        """The answer to a request, once what it decides is stored.

        None means that the fate of the write is unknown: nothing may be answered, and the caller
        asks again with the same request_id.
        """
        request = asked.request
        try:
            async with self._my_turn() as deadline:
                asked = replace(asked, at=self._clock())  # it may have expired in the queue
                while True:
                    if why := self._stale():  # since the request was taken
                        return self._refused(asked, f"not ready: {why}; ask again")
                    verdict = decide(asked, self._fleet.state)
                    if verdict.record is None:
                        return verdict.response
                    if await self._write(request.service, verdict.record, deadline):
                        return verdict.response
        except TimeoutError:
            return self._refused(asked, "Busy: other decisions kept coming first; ask again")
        except NoReply:
            return None
        except CutOff:
            return self._refused(asked, "not ready: this Box is cut off from NATS; ask again")
        except BusError as exc:  # of all others it is known that nothing was stored
            self._tell(request.service, exc)
            return self._refused(asked, f"the fleet's store refused the decision: {exc}")

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

    def _refused(self, asked: AdmissionRequest, error: str) -> ScaleResponse:
        return refuse(asked.request, self._fleet.state, error).response
