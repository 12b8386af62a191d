"""A clock that stands still until something is due, and coroutines that run on it.

One heap of events, ordered by their time and then by when they were scheduled; one source of
chance. So the same seed gives the same run, event by event.
"""

from __future__ import annotations

import heapq
import random
import types
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

START: Final = datetime(2026, 11, 21, 8, tzinfo=UTC)

Resume = Callable[..., None]
"""Called once: `resume(value)`, or `resume(error=…)`."""


class Process:
    """What coroutines belong to: a life of a Box. It can be frozen, and ends once."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.frozen = False
        self.backlog: list[Callable[[], None]] = []


class Kernel:
    """See the module. `current` is the process whose coroutine runs just now."""

    def __init__(self, seed: int, *, trace: bool = False) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.events = 0
        self.current: Process | None = None
        self._last: deque[tuple[float, str | Callable[[], str]]] = deque(maxlen=40)
        self._trace = trace
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0

    def monotonic(self) -> float:
        """Seconds since the start."""
        return self.now

    def wall(self) -> datetime:
        """What every clock on every wall says."""
        return START + timedelta(seconds=self.now)

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        """Call `call` so many seconds from now."""
        self._number += 1
        heapq.heappush(self._heap, (self.now + seconds, self._number, call))

    def run_until(self, moment: float) -> None:
        """Let everything happen that is due up to `moment`."""
        while self._heap and self._heap[0][0] <= moment:
            self.now, _, call = heapq.heappop(self._heap)
            self.events += 1
            call()
        self.now = moment

    def note(self, what: str | Callable[[], str]) -> None:
        """Record a step, or a function that describes it, for the report of a failure."""
        self._last.append((self.now, what))
        if self._trace:
            print(self.last[-1], flush=True)

    @property
    def last(self) -> list[str]:
        """The last things that happened."""
        told = ((at, what if isinstance(what, str) else what()) for at, what in self._last)
        return [f"{at:9.3f}  {what}" for at, what in told]

    def spawn(self, owner: Process, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` for as long as its owner lives; while that is frozen it stands still."""

        def step(value: object = None, error: BaseException | None = None) -> None:
            if not owner.alive:
                work.close()
                return
            if owner.frozen:
                owner.backlog.append(lambda: step(value, error))
                return
            before, self.current = self.current, owner
            try:
                arm = work.throw(error) if error is not None else work.send(value)
            except StopIteration:
                return
            finally:
                self.current = before
            arm(step)

        step()

    def act(self, owner: Process, call: Callable[[], None]) -> None:
        """Call `call` as `owner`: not at all once it has ended, later while it is frozen."""
        if owner.frozen:
            owner.backlog.append(lambda: self.act(owner, call))
        elif owner.alive:
            call()

    def thaw(self, owner: Process) -> None:
        """`owner` goes on, with all that has come meanwhile."""
        owner.frozen = False
        backlog, owner.backlog = owner.backlog, []
        for call in backlog:
            call()

    async def sleep(self, seconds: float) -> None:
        """Wait so long."""
        await suspend(lambda resume: self.after(seconds, resume))

    def delay(self, least: float, most: float) -> float:
        """Some seconds, log-uniform."""
        return float(least * (most / least) ** self.random.random())

    def log_uniform(self, least: int, most: int) -> int:
        """Some number, log-uniform: as many between 1 and 10 as between 10 and 100."""
        return min(most, int(least * ((most + 1) / least) ** self.random.random()))


@types.coroutine
def suspend(arm: Callable[[Resume], None]) -> Generator[Callable[[Resume], None], Any, Any]:
    """Wait until the resume that `arm` is given is called; gives its value or raises its error."""
    return (yield arm)
