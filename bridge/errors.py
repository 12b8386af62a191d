"""Every error that box-bridge raises, in one tree.

A caller catches `BridgeError` for all of it, or a branch for what it can handle. An error
carries its data as attributes, and its message says what to do about it::

    BridgeError
    ├── ConfigError               a file, variable or flag is wrong
    ├── ProtocolError             a payload is not what the wire contract says
    │   └── NameRefused           a name that cannot be a subject token
    ├── BusError                  the bus, or what is kept in it
    │   ├── ServerNotStarted      the embedded nats-server did not come up
    │   ├── ConnectFailed         no NATS server took the connection
    │   ├── CutOff                connected once, not now: nothing was sent
    │   ├── NoResponders          nobody listens on the subject: nothing was done
    │   ├── NotPermitted          this NATS user may not send or listen there: nothing was done
    │   ├── TooLarge              more than the server or the stream takes: nothing was stored
    │   ├── NoReply               sent, not answered in time: the outcome is unknown
    │   ├── StoreRefused          JetStream refused: nothing was stored
    │   │   └── Conflict          somebody else wrote first
    │   ├── StoreUnsuitable       JetStream is off, too old or not permitted
    │   ├── TopologyMismatch      a stream exists with settings that break a promise
    │   └── DurableMismatch       a durable of this name exists, and is not what was asked for
    ├── BoxError                  a Box cannot do its work
    │   ├── HostTaken             another Box has this data_dir or this host name
    │   ├── JournalError          the host's journal cannot be kept or read
    │   │   └── ForeignJournal    another version wrote it, and this one cannot read it
    │   ├── EngineUnsuitable      the container engine is missing, too old or lacks what is set
    │   └── InstanceError         one instance could not be made or reached
    │       ├── EngineSilent      the container engine does not answer: the outcome is unknown
    │       └── PortTaken         another process listens on the instance's port
    ├── BenchFailed               a measurement did not do its work
    ├── NoRoute                   no instance of the service takes traffic
    └── ScaleError                a request did not do what was asked
        ├── NoBoxError            nobody answers on the scale subject
        ├── RequestTimeout        asked, no answer: the outcome is unknown
        ├── ScaleRefused          a Box said no: nothing was changed
        ├── ScaleCapped           a Box took a lower target than was asked
        ├── WaitTimeout           taken, but not Ready in time
        ├── OrderRefused          a Box said no to an operator: nothing was changed
        ├── DrainStuck            the order stands, but a host's instances cannot be replaced
        └── DrainTimeout          the order stands, but the host is not empty in time
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


class BridgeError(Exception):
    """The root of every error that box-bridge raises."""


# ── configuration ────────────────────────────────────────────────────────────────────────


class ConfigError(BridgeError):
    """A configuration file, environment variable or flag is wrong.

    `where` names the place (`box.toml: [services.web] command`, `NATS_CREDS`), `problem`
    says what is wrong and how to mend it.
    """

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f"{where}: {problem}")
        self.where = where
        self.problem = problem


# ── the wire ─────────────────────────────────────────────────────────────────────────────


class ProtocolError(BridgeError):
    """A payload is not what the wire contract says.

    `type_name` is the contract's type, `field` the path of the offending field (empty when
    it is the whole payload), `problem` what is wrong with it.
    """

    def __init__(self, type_name: str, field: str, problem: str) -> None:
        place = f"{type_name} field `{field}`" if field else type_name
        super().__init__(f"{place}: {problem}")
        self.type_name = type_name
        self.field = field
        self.problem = problem


class NameRefused(ProtocolError):
    """A service name, instance id or host name that cannot be a subject token."""

    def __init__(self, kind: str, value: str) -> None:
        shown = value if len(value) <= 80 else value[:77] + "..."
        super().__init__(
            kind,
            "",
            f"{shown!r} is not a name: use 1 to 63 of a-z, 0-9 and '-', "
            "starting and ending with a letter or digit",
        )
        self.kind = kind
        self.value = value


# ── the bus ──────────────────────────────────────────────────────────────────────────────


class BusError(BridgeError):
    """Something about the bus, or about what is kept in it."""


class ServerNotStarted(BusError):
    """The embedded nats-server did not come up; `log_tail` holds its last words."""

    def __init__(self, reason: str, log_tail: str = "") -> None:
        tail = f"\n{log_tail}" if log_tail else ""
        super().__init__(f"nats-server did not start: {reason}{tail}")
        self.reason = reason
        self.log_tail = log_tail


def without_secret(url: str) -> str:
    """A NATS URL, or several, fit to be shown: what stands before an @ may be a password."""
    return re.sub(r"[^/@,]+@", "***@", url)


class ConnectFailed(BusError):
    """No NATS server took the connection. Nothing was sent."""

    def __init__(self, urls: Sequence[str], reason: str) -> None:
        super().__init__(
            f"cannot connect to NATS at {', '.join(map(without_secret, urls))}: {reason}. "
            "Is the server running, and are the URL and the credentials right?"
        )
        self.urls = tuple(urls)
        self.reason = reason


class CutOff(BusError):
    """There was a connection, and there is none now. Nothing was sent."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"cut off from NATS for {seconds:.1f} s; it reconnects by itself")
        self.seconds = seconds


