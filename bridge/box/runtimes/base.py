"""What a Box asks of a runtime, whatever makes the instances."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Final, Protocol

from msgspec import Struct, field

from bridge.box.runtimes.environment import service_environment
from bridge.box.runtimes.process_identity import ProcessIdentity
from bridge.box.state.runtime_limits import fixed_port
from bridge.protocol import ScaleConfig
from bridge.settings import ServiceConfig


class Spec(Struct, frozen=True, kw_only=True):
    """All that makes one instance: a service's configuration with a request's overrides.

    `port` 0 means any, else it is the first that `port_map` fixes. `directory` is the instance's
    own. `fence` is the file that says until when the instance may live (see
    bridge.box.fleet.fence), None where there is no such limit.
    """

    instance_id: str
    service: str
    slot: int = 0
    command: list[str]
    entrypoint: list[str] = field(default_factory=list)
    cwd: str
    env: dict[str, str]
    vcpus: int | None
    memory_mib: int | None
    image: str | None
    port: int
    port_map: list[str] = field(default_factory=list)
    directory: Path
    fence: Path | None = None

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
    ) -> Spec:
        """The spec of one instance; a relative `cwd` of the service starts at `cwd`."""
        port_map = overrides.port_map or config.port_map
        return cls(
            instance_id=instance_id,
            service=service,
            slot=slot,
            command=config.command,
            entrypoint=config.entrypoint,
            cwd=str(cwd / Path(config.cwd).expanduser()),
            env=config.env | overrides.env | service_environment(config),
            vcpus=config.vcpus if overrides.vcpus is None else overrides.vcpus,
            memory_mib=(
                config.memory_mib if overrides.memory_mib is None else overrides.memory_mib
            ),
            image=overrides.image or config.image or None,
            port=fixed_port(port_map),
            port_map=port_map,
            directory=directory,
            fence=fence if config.fence else None,
        )


_UNSEEN: Final = "ended while its Box was away, its exit code unknown"


class Exit(Struct, frozen=True, kw_only=True):
    """How an instance's main process ended: its exit code, or the signal that killed it.

    An exit code of 128 + n is taken for signal n, as shells have it. `code` None means that
    nobody knows: it ended while its Box was away, and left no word. Without `ran` it was never
    let go: its Box died first. With `fenced` it was ended because its host's lease was to end, or
    nothing was left to watch that.
    `why` is what the runtime knows beside that.
    """

    code: int | None = 0
    signal: int = 0
    ran: bool = True
    fenced: bool = False
    why: str = ""

    def __str__(self) -> str:
        if self.fenced:
            return "fenced: its host's lease was to end, or could not be watched"
        why = f": {self.why}" if self.why else ""
        if self.signal:
            return f"killed by signal {self.signal}{why}"
        if self.code is None:
            return f"ended, its exit code unknown{why}" if why else _UNSEEN
        return f"exited with code {self.code}{why}"


class Usage(Struct, frozen=True, kw_only=True):
    """What an instance uses: CPU in percent of one core, resident memory in bytes."""

    cpu_percent: float
    memory_bytes: int


class LivingInstance(Struct, frozen=True):
    """A living instance as it was found on the host: its process, and where it may serve."""

    identity: ProcessIdentity
    port: int


class Handle(Protocol):
    """One instance, as its runtime knows it."""

    @property
    def instance_id(self) -> str:
        """The instance that this is."""

    @property
    def port(self) -> int:
        """The host port it serves on; 0 before it was started."""


class Runtime(Protocol):
    """How instances are made. Failures raise InstanceError, saying what is wrong."""

    @property
    def lacks(self) -> Mapping[str, str]:
        """What cannot be honoured on this host of what the runtime can elsewhere, and why, by the
        field of a request's config.
        """

    @property
    def problem(self) -> str:
        """Why no instance can be made or looked at just now; empty while all is well."""

    async def run(self) -> None:
        """Look after the instances until cancelled, if that needs doing."""

    async def create(self, spec: Spec, tell: Callable[[str], None]) -> Handle:
        """Make what must be there before the start: a directory, an image.

        `tell` gets sentences on how that comes along, where it takes its time. Cancelled, it leaves
        nothing but what `sweep` ends.
        """

    async def start(
        self, handle: Handle, record: Callable[[ProcessIdentity, int], Awaitable[None]]
    ) -> None:
        """Boot it. May be called again after `stop`, and then takes another port.

        `record` is awaited with its process and port before the instance does anything, so that
        both can be written down first; with what is known of them then, and again with all, where
        the start itself decides. Raises PortTaken if its fixed port is not free.
        """

    async def adopt(self, spec: Spec, identity: ProcessIdentity | None, port: int) -> Handle:
        """Take back an instance that an earlier life of this Box started, as it wrote down.

        If that very process is no more, `watch` tells at once how it ended, where it left word.
        """

    async def list_living(self) -> Mapping[str, LivingInstance]:
        """The living instances of this Box's directory, by id, whoever started them."""

    async def watch(self, handle: Handle) -> Exit:
        """Return when the instance has ended; what escaped its group `sweep` ends."""

    async def stop(self, handle: Handle, grace: float) -> Exit:
        """Ask it to end, with all that it started, wait `grace` seconds for that, then end what
        is left. Returns when it has ended.
        """

    async def listens(self, handle: Handle) -> bool:
        """Whether the instance itself listens on its port.

        Raises PortTaken if somebody else does.
        """

    async def usage(self, handles: Iterable[Handle]) -> Mapping[str, Usage]:
        """What each of `handles` uses, by instance id; in one pass, as it is called often."""

    def requests_inside(self, without: AbstractSet[int]) -> Counter[int]:
        """The established connections, by `Handle.port`, of instances with networks of their own,
        which the tables of this host do not show; but for those from the ports in `without`. Called
        in a thread.
        """

    async def sweep(self) -> list[str]:
        """End what carries this Box's label but belongs to none of its instances.

        Returns the ids whose strays were ended.
        """

    def last_line(self, handle: Handle) -> str:
        """The last thing the instance said, for the message of its failure; may be empty."""

    def forget(self, handle: Handle) -> None:
        """The instance has ended for good: its port is free again."""

    async def end_all(self) -> None:
        """End all that still runs, at once, and return when it has ended, as far as it can be."""
