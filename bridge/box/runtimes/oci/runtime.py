"""Instances as containers or MicroVMs, by the command line that the engines share.

- What an instance is, the engine knows: it carries labels, by which it is found after any crash.
- The engine is asked with a deadline each time. While it does not answer, nothing is concluded:
  instances stay as they are, and `problem` says what is wrong.
- The kernel tells at once when an instance's main process ends; how it ended, the engine says.
  Where the kernel cannot tell, the engine is asked every second.
- Secrets go by a file that only this user can read, and that is removed once it was read.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Final

from bridge.box.runtimes.base import Exit, Handle, LivingInstance, Spec, Usage
from bridge.box.runtimes.logs import ENGINE, STDERR, STDOUT, last_line
from bridge.box.runtimes.oci import commands as words
from bridge.box.runtimes.oci import container_kernel
from bridge.box.runtimes.oci import parsing as answers
from bridge.box.runtimes.oci.container import Container, unbegun
from bridge.box.runtimes.oci.image_pulls import ImagePulls
from bridge.box.runtimes.oci.monitor import ContainerMonitor
from bridge.box.runtimes.oci.subprocess_calls import EngineCalls
from bridge.box.runtimes.process_identity import ProcessIdentity, boot_id
from bridge.box.runtimes.sockets import holder, is_free
from bridge.box.state.runtime_limits import port_pair
from bridge.errors import EngineSilent, InstanceError, PortTaken

_log = logging.getLogger(__name__)

_SLOW: Final = 6  # times the engine's patience: making and starting
_AGAIN: Final = 1.0  # seconds before an engine that did not answer is asked again
_WORDS: Final = 1 << 20  # bytes of each log that are kept of an instance that has ended
_PORT_TRIES: Final = 3  # for a port that the engine chose, and somebody else was faster


class OciRuntime:
    """Runtime ``oci``. `environ` is what every instance gets, `address` where it is published.
    `secrets` is a directory of its own, for what only this user may read, and for moments only.

    Works while `run` does: it notices ends, measures, and finds what belongs to nobody.
    """

    def __init__(
        self,
        calls: EngineCalls,
        host_id: str,
        *,
        secrets: Path,
        environ: Mapping[str, str],
        address: str = "",
        isolation: str = "",
        sample: float = 1.0,
    ) -> None:
        self._calls = calls
        self._kind = calls.engine.kind
        self._host_id = host_id
        self._secrets = secrets.absolute()
        self._environ = environ
        self._address = address
        self._isolation = isolation
        self._images = ImagePulls(calls)
        self._containers: dict[str, Container] = {}
        self._survey = ContainerMonitor(calls, host_id, self._containers, self, sample)

    @property
    def lacks(self) -> Mapping[str, str]:
        return self._calls.engine.lacks

    @property
    def problem(self) -> str:
        return self._survey.problem

    async def run(self) -> None:
        try:
            await self._survey.run()
        finally:
            for container in self._containers.values():
                container.unwatch()

    # ── a life ───────────────────────────────────────────────────────────────────────────

    async def create(self, spec: Spec, tell: Callable[[str], None]) -> Container:
        if spec.image is None:
            raise InstanceError("there is no image: set one in [services], or in the request")
        container = self._containers[spec.instance_id] = Container(spec)
        try:
            spec.directory.mkdir(parents=True, exist_ok=True)
            (spec.directory / ENGINE).write_text(self._calls.engine.path)
            await self._images.provide(spec.image, tell)
            if self._kind.creates:
                await self._make(container)
        except OSError as exc:
            self._containers.pop(spec.instance_id)
            raise InstanceError(f"cannot write to {spec.directory}: {exc.strerror}") from exc
        except BaseException:
            self._containers.pop(spec.instance_id)  # what has been made of it is swept away
            raise
        return container

    async def start(
        self, handle: Handle, record: Callable[[ProcessIdentity, int], Awaitable[None]]
    ) -> None:
        container = self._container(handle)
        await asyncio.to_thread(_check_ports, container.spec.port_map)
        container.begin()
        await record(unbegun(), 0)
        container.let_go = True
        await self._let_go(container)
        container.is_off()
        state = (await self._survey.inspect([container.name])).get(container.name)
        if state is None or not state.running:
            self._survey.suspect(container)  # `watch` tells how it ended
            return
        identity = container.took_off(state, lambda: self._survey.suspect(container))
        if not container.port:
            raise InstanceError(f"{self._calls.engine.name} publishes no port of it")
        await record(identity, container.port)

    async def adopt(self, spec: Spec, identity: ProcessIdentity | None, port: int) -> Container:
        container = self._containers[spec.instance_id] = Container(spec)
        container.begin()
        state = (await self._survey.inspect([container.name])).get(container.name)
        container.made = state is not None
        container.is_off()
        if state is not None and state.running:
            container.took_off(state, lambda: self._survey.suspect(container))
        else:
            container.identity = identity
            container.let_go = identity != unbegun()
            await self.conclude(container, state)
        return container

    async def list_living(self) -> Mapping[str, LivingInstance]:
        await asyncio.to_thread(_clear, self._secrets)  # of a Box that was killed at work
        listed = await self._survey.listed()
        states = await self._survey.inspect([name for name, runs in listed.items() if runs])
        return {name: _found(state) for name, state in states.items() if state.running}

    async def watch(self, handle: Handle) -> Exit:
        ended = self._container(handle).ended
        assert ended is not None, "watched before it was started"
        return await asyncio.shield(ended)

    async def stop(self, handle: Handle, grace: float) -> Exit:
        """While the engine does not answer this goes on asking: nobody knows whether it runs."""
        container = self._container(handle)
        while True:
            try:
                return await self._stop(container, grace)
            except EngineSilent as exc:
                _log.warning("%s cannot be stopped yet: %s", container.name, exc)
                await asyncio.sleep(_AGAIN)

    async def end_all(self) -> None:
        names = [container.name for container in self._containers.values() if container.made]
        with contextlib.suppress(InstanceError):
            await self.remove(names)

    def forget(self, handle: Handle) -> None:
        container = self._containers.pop(handle.instance_id, None)
        if container is not None:
            container.unwatch()

    # ── looking ──────────────────────────────────────────────────────────────────────────

    async def listens(self, handle: Handle) -> bool:
        return await asyncio.to_thread(_listens, self._container(handle))

    async def usage(self, handles: Iterable[Handle]) -> Mapping[str, Usage]:
        used = self._survey.usage
        ids = [handle.instance_id for handle in handles]
        return {name: used[name] for name in ids if name in used}

    def requests_inside(self, without: AbstractSet[int]) -> Counter[int]:
        return Counter(
            {
                container.port: container_kernel.connections(
                    container.pid, container.guest, without
                )
                for container in list(self._containers.values())
                if container.pid and container_kernel.has_own_network(container.pid)
            }
        )

    async def sweep(self) -> list[str]:
        return await self._survey.swept()

    def last_line(self, handle: Handle) -> str:
        directory = self._container(handle).spec.directory
        return last_line(directory / STDERR) or last_line(directory / STDOUT)

    # ── inside ───────────────────────────────────────────────────────────────────────────

    def _container(self, handle: Handle) -> Container:
        assert isinstance(handle, Container)
        return handle

    async def _make(self, container: Container) -> None:
        """Have the engine make the container, in place of any of its name: ids are our own."""
        spec = container.spec
        file = self._secrets / spec.instance_id
        environ = {
            **self._environ,
            **spec.env,
            "PORT": str(container.guest),
            "BOX_INSTANCE_ID": spec.instance_id,
            "BOX_SERVICE": spec.service,
        }
        await asyncio.to_thread(_write_secret, file, words.env_file(environ))
        try:
            call = words.make(self._kind, self._order(container, file))
            within = _SLOW * self._calls.patience
            answer = await self._calls.make(call, within=within)
            if not answer.ok and answers.is_name_taken(answer.err):
                await self.remove([container.name])  # the engine outlived the Box that asked
                answer = await self._calls.make(call, within=within)
            self._check(container, call[0], answer.ok, answer.err)
        finally:
            file.unlink(missing_ok=True)
        container.made = True

    def _order(self, container: Container, env_file: Path) -> words.ContainerSpec:
        spec = container.spec
        assert spec.image is not None
        return words.ContainerSpec(
            name=container.name,
            image=spec.image,
            entrypoint=spec.entrypoint,
            command=spec.command,
            ports=spec.port_map,
            vcpus=spec.vcpus,
            memory_mib=spec.memory_mib,
            labels=words.labels(self._host_id, spec.instance_id, spec.service, spec.slot),
            env_file=str(env_file),
            address=self._address,
            isolation=self._isolation,
        )

    async def _let_go(self, container: Container) -> None:
        """Start the container, made anew where somebody was faster with the port it had got."""
        for attempt in range(_PORT_TRIES):
            try:
                if not container.made:
                    await self._make(container)
                    if not self._kind.creates:
                        return
                call = words.start(container.name)
                answer = await self._calls.make(call, within=_SLOW * self._calls.patience)
                self._check(container, call[0], answer.ok, answer.err)
            except PortTaken as exc:
                await self.remove([container.name])
                container.made = False
                if container.spec.port:
                    who = await asyncio.to_thread(holder, exc.port)
                    raise PortTaken(exc.port, who) from exc
                if attempt == _PORT_TRIES - 1:
                    tries = f"{_PORT_TRIES} times running"
                    raise InstanceError(f"lost the race for a port {tries}") from exc
            else:
                return

    def _check(self, container: Container, verb: str, ok: bool, err: str) -> None:
        """Raise what a failed call means: PortTaken or InstanceError."""
        if ok:
            return
        if answers.is_taken_port(err):
            raise PortTaken(container.spec.port, "another process")
        raise InstanceError(f"{self._kind.name} {verb}: {answers.complaint(err)}")

    async def _stop(self, container: Container, grace: float) -> Exit:
        if container.ended is None:
            await self.remove([container.name])
            return Exit()
        if not container.ended.done():
            within = grace + _SLOW * self._calls.patience
            await self._calls.ask(words.stop(container.name, grace), within=within)
            state = (await self._survey.inspect([container.name])).get(container.name)
            if state is not None and state.running and not container.is_gone():
                raise InstanceError(f"{container.name} does not end, not even by SIGKILL")
            await self.conclude(container, state)
        end = await asyncio.shield(container.ended)
        await self.remove([container.name])
        container.made = False
        return end

    async def remove(self, names: list[str]) -> None:
        """End and remove containers; one that is not there is fine. Raises EngineSilent."""
        if names:
            call = words.remove(self._kind, names)
            answer = await self._calls.ask(call, within=_SLOW * self._calls.patience)
            if not answer.ok and not answers.is_missing(answer.err):
                _log.warning("%s: %s", " ".join(call), answers.complaint(answer.err))

    async def conclude(self, container: Container, state: answers.ContainerState | None) -> None:
        """The container has ended: keep what it said, and tell how, once."""
        if container.concluding or not container.going:
            return
        container.concluding = True
        try:
            if state is not None and state.begun:
                await self._keep_words(container)
            assert container.ended is not None
            container.ended.set_result(container.exit(state))
        finally:
            container.concluding = False
            container.suspected = False
            container.unwatch()

    async def _keep_words(self, container: Container) -> None:
        """Write the last that it said to where logs are kept: the engine's go with it."""
        with contextlib.suppress(InstanceError, OSError):
            patience = self._calls.patience
            try:
                call = words.logs(container.name)
                answer = await self._calls.make(call, within=patience, last=_WORDS)
            except EngineSilent:
                call = words.tail(container.name)
                answer = await self._calls.make(call, within=patience, last=_WORDS)
            directory = container.spec.directory
            directory.mkdir(parents=True, exist_ok=True)
            (directory / STDOUT).write_bytes(answer.out)
            (directory / STDERR).write_text(answer.err)


def _found(state: answers.ContainerState) -> LivingInstance:
    identity = ProcessIdentity(pid=state.pid, started=0, boot_id=boot_id())
    return LivingInstance(identity, next(iter(state.ports.values()), 0))


def _check_ports(port_map: list[str]) -> None:
    """Raises PortTaken for a fixed port that somebody has: engines do not say who."""
    for host, _ in map(port_pair, port_map):
        if host and not is_free(host):
            raise PortTaken(host, holder(host))


def _listens(container: Container) -> bool:
    """Engines take connections for a container before it does: ask the network inside."""
    if container.pid and container_kernel.has_own_network(container.pid):
        return container_kernel.listens(container.pid, container.guest)
    return bool(container.port) and not is_free(container.port)


def _clear(directory: Path) -> None:
    for file in directory.iterdir() if directory.is_dir() else ():
        file.unlink(missing_ok=True)


def _write_secret(file: Path, data: bytes) -> None:
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        out.write(data)
