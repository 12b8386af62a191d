"""The errors of a Box: its host, its journal, its container engine and its instances."""

from __future__ import annotations

from bridge.errors.base import BridgeError


class BoxError(BridgeError):
    """A Box cannot work.

    Fix: see the subclass; `box-bridge doctor -c box.toml` checks the host.
    """


class HostTaken(BoxError):
    """Another Box uses this data directory, or this host name on the bus.

    Fix: stop the other Box, or give this one its own `name` and `data_dir`.
    """


class JournalError(BoxError):
    """The host's journal cannot be read or written.

    `transient` says that the same call may succeed later: the disk is full, for example.

    Fix: check the disk and the permissions of `data_dir`.
    """

    def __init__(self, problem: str, *, transient: bool = False) -> None:
        super().__init__(problem)
        self.transient = transient


class JournalDamaged(JournalError):
    """The journal's file is damaged.

    Fix: check the disk, then restart the Box. It keeps the damaged file, and builds a new journal
    from what runs on the host and from the fleet's records.
    """


class ForeignJournal(JournalError):
    """The journal at `path` is whole, but another version of box-bridge wrote it.

    `problem` names that version, and what this one cannot read.

    Fix: run the version that wrote it, or move the file away.
    """

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(
            f"the journal {path} was written by another box-bridge ({problem}): "
            "use that version, or move the file away"
        )
        self.path = path
        self.problem = problem


class InstanceError(BoxError):
    """One instance could not be created, started or reached.

    Fix: nothing at first: the Box retries. `box-bridge logs` and `events` show the reason.
    """


class EngineUnsuitable(BoxError):
    """The container engine `engine` cannot be used; `problem` gives the reason.

    Fix: install or update the engine, or choose another one with `[box] engine`.
    """

    def __init__(self, engine: str, problem: str) -> None:
        super().__init__(f"[box] engine {engine}: {problem}")
        self.engine = engine
        self.problem = problem


class EngineSilent(InstanceError):
    """The container engine did not answer `call`. The outcome is unknown.

    Fix: restart the engine. The Box keeps its instances and continues when the engine answers.
    """

    def __init__(self, engine: str, call: str, reason: str) -> None:
        super().__init__(f"{engine} does not answer: `{call}`: {reason}")
        self.engine = engine
        self.call = call
        self.reason = reason


class PortTaken(InstanceError):
    """A process that is not the instance listens on the instance's port.

    Fix: stop that process, or choose other `[box] ports`.
    """

    def __init__(self, port: int, holder: str) -> None:
        super().__init__(f"port {port} is taken by {holder}")
        self.port = port
        self.holder = holder