class NoResponders(BusError):
    """Nobody subscribes to the subject. Nothing was done."""

    def __init__(self, subject: str) -> None:
        super().__init__(f"nobody answers on {subject}")
        self.subject = subject


class NotPermitted(BusError):
    """NATS does not let this user send, or listen, on the subject. Nothing was done."""

    def __init__(self, subject: str, act: str = "publish on") -> None:
        super().__init__(
            f"this NATS user may not {act} {subject}: grant it, or use other credentials"
        )
        self.subject = subject


class TooLarge(BusError):
    """`what` is larger than the server, or the stream, takes. Nothing was sent, or stored.

    `problem` names the bound, `less` is what helps beside raising it.
    """

    def __init__(
        self, subject: str, problem: str, *, what: str = "", less: str = "send less"
    ) -> None:
        super().__init__(
            f"{what or f'a message on {subject}'} is too large: {problem}; raise that, or {less}"
        )
        self.subject = subject
        self.problem = problem


class NoReply(BusError):
    """Sent, and not answered in time: whether it took effect is unknown."""

    def __init__(self, subject: str, timeout: float) -> None:
        super().__init__(f"no answer on {subject} within {timeout:g} s: the outcome is unknown")
        self.subject = subject
        self.timeout = timeout


class StoreRefused(BusError):
    """JetStream refused a write or a management call. Nothing was stored.

    `code` is JetStream's error code (10071, …), 0 where it gave none.
    """

    def __init__(self, subject: str, code: int, description: str) -> None:
        super().__init__(f"JetStream refused {subject}: {description} ({code})")
        self.subject = subject
        self.code = code
        self.description = description


class Conflict(StoreRefused):
    """A compare-and-set lost: the expected sequence was not the last one.

    `last` is the sequence that the server named as the last one, None where it named none.
    """

    def __init__(self, subject: str, code: int, description: str, last: int | None) -> None:
        super().__init__(subject, code, description)
        self.last = last


class StoreUnsuitable(BusError):
    """This NATS server or account cannot keep what box-bridge promises."""


class TopologyMismatch(BusError):
    """A stream exists with settings that break a promise.

    `differences` holds one line a setting: what it is and what it must be.
    """

    def __init__(self, stream: str, differences: Sequence[str]) -> None:
        lines = "\n".join(f"  {line}" for line in differences)
        super().__init__(
            f"stream {stream} exists with settings that break a promise:\n{lines}\n"
            f"Mend it with `nats stream edit {stream}`, or choose another prefix."
        )
        self.stream = stream
        self.differences = tuple(differences)


class DurableMismatch(BusError):
    """A durable of this name exists, and is not what was asked for. Nothing was changed.

    `name` is its name, `problem` what differs.
    """

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(
            f"durable {name} exists: {problem}. Use another name, ask for the same, or delete it "
            "with `nats consumer rm`, which forgets how far it has come."
        )
        self.name = name
        self.problem = problem


# ── a Box ────────────────────────────────────────────────────────────────────────────────


class BoxError(BridgeError):
    """A Box cannot do its work."""


class HostTaken(BoxError):
    """Another Box has this data directory, or this host name on the bus."""


class JournalError(BoxError):
    """The host's journal cannot be kept or read."""


class ForeignJournal(JournalError):
    """The journal at `path` is whole, but of another version of box-bridge; `problem` says which,
    and what of it this one cannot read.
    """

    def __init__(self, path: str, problem: str) -> None:
        super().__init__(
            f"the journal {path} was written by another box-bridge ({problem}): "
            "use that version, or move the file away"
        )
        self.path = path
        self.problem = problem


class InstanceError(BoxError):
    """One instance could not be made, started or reached."""


class EngineUnsuitable(BoxError):
    """The container engine `engine` cannot be used; `problem` says why, and what to do."""

    def __init__(self, engine: str, problem: str) -> None:
        super().__init__(f"[box] engine {engine}: {problem}")
        self.engine = engine
        self.problem = problem


class EngineSilent(InstanceError):
    """The container engine did not answer `call`: whether it took effect is unknown."""

    def __init__(self, engine: str, call: str, reason: str) -> None:
        super().__init__(f"{engine} does not answer: `{call}`: {reason}")
        self.engine = engine
        self.call = call
        self.reason = reason


class PortTaken(InstanceError):
    """A process that is not the instance listens on the instance's port."""

    def __init__(self, port: int, holder: str) -> None:
        super().__init__(f"port {port} is taken by {holder}")
        self.port = port
        self.holder = holder


# ── routes ───────────────────────────────────────────────────────────────────────────────


class BenchFailed(BridgeError):
    """A row of the bench did not do what it measures: its figure would mean nothing."""


# ── a scale request ──────────────────────────────────────────────────────────────────────
