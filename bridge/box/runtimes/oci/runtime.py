"""Runtime ``oci``: instances are containers or MicroVMs of a container engine.

- The engine's labels say which instance a container is, so a Box finds it after any crash.
- Each call of the engine has a deadline. While the engine does not answer, every instance stays as
  it is, and `problem` names the reason.
- The kernel reports at once when an instance's main process ends; the engine reports how. Where the
  kernel does not know the process, the engine is asked every second.
- Secrets go through a file that only this user can read, and that is deleted once it was read.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Final

from bridge.box.runtimes.base import EngineLog, Exit, Handle, LivingInstance, Spec, Usage
from bridge.box.runtimes.foreign_errors import call_in_thread, mapped_errors
from bridge.box.runtimes.log_pages import nanoseconds, timed_rows
from bridge.box.runtimes.log_times import LogTimes
from bridge.box.runtimes.logs import ENGINE, STDERR, STDOUT, last_log_line
from bridge.box.runtimes.oci import commands, container_kernel, parsing
from bridge.box.runtimes.oci.container import Container, unknown_process
from bridge.box.runtimes.oci.image_pulls import ImagePulls
from bridge.box.runtimes.oci.monitor import ContainerMonitor
from bridge.box.runtimes.oci.subprocess_calls import CallResult, EngineCalls
from bridge.box.runtimes.process_identity import ProcessIdentity, boot_id
from bridge.box.runtimes.sockets import holder, is_free
from bridge.box.state.runtime_limits import port_pair
from bridge.errors import EngineSilent, InstanceError, PortTaken
from bridge.log_protocol import LogRead
from bridge.private_files import make_private, make_private_directory

_log = logging.getLogger(__name__)

_SLOW: Final = 6  # times the engine's timeout: for create, start, stop and remove
_RETRY: Final = 1.0  # seconds before an engine that did not answer is asked again
_KEEP_LOG: Final = 1 << 20  # bytes of each log that are kept of an instance that has ended
_PORT_TRIES: Final = 3  # starts with a port that the engine chose and another process took


class OciRuntime:
    """See the module. `environ` is what every instance gets, `address` where ports are published.

    `secrets` is a directory for environment files, which exist only while the engine reads them.
    The runtime notices ends, measures, and finds strays while `run` works.
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
        self._slow = _SLOW * calls.timeout
        self._host_id = host_id
        self._secrets = secrets.absolute()
        self._environ = environ
        self._address = address
        self._isolation = isolation
        self._images = ImagePulls(calls)
        self._containers: dict[str, Container] = {}
        self._monitor = ContainerMonitor(calls, host_id, self._containers, self, sample, address)

    @property
    def lacks(self) -> Mapping[str, str]:
        return self._calls.engine.lacks

    @property
    def problem(self) -> str:
        return self._monitor.problem

    async def run(self) -> None:
        try:
            await self._monitor.run()
        finally:
            for container in self._containers.values():
                container.unwatch()

    # ── the life of an instance ──────────────────────────────────────────────────────────

    async def create(self, spec: Spec, report: Callable[[str], None]) -> Container:
        if spec.image is None:
            raise InstanceError("no image: set `image` in [services], or in the request")
        container = self._containers[spec.instance_id] = Container(spec)
        try:
            with mapped_errors("the instance's directory cannot be written"):
                make_private_directory(spec.directory.parent)
                make_private_directory(spec.directory)
                (spec.directory / ENGINE).write_text(self._calls.engine.path)
            await self._images.provide(spec.image, report)
            if self._kind.creates:
                await self._create(container)
        except BaseException:
            self._containers.pop(spec.instance_id)  # `sweep` removes what the engine has made
            raise
        return container

    async def start(
        self, handle: Handle, record: Callable[[ProcessIdentity, int], Awaitable[None]]
    ) -> None:
        container = self._container(handle)
        await asyncio.to_thread(_check_ports, container.spec.port_map)
        container.prepare_start()
        await record(unknown_process(), 0)
        container.may_have_run = True
        await self._start(container)
        container.mark_started()
        state = (await self._monitor.inspect([container.name])).get(container.name)
        if state is None or not state.running:
            self._monitor.suspect(container)  # `watch` returns how it ended
            return
        identity = container.track(state, lambda: self._monitor.suspect(container))
        if not container.port:
            raise InstanceError(f"{self._calls.engine.name} published no port of the container")
        await record(identity, container.port)

    async def adopt(self, spec: Spec, identity: ProcessIdentity | None, port: int) -> Container:
        container = self._containers[spec.instance_id] = Container(spec)
        container.prepare_start()
        state = (await self._monitor.inspect([container.name])).get(container.name)
        container.exists = state is not None
        container.mark_started()
        if state is not None and state.running:
            container.track(state, lambda: self._monitor.suspect(container))
        else:
            container.identity = identity
            container.may_have_run = identity != unknown_process()
            await self.conclude(container, state)
        return container

    async def list_living(self) -> Mapping[str, LivingInstance]:
        # Environment files are left by a Box that was killed at work.
        await call_in_thread("old secrets cannot be deleted", _clear, self._secrets)
        running = await self._monitor.list_containers()
        states = await self._monitor.inspect([name for name, runs in running.items() if runs])
        return {name: _living(state) for name, state in states.items() if state.running}

    async def watch(self, handle: Handle) -> Exit:
        ended = self._container(handle).ended
        assert ended is not None, "watched before it was started"
        return await asyncio.shield(ended)

    async def stop(self, handle: Handle, grace: float) -> Exit:
        """See Runtime. While the engine does not answer, this retries: the outcome is unknown."""
        container = self._container(handle)
        while True:
            try:
                return await self._stop(container, grace)
            except EngineSilent as exc:
                _log.warning("%s cannot be stopped yet: %s", container.name, exc)
                await asyncio.sleep(_RETRY)

    async def end_all(self) -> None:
        names = [container.name for container in self._containers.values() if container.exists]
        try:
            await self.remove(names)
        except InstanceError as exc:
            _log.warning("containers cannot be removed; the next start of this Box does: %s", exc)

    def forget(self, handle: Handle) -> None:
        container = self._containers.pop(handle.instance_id, None)
        if container is not None:
            container.unwatch()

    # ── observation ──────────────────────────────────────────────────────────────────────

    async def listens(self, handle: Handle) -> bool:
        return await call_in_thread(
            "the sockets of the container cannot be read", _listens, self._container(handle)
        )

    async def usage(self, handles: Iterable[Handle]) -> Mapping[str, Usage]:
        usage = self._monitor.usage
        ids = [handle.instance_id for handle in handles]
        return {name: usage[name] for name in ids if name in usage}

    def requests_inside(self, without: AbstractSet[int]) -> Counter[int]:
        with mapped_errors("the connections of containers cannot be read"):
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
        return await self._monitor.collect_strays()

    async def last_line(self, handle: Handle) -> str:
        directory = self._container(handle).spec.directory
        return await call_in_thread("its log cannot be read", last_log_line, directory)

    async def engine_log(self, instance_id: str, read: LogRead) -> EngineLog | None:
        container = self._containers.get(instance_id)
        if container is None or not container.is_started:
            return None
        since = read.position or (0 if read.since is None else nanoseconds(read.since))
        result = await self._calls.call_in_turn(
            commands.logs(self._kind, container.name, since if self._kind.timed_logs else 0),
            timeout=self._slow,
            last=_KEEP_LOG,
        )
        if not result.ok:  # it has just ended, and its log is in the files, or will be
            return None
        output = result.out if read.stream == "stdout" else result.raw_err
        return EngineLog(output, self._kind.timed_logs)

    async def explain(self, handle: Handle) -> str:
        return ""

    # ── the monitor's actions ────────────────────────────────────────────────────────────

    async def remove(self, names: list[str]) -> None:
        """Kill and remove containers; a missing one is fine. Raises EngineSilent."""
        if names:
            call = commands.remove(self._kind, names)
            result = await self._calls.call(call, timeout=self._slow)
            if not result.ok and not parsing.is_missing(result.err):
                _log.warning("%s: %s", " ".join(call), parsing.error_line(result.err))

    async def conclude(self, container: Container, state: parsing.ContainerState | None) -> None:
        """The container has ended: keep its logs, and report once how it ended."""
        if container.concluding or not container.is_active:
            return
        container.concluding = True
        try:
            if state is not None and state.started:
                await self._keep_logs(container)
            assert container.ended is not None
            container.ended.set_result(container.exit(state))
        finally:
            container.concluding = False
            container.suspected = False
            container.unwatch()

    # ── inside ───────────────────────────────────────────────────────────────────────────

    def _container(self, handle: Handle) -> Container:
        assert isinstance(handle, Container)
        return handle

    async def _create(self, container: Container) -> None:
        """Have the engine create the container.

        One that has its name is removed first: instance ids are unique, so it is this instance's.
        """
        spec = container.spec
        file = self._secrets / spec.instance_id
        environ = {
            **self._environ,
            **await self._variables(spec),
            "PORT": str(container.guest),
            "BOX_INSTANCE_ID": spec.instance_id,
            "BOX_SERVICE": spec.service,
        }
        with mapped_errors("the environment file cannot be written"):
            await asyncio.to_thread(_write_secret, file, commands.env_file(environ))
        try:
            call = commands.create(self._kind, self._container_spec(container, file))
            result = await self._calls.call_in_turn(call, timeout=self._slow)
            if not result.ok and parsing.is_name_taken(result.err):
                await self.remove([container.name])  # the engine completed a call of a killed Box
                result = await self._calls.call_in_turn(call, timeout=self._slow)
            self._check(container, call[0], result.ok, result.err)
        finally:
            with mapped_errors("the environment file cannot be deleted"):
                file.unlink(missing_ok=True)
        container.exists = True

    async def _variables(self, spec: Spec) -> dict[str, str]:
        """The variables of an instance. Raises InstanceError for a secret that no file can hold."""
        env = await spec.environment()
        for name in spec.secrets:
            if "\n" in env[name] or "\r" in env[name]:
                raise InstanceError(f"env {name}: a secret of a container has one line")
        return env

    def _container_spec(self, container: Container, env_file: Path) -> commands.ContainerSpec:
        spec = container.spec
        assert spec.image is not None
        return commands.ContainerSpec(
            name=container.name,
            image=spec.image,
            entrypoint=spec.entrypoint,
            command=spec.command,
            ports=spec.port_map,
            vcpus=spec.vcpus,
            memory_mib=spec.memory_mib,
            labels=commands.labels(self._host_id, spec.instance_id, spec.service, spec.slot),
            env_file=str(env_file),
            address=self._address,
            isolation=self._isolation,
            stop_signal=spec.stop_signal,
            log_bytes=spec.log_bytes,
        )

    async def _start(self, container: Container) -> None:
        """Start the container; create it again if another process took the port it had got."""
        for attempt in range(_PORT_TRIES):
            try:
                if not container.exists:
                    await self._create(container)
                    if not self._kind.creates:
                        return
                call = commands.start(container.name)
                result = await self._calls.call_in_turn(call, timeout=self._slow)
                self._check(container, call[0], result.ok, result.err)
            except PortTaken as exc:
                await self.remove([container.name])
                container.exists = False
                if container.spec.port:
                    process = await asyncio.to_thread(holder, exc.port)
                    raise PortTaken(exc.port, process) from exc
                if attempt == _PORT_TRIES - 1:
                    raise InstanceError(
                        f"another process took the container's port, {_PORT_TRIES} times in a row"
                    ) from exc
            else:
                return

    def _check(self, container: Container, verb: str, ok: bool, err: str) -> None:
        """Raise PortTaken or InstanceError for a call that failed."""
        if ok:
            return
        if parsing.is_port_taken(err):
            raise PortTaken(container.spec.port, "another process")
        raise InstanceError(f"{self._kind.name} {verb}: {parsing.error_line(err)}")

    async def _stop(self, container: Container, grace: float) -> Exit:
        if container.ended is None:
            await self.remove([container.name])
            return Exit()
        if not container.ended.done():
            call = commands.stop(container.name, grace)
            await self._calls.call(call, timeout=grace + self._slow)
            state = (await self._monitor.inspect([container.name])).get(container.name)
            if state is not None and state.running and not container.has_died():
                raise InstanceError(f"{container.name} runs on after `{self._kind.name} stop`")
            await self.conclude(container, state)
        end = await asyncio.shield(container.ended)
        await self.remove([container.name])
        container.exists = False
        return end

    async def _keep_logs(self, container: Container) -> None:
        """Copy the end of the container's logs to its directory: the engine deletes its own."""
        directory = container.spec.directory
        try:
            result = await self._read_logs(container.name)
            with mapped_errors("cannot be written"):
                make_private_directory(directory)
                now = time.time_ns()
                for name, output in ((STDERR, result.raw_err), (STDOUT, result.out)):
                    make_private(directory / name, empty=True)
                    if self._kind.timed_logs:
                        output, marks = timed_rows(output, now)
                        LogTimes(directory / name).write(marks)
                    (directory / name).write_bytes(output)
        except InstanceError as exc:
            _log.warning("the logs of %s are lost: %s", container.name, exc)

    async def _read_logs(self, name: str) -> CallResult:
        timeout = self._calls.timeout
        try:
            return await self._calls.call_in_turn(
                commands.logs(self._kind, name), timeout=timeout, last=_KEEP_LOG
            )
        except EngineSilent:  # a long log takes too long
            return await self._calls.call_in_turn(
                commands.tail(self._kind, name), timeout=timeout, last=_KEEP_LOG
            )


def _living(state: parsing.ContainerState) -> LivingInstance:
    identity = ProcessIdentity(pid=state.pid, started=0, boot_id=boot_id())
    return LivingInstance(identity, next(iter(state.ports.values()), 0))


def _check_ports(port_map: list[str]) -> None:
    """Raise PortTaken for a fixed port that is in use: engines do not name the process."""
    for host, _ in map(port_pair, port_map):
        if host and not is_free(host):
            raise PortTaken(host, holder(host))


def _listens(container: Container) -> bool:
    """Whether the container listens: engines accept connections before it does, so look inside."""
    if container.pid and container_kernel.has_own_network(container.pid):
        return container_kernel.listens(container.pid, container.guest)
    return bool(container.port) and not is_free(container.port)


def _clear(directory: Path) -> None:
    for file in directory.iterdir() if directory.is_dir() else ():
        file.unlink(missing_ok=True)


def _write_secret(file: Path, data: bytes) -> None:
    """Write a new file; a part of it does not stay. Raises OSError."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            out.write(data)
    except BaseException:
        file.unlink(missing_ok=True)
        raise
