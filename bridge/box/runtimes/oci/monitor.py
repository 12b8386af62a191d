"""Looking after the containers of one Box: which have ended, what they use, what is nobody's.

One call serves them all, however many there are. While the engine does not answer, `problem` says
so and nothing is concluded.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Protocol, TypeVar

import msgspec
from msgspec.structs import replace

from bridge.box.runtimes.base import Usage
from bridge.box.runtimes.oci import commands as words
from bridge.box.runtimes.oci import parsing as answers
from bridge.box.runtimes.oci.container import Container
from bridge.box.runtimes.oci.subprocess_calls import CallResult, EngineCalls
from bridge.errors import EngineSilent, InstanceError
from bridge.tasks import task_scope

_log = logging.getLogger(__name__)

_EVERY: Final = 2.0  # seconds between lists
_WHILE_BLIND: Final = 1.0  # seconds, while the engine is silent or the kernel cannot tell of ends
_SAMPLE_LEAST: Final = 1.0  # seconds between samples: each costs an engine a moment of work
_DOUBT: Final = 0.1  # seconds before asking again about what the kernel knows to be dead
_DOUBT_PATIENCE: Final = 5.0  # seconds for the engine to notice, too; then it never will

T = TypeVar("T")


class ContainerActions(Protocol):
    """What is done with containers on account of what was seen."""

    async def conclude(self, container: Container, state: answers.ContainerState | None) -> None:
        """It has ended."""

    async def remove(self, names: list[str]) -> None:
        """They are nobody's. Raises EngineSilent."""


class ContainerMonitor:
    """See the module. `containers` are those of this Box; it reads them, never writes."""

    def __init__(
        self,
        calls: EngineCalls,
        host_id: str,
        containers: Mapping[str, Container],
        hands: ContainerActions,
        sample: float,
    ) -> None:
        self._calls = calls
        self._kind = calls.engine.kind
        self._host_id = host_id
        self._containers = containers
        self._hands = hands
        self._sample_every = max(sample, _SAMPLE_LEAST)
        self._sample_due = 0.0
        self._list_due = 0.0
        self._wake = asyncio.Event()
        self._strays: set[str] = set()  # that were removed, and not yet told
        self._removing = asyncio.Lock()  # so that who asks is told of what is just being removed
        self._all_known = False
        self._samples: dict[str, tuple[float, answers.ContainerSample]] = {}
        self.usage: dict[str, Usage] = {}
        self.problem = ""

    def suspect(self, container: Container) -> None:
        """Have the engine asked at once whether, and how, the container has ended."""
        container.suspected = True
        if container.is_gone():
            container.patience_ends = asyncio.get_running_loop().time() + _DOUBT_PATIENCE
        self._wake.set()

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await self._until_due()
            try:
                await self._settle()
                await self._take_turns()
            except InstanceError as exc:
                self._note(str(exc))
                await asyncio.sleep(_WHILE_BLIND)

    async def swept(self) -> list[str]:
        """What carried this Box's label and belonged to none of its instances, and was removed
        since the last time. The first call says that the instances of the last life are known by
        now; it looks, and removes, itself.
        """
        if not self._all_known:
            self._all_known = True
            with contextlib.suppress(EngineSilent):  # they are found again
                await self._compare()
        strays, self._strays = self._strays, set()
        return sorted(strays)

    async def listed(self) -> dict[str, bool]:
        """The containers of this Box, by name: whether each runs. Raises EngineSilent."""
        call = words.listing(self._kind, self._host_id)
        return self._read(call, await self._calls.ask(call), answers.listed)

    async def inspect(self, names: Iterable[str]) -> dict[str, answers.ContainerState]:
        """What the engine knows of those of `names` that it has. Raises EngineSilent."""
        names = list(names)
        batches = [names] if self._kind.inspects_many else [[name] for name in names]
        found: dict[str, answers.ContainerState] = {}
        for batch in filter(None, batches):
            call = words.inspect(batch)
            answer = await self._calls.ask(call)
            if answer.ok or not answers.is_missing(answer.err):
                found |= self._read(call, answer, answers.states)
            else:  # those that are there were told all the same
                found |= self._read(call, replace(answer, code=0), answers.states)
        return found

    # ── inside ───────────────────────────────────────────────────────────────────────────

    def _read(self, call: list[str], answer: CallResult, read: Callable[[bytes], T]) -> T:
        """The answer's meaning; what fails or cannot be read is an engine that is of no use."""
        if not answer.ok:
            raise EngineSilent(self._calls.engine.name, call[0], answers.complaint(answer.err))
        try:
            return read(answer.out)
        except (ValueError, msgspec.MsgspecError) as exc:
            raise EngineSilent(
                self._calls.engine.name, call[0], f"its answer cannot be read: {exc}"
            ) from exc

    async def _until_due(self) -> None:
        loop = asyncio.get_running_loop()
        due = min(self._list_due, self._sample_due)
        if any(container.suspected for container in self._containers.values()):
            due = min(due, loop.time() + _DOUBT)
        try:
            async with asyncio.timeout_at(due):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()

    async def _settle(self) -> None:
        """Ask about the containers that may have ended, all in one call."""
        suspects = [item for item in self._containers.values() if item.suspected and item.off]
        states = await self.inspect([container.name for container in suspects])
        now = asyncio.get_running_loop().time()
        async with task_scope() as tasks:
            ends = []
            for container in suspects:
                state = states.get(container.name)
                lost_sight = container.is_gone() and now > container.patience_ends
                if state is None or not state.running or lost_sight:
                    ends.append(tasks.create_task(self._hands.conclude(container, state)))
                elif not container.is_gone():
                    container.suspected = False
            if ends:
                await asyncio.wait(ends)

    async def _take_turns(self) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() >= self._list_due:
            blind = any(item.off and not item.pid for item in self._containers.values())
            self._list_due = loop.time() + (_WHILE_BLIND if blind else _EVERY)
            await self._compare()
            self._note("")
        if loop.time() >= self._sample_due:
            self._sample_due = loop.time() + self._sample_every
            if any(container.off for container in self._containers.values()):
                await self._sample()

    async def _compare(self) -> None:
        """Compare the engine's list with what should be there, and remove what should not."""
        async with self._removing:
            await self._remove_unknown()

    async def _remove_unknown(self) -> None:
        before = set(self._containers)
        listed = await self.listed()
        for container in self._containers.values():
            if container.off and not listed.get(container.name):
                self.suspect(container)
        # What was known a moment ago, or is by now, was not left behind.
        strays = sorted(listed.keys() - before - self._containers.keys())
        if strays and self._all_known:
            await self._hands.remove(strays)
            self._strays |= set(strays)

    async def _sample(self) -> None:
        answer = await self._calls.ask(words.sampling(self._kind))
        if not answer.ok:
            return  # one that ended meanwhile spoils it for all: the next sample tells anew
        now = asyncio.get_running_loop().time()
        found = {
            name: (now, sample)
            for name, sample in self._read(["stats"], answer, answers.samples).items()
            if name in self._containers
        }
        self.usage = {
            name: answers.usage(self._samples.get(name), one) for name, one in found.items()
        }
        self._samples = found

    def _note(self, problem: str) -> None:
        if problem and not self.problem:
            _log.error("%s; instances stay as they are", problem)
        elif self.problem and not problem:
            _log.info("%s answers again", self._calls.engine.name)
        self.problem = problem
