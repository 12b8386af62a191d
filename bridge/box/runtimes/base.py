"""The interface between a Box and a runtime, which makes and watches the instances of a host."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Final, Protocol

from msgspec import Struct, field

from bridge.box.runtimes.environment import service_environment
from bridge.box.runtimes.process_identity import ProcessIdentity
from bridge.box.runtimes.secret_files import read_secrets
from bridge.box.state.runtime_limits import fixed_port
from bridge.exit_text import describe_exit
from bridge.log_protocol import LogRead
from bridge.protocol import ScaleConfig
from bridge.settings import Secret, ServiceConfig


class Spec(Struct, frozen=True, kw_only=True):
    """Everything that defines one instance: its service's configuration with a request's overrides.

    `port` is the first host port that `port_map` fixes; 0 means any port. `directory` belongs to
    this instance alone. `env` and `secrets` are its variables; `credentials` is where systemd put
    credentials. `fence` is the file that holds the time until which the instance may live
    (see bridge.box.fleet.fence); None means no limit. `log_bytes` bounds each of its logs; 0 means
    no bound.
    """

    instance_id: str
    service: str
    slot: int = 0
    command: list[str]
    entrypoint: list[str] = field(default_factory=list)
    cwd: str
    env: dict[str, str]
    secrets: dict[str, Secret] = field(default_factory=dict)
    credentials: str = ""
    vcpus: int | None
    memory_mib: int | None
    image: str | None
    port: int
    port_map: list[str] = field(default_factory=list)
    directory: Path
    fence: Path | None = None
    stop_signal: str = ""
    stop_scope: str = ""
    user: str = ""
    log_bytes: int = 0

    @classmethod
    def of(
        cls,
        instance_id: str,
        service: str,
        config: ServiceConfig,
        overrides: ScaleConfig,
        *,
        slot: int,
        directory: Path,
        cwd: Path,
        fence: Path | None = None,
        credentials: str = "",
    ) -> Spec:
        """The spec of one instance. A relative `cwd` of the service starts at `cwd`."""
        port_map = overrides.port_map or config.port_map
        values = config.env | overrides.env
        return cls(
            instance_id=instance_id,
            service=service,
            slot=slot,
            command=config.command,
            entrypoint=config.entrypoint,
            # Path.expanduser raises for a user that does not exist; the start then names the path.
            cwd=str(cwd / os.path.expanduser(config.cwd)),  # noqa: PTH111
            env={name: value for name, value in values.items() if isinstance(value, str)}
            | service_environment(config),
            secrets={name: value for name, value in values.items() if isinstance(value, Secret)},
            credentials=credentials,
            vcpus=config.vcpus if overrides.vcpus is None else overrides.vcpus,
            memory_mib=(
                config.memory_mib if overrides.memory_mib is None else overrides.memory_mib
            ),
            image=overrides.image or config.image or None,
            port=fixed_port(port_map),
            port_map=port_map,
            directory=directory,
            fence=fence if config.fence else None,
            stop_signal=config.stop_signal,
            stop_scope=config.stop_scope,
            user=config.user,
            log_bytes=config.log_bytes,
        )

    async def environment(self) -> dict[str, str]:
        """Its variables, with the secrets as they are now. Raises InstanceError."""
        if not self.secrets:
            return self.env
        return self.env | await asyncio.to_thread(read_secrets, self.secrets, self.credentials)


_NOT_SEEN: Final = "ended with an unknown exit code while its Box was not running"


class Exit(Struct, frozen=True, kw_only=True):
    """How an instance's main process ended: its exit code, or the signal that killed it.

    Runtimes read an exit code of 128 + n as signal n, as shells do. `code` None means unknown: the
    instance ended while its Box was not running, and left no exit code. `ran` False means that its
    command never started, because its Box died first. `fenced` means that the instance was ended
    because the lease of its host was about to expire, or could not be checked. `why` is what the
    runtime knows in addition.
    """

    code: int | None = 0
    signal: int = 0
    ran: bool = True
    fenced: bool = False
    why: str = ""

    def __str__(self) -> str:
        if self.fenced:
            return "fenced: the lease of its host was about to expire, or could not be checked"
        why = f": {self.why}" if self.why else ""
        if self.signal:
            return describe_exit(signal=self.signal) + why
        if self.code is None:
            return f"ended with an unknown exit code{why}" if why else _NOT_SEEN
        return describe_exit(code=self.code) + why


class Usage(Struct, frozen=True, kw_only=True):
    """What an instance uses: CPU in percent of one core, resident memory in bytes."""

    cpu_percent: float
    memory_bytes: int


class EngineLog(Struct, frozen=True):
    """What an engine printed of one log; `timed`: each row begins with its time."""

    output: bytes
    timed: bool


class LivingInstance(Struct, frozen=True):
    """An instance that lives on this host: its process, and its port; 0 if that is unknown."""

    identity: ProcessIdentity
    port: int


class Handle(Protocol):
    """One instance, as its runtime knows it."""

    @property
    def instance_id(self) -> str:
        """The id of the instance."""

    @property
    def port(self) -> int:
        """The host port on which it serves; 0 before the start."""


class Runtime(Protocol):
    """Makes, watches and ends the instances of one host.

    - Every failure is an InstanceError that names the reason; foreign exceptions stop here.
    - EngineSilent, a kind of InstanceError, means that the outcome is unknown: ask again.
    """

    @property
    def lacks(self) -> Mapping[str, str]:
        """What the runtime cannot honour on this host, although it can elsewhere.

        Maps the field of a request's config to the reason.
        """

    @property
    def problem(self) -> str:
        """Why the runtime can neither make nor inspect instances now; "" while it can."""

    async def run(self) -> None:
        """Watch the instances until cancelled, if the runtime needs a task for that."""

    async def create(self, spec: Spec, report: Callable[[str], None]) -> Handle:
        """Prepare the start: the directory, the image, the container.

        `report` gets the progress of a long step as sentences. A cancelled call leaves only what
        `sweep` removes.
        """

    async def start(
        self, handle: Handle, record: Callable[[ProcessIdentity, int], Awaitable[None]]
    ) -> None:
        """Start the instance. Another call after `stop` starts it again, on another port.

        `record` is awaited with the process and the port before the command runs, so that the
        caller can write both down first. Where only the start itself determines them, `record` is
        awaited again afterwards. Raises PortTaken if the fixed port is in use.
        """

    async def adopt(self, spec: Spec, identity: ProcessIdentity | None, port: int) -> Handle:
        """Take over an instance that this Box started before its restart.

        `identity` and `port` are what `record` got. If that process has ended, `watch` returns at
        once, with the exit code where the instance left one.
        """

    async def list_living(self) -> Mapping[str, LivingInstance]:
        """The living instances of this Box's directory, by id, whichever process started them."""

    async def watch(self, handle: Handle) -> Exit:
        """Return when the instance has ended. `sweep` ends processes that left its group."""

    async def stop(self, handle: Handle, grace: float) -> Exit:
        """End the instance and everything that it started; return when it has ended.

        SIGTERM comes first, SIGKILL after `grace` seconds.
        """

    async def listens(self, handle: Handle) -> bool:
        """Whether the instance itself listens on its port.

        Raises PortTaken if another process does.
        """

    async def usage(self, handles: Iterable[Handle]) -> Mapping[str, Usage]:
        """The usage of each of `handles`, by instance id. One pass for all: it is called often."""

    def requests_inside(self, without: AbstractSet[int]) -> Counter[int]:
        """The established connections of instances that have networks of their own, by host port.

        The tables of this host do not show them. Connections from the ports in `without` do not
        count. Blocks: call it in a thread.
        """

    async def sweep(self) -> list[str]:
        """End what carries this Box's label but belongs to no instance of the Box.

        Returns the instance ids on those labels.
        """

    async def last_line(self, handle: Handle) -> str:
        """The last log line of the instance, for the message of its failure; may be empty."""

    async def engine_log(self, instance_id: str, read: LogRead) -> EngineLog | None:
        """The log of a living instance, if an engine has it; None if it is in files.

        It begins where `read` begins, or earlier, and has at most the last MiB.
        """

    async def explain(self, handle: Handle) -> str:
        """What about this runtime may have made the instance fail; "" if nothing points to it."""

    def forget(self, handle: Handle) -> None:
        """Release what the runtime holds for an instance that has ended: its port, its watch."""

    async def end_all(self) -> None:
        """Kill every instance that still runs; return when all have ended, or after a deadline."""
