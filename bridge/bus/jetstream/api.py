"""nats-py's JetStream calls, sent as this package sends requests, and their errors as ours.

A call to JetStream's API is sent again every second until it is answered. While a stream has no
leader, no server answers; a client that waits for the answer to its first copy alone would wait
beyond the election. Each of these calls may be repeated: it reads, names what it creates, or
deletes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Final

import nats.errors
import nats.js.errors
from nats.aio.client import ServerVersion
from nats.js import JetStreamContext

from bridge.bus.core.connect_errors import describe
from bridge.bus.core.connection import Connection
from bridge.bus.core.message import Message
from bridge.errors import (
    BusError,
    CutOff,
    NoReply,
    NoResponders,
    NotPermitted,
    ServerTooOld,
    StoreRefused,
    StoreUnsuitable,
    TopologyMismatch,
)

_TIMEOUT: Final = 5.0  # seconds for a call that names no other time

# What nats-py raises where an answer is not as JetStream writes it: not JSON, a field of another
# type, a field that is missing, a time or base64 that cannot be read.
_UNREADABLE: Final = (ValueError, LookupError, TypeError, AttributeError, RecursionError)


def jetstream(connection: Connection) -> JetStreamContext:
    """nats-py's JetStream calls, sent over `connection` with its promises.

    They raise nats-py's errors: the caller, in `bridge.bus`, wraps them in `jetstream_errors`.
    """
    requests = RequestAdapter(connection)
    domain = connection.settings.domain or None
    return JetStreamContext(requests, domain=domain, timeout=_TIMEOUT)  # type: ignore[arg-type]


def api_subject(connection: Connection, call: str) -> str:
    """The subject of this JetStream API call, in the connection's domain."""
    domain = connection.settings.domain
    return f"$JS.{domain}.API.{call}" if domain else f"$JS.API.{call}"


@contextlib.contextmanager
def jetstream_errors(what: str, *, denied: str = "") -> Iterator[None]:
    """Raise what JetStream calls in the block raise as BusErrors about `what`.

    With `denied`, a sentence without a reason, NotPermitted becomes StoreUnsuitable.
    """
    try:
        yield
    except NotPermitted as exc:
        if not denied:
            raise
        raise StoreUnsuitable(f"{denied}: {exc}") from exc
    except (nats.errors.Error, OSError, *_UNREADABLE) as exc:
        raise bus_error(what, exc) from exc


def bus_error(what: str, exc: Exception) -> BusError:
    """`exc`, which a JetStream call about `what` raised, as an error of ours.

    NoReply: the outcome is unknown. StoreRefused: JetStream refused, nothing was stored.
    """
    if isinstance(exc, nats.js.errors.APIError):
        code: int | None = getattr(exc, "err_code", None)  # not every subclass sets it
        silent = isinstance(exc, nats.js.errors.ServiceUnavailableError)
        words = "no JetStream answers" if silent else describe(exc)
        return StoreRefused(what, code or 0, getattr(exc, "description", None) or words)
    if isinstance(exc, TimeoutError):  # nats-py's are, too
        return NoReply(what, _TIMEOUT)
    if isinstance(exc, _UNREADABLE):
        return BusError(f"{what}: JetStream's answer cannot be read: {exc!r}")
    return BusError(f"{what}: {describe(exc)}")


def is_final(exc: Exception) -> bool:
    """Whether a person must act: the server is too old, or a stream breaks a promise.

    Everything else passes without an operator's act on the Box: a cluster without a leader or a
    quorum, a server or an account whose JetStream is off, a permission that is being changed, a
    full store. A server that is started with a wrong version or store for a moment gives a final
    error too, so the caller must meet it repeatedly before it ends anything.
    """
    return isinstance(exc, (ServerTooOld, TopologyMismatch))


class RequestAdapter:
    """The part of nats-py's client that its JetStream calls use, over a Connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.connected_server_version = ServerVersion(
            str(connection.server_info.get("version", "0.0.0-unknown"))
        )

    async def request(self, subject: str, payload: bytes = b"", timeout: float = 5) -> Message:
        try:
            if subject.startswith("$JS.") and ".API." in subject:
                return await self._request_repeatedly(subject, payload, timeout)
            return await self._connection.request(subject, payload, timeout=timeout)
        except NoResponders as exc:
            raise nats.errors.NoRespondersError from exc
        except NoReply as exc:
            raise nats.errors.TimeoutError from exc

    async def _request_repeatedly(self, subject: str, payload: bytes, timeout: float) -> Message:
        """The first answer to any copy. Raises as `Connection.request` does."""
        request = self._connection.inquire(subject, payload)
        try:
            return await request.answer_by(asyncio.get_running_loop().time() + timeout)
        except CutOff as exc:
            if not request.unanswered:
                raise
            raise NoReply(subject, timeout) from exc
        finally:
            request.drop()
