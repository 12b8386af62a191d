"""Monitors the containers of one Box: which have ended, what they use, which belong to no instance.

One call serves all containers, however many there are. While the engine does not answer, `problem`
says so and every instance stays as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Protocol, TypeVar

from msgspec.structs import replace

from bridge.box.runtimes.base import Usage
from bridge.box.runtimes.foreign_errors import FOREIGN
from bridge.box.runtimes.oci import commands, parsing
from bridge.box.runtimes.oci.container import Container
from bridge.box.runtimes.oci.subprocess_calls import CallResult, EngineCalls
from bridge.errors import EngineSilent, InstanceError
from bridge.tasks import task_scope

_log = logging.getLogger(__name__)

_LIST_EVERY: Final = 2.0  # seconds
_LIST_EVERY_BLIND: Final = 1.0  # seconds, while the kernel cannot report ends
_RETRY: Final = 1.0  # seconds, while the engine does not answer
_MIN_SAMPLE: Final = 1.0  # seconds between samples: each costs an engine a moment of work
_ASK_AGAIN: Final = 0.1  # seconds between questions about a process that the kernel reports dead
_MAX_DOUBT: Final = 5.0  # seconds for the engine to notice such an end; after that it never does

T = TypeVar("T")


class ContainerActions(Protocol):
    """What the monitor has done with containers, after what it observed."""

    async def conclude(self, container: Container, state: parsing.ContainerState | None) -> None:
        """The container has ended."""

    async def remove(self, names: list[str]) -> None:
        """These containers belong to no instance. Raises EngineSilent."""


class ContainerMonitor:
    """See the module. `containers` are those of this Box; the monitor never changes the mapping."""

    def __init__(
        self,
        calls: EngineCalls,
        host_id: str,
        containers: Mapping[str, Container],
        actions: ContainerActions,
        sample: float,
        address: str = "",
    ) -> None:
        self._calls = calls
        self._kind = calls.engine.kind
        self._host_id = host_id
        self._containers = containers
        self._actions = actions
        self._address = address
        self._sample_every = max(sample, _MIN_SAMPLE)
        self._sample_due = 0.0
        self._list_due = 0.0
        self._wake = asyncio.Event()
        self._strays: set[str] = set()  # removed, and not yet collected
        self._removing = asyncio.Lock()  # `collect_strays` includes what is just being removed
        self._may_remove = False
        self._samples: dict[str, tuple[float, parsing.ContainerSample]] = {}
        self.usage: dict[str, Usage] = {}
        self.problem = ""

    def suspect(self, container: Container) -> None:
        """Ask the engine in the next turn whether, and how, the container has ended."""
        container.suspected = True
        if container.has_died():
            container.doubt_ends = asyncio.get_running_loop().time() + _MAX_DOUBT
        self._wake.set()

    async def run(self) -> None:
        """Monitor until cancelled."""
        while True:
            await self._wait_due()
            try:
                await self._check_suspects()
                await self._list_and_sample()
            except InstanceError as exc:
                self._set_problem(str(exc))
                await asyncio.sleep(_RETRY)

    async def collect_strays(self) -> list[str]:
        """The containers without an instance that were removed since the last call.

        The first call tells the monitor that the instances from before the restart are known by
        now: from then on it may remove strays. That call lists, and removes, by itself.
        """
        if not self._may_remove:
            self._may_remove = True
            with contextlib.suppress(EngineSilent):  # the next list finds them again
                await self._compare()
        strays, self._strays = self._strays, set()
        return sorted(strays)

    async def list_containers(self) -> dict[str, bool]:
        """The containers of this Box, by name: whether each runs. Raises EngineSilent."""
        call = commands.list_containers(self._kind, self._host_id)
        return self._parse(call, await self._calls.call(call), parsing.parse_list)

    async def inspect(self, names: Iterable[str]) -> dict[str, parsing.ContainerState]:
        """The state of those of `names` that the engine has. Raises EngineSilent."""
        names = list(names)
        batches = [names] if self._kind.inspects_many else [[name] for name in names]
        states: dict[str, parsing.ContainerState] = {}
        for batch in filter(None, batches):
            call = commands.inspect(batch)
            result = await self._calls.call(call)
            if not result.ok and parsing.is_missing(result.err):
                result = replace(result, code=0)  # the output has those that are there
            states |= self._parse(
                call, result, lambda data: parsing.parse_inspect(data, self._address)
            )
        return states

    # ── inside ───────────────────────────────────────────────────────────────────────────

    def _parse(self, call: list[str], result: CallResult, parse: Callable[[bytes], T]) -> T:
        """The parsed output. Raises EngineSilent for a failed call, or output of another shape."""
        if not result.ok:
            raise EngineSilent(self._calls.engine.name, call[0], parsing.error_line(result.err))
        try:
            return parse(result.out)
        except FOREIGN as exc:
            raise EngineSilent(
                self._calls.engine.name, call[0], f"its answer cannot be read: {exc}"
            ) from exc

    async def _wait_due(self) -> None:
        loop = asyncio.get_running_loop()
        due = min(self._list_due, self._sample_due)
        if any(container.suspected for container in self._containers.values()):
            due = min(due, loop.time() + _ASK_AGAIN)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(due):
                await self._wake.wait()
        self._wake.clear()

    async def _check_suspects(self) -> None:
        """Ask about all containers that may have ended, in one call."""
        suspects = [
            item for item in self._containers.values() if item.suspected and item.is_started
        ]
        states = await self.inspect([container.name for container in suspects])
        now = asyncio.get_running_loop().time()
        async with task_scope() as tasks:
            ends = []
            for container in suspects:
                state = states.get(container.name)
                never_noticed = container.has_died() and now > container.doubt_ends
                if state is None or not state.running or never_noticed:
                    ends.append(tasks.create_task(self._actions.conclude(container, state)))
                elif not container.has_died():
                    container.suspected = False
            if ends:
                await asyncio.wait(ends)

    async def _list_and_sample(self) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() >= self._list_due:
            blind = any(item.is_started and not item.pid for item in self._containers.values())
            self._list_due = loop.time() + (_LIST_EVERY_BLIND if blind else _LIST_EVERY)
            await self._compare()
            self._set_problem("")
        if loop.time() >= self._sample_due:
            self._sample_due = loop.time() + self._sample_every
            if any(container.is_started for container in self._containers.values()):
                await self._sample()

    async def _compare(self) -> None:
        """Compare the engine's list with the known containers, and remove the strays."""
        async with self._removing:
            before = set(self._containers)
            running = await self.list_containers()
            for container in self._containers.values():
                if container.is_started and not running.get(container.name):
                    self.suspect(container)
            # A container that was known before the call, or is known now, is no stray.
            strays = sorted(running.keys() - before - self._containers.keys())
            if strays and self._may_remove:
                await self._actions.remove(strays)
                self._strays |= set(strays)

    async def _sample(self) -> None:
        call = commands.stats(self._kind)
        result = await self._calls.call(call)
        if not result.ok:
            return  # a container that ends meanwhile fails the call for all: the next one is due
        now = asyncio.get_running_loop().time()
        samples = {
            name: (now, sample)
            for name, sample in self._parse(call, result, parsing.parse_stats).items()
            if name in self._containers
        }
        self.usage = {
            name: parsing.compute_usage(self._samples.get(name), sample)
            for name, sample in samples.items()
        }
        self._samples = samples

    def _set_problem(self, problem: str) -> None:
        if problem and not self.problem:
            _log.error("%s; instances stay as they are", problem)
        elif self.problem and not problem:
            _log.info("%s answers again", self._calls.engine.name)
        self.problem = problem
