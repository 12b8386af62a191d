"""Foreign errors end at the bus: whatever nats-py or a socket raises, callers get a BridgeError."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import nats.errors
import nats.js.errors
import pytest

from bridge.bus.core import connect
from bridge.bus.core.connection import Connection
from bridge.bus.core.message import Message
from bridge.bus.core.nats_client import FrameRefused, FrameTooLarge
from bridge.bus.diagnostics import checks
from bridge.bus.jetstream import api, topology
from bridge.bus.jetstream.follower import Follower
from bridge.bus.jetstream.kv_view import KeyValueView
from bridge.bus.jetstream.publish import store
from bridge.bus.jetstream.pull_consumer import PullConsumer, outstanding
from bridge.bus.jetstream.server_time import server_time
from bridge.errors import BridgeError, BusError, NotPermitted
from bridge.observe import Metrics
from bridge.protocol import InstanceHealth
from bridge.settings import NatsConfig
from bridge.tasks import task_scope

_SOCKET: Final = (
    OSError("no route to host"),
    ConnectionResetError(),
    ssl.SSLError(1, "bad record"),
    ssl.SSLCertVerificationError("self-signed"),
    TimeoutError(),
    UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
)
_UNREADABLE: Final = (
    ValueError("not JSON"),
    KeyError("created"),
    IndexError(),
    TypeError("a list"),
    AttributeError("items"),
    RecursionError(),
)


def _made(cls: type[Exception]) -> Exception:
    if cls is nats.errors.SlowConsumerError:
        return nats.errors.SlowConsumerError("subject", "reply", 1, None)  # type: ignore[arg-type]
    return cls()


def _errors_of(module: Any) -> list[Exception]:
    return [
        _made(cls)
        for _, cls in inspect.getmembers(module, inspect.isclass)
        if issubclass(cls, Exception) and cls.__module__ == module.__name__
    ]


NATS: Final = [*_errors_of(nats.errors), FrameRefused(), FrameTooLarge()]
JETSTREAM: Final = _errors_of(nats.js.errors)


def _name(exc: object) -> str:
    return f"{type(exc).__module__}.{type(exc).__qualname__}"


class FailingJetStream:
    """nats-py's JetStream calls, each of which raises `exc`."""

    def __init__(self, exc: Exception) -> None:
        self._exc = exc
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., Awaitable[None]]:
        async def fail(*_: object, **__: object) -> None:
            self.calls.append(name)
            raise self._exc

        return fail


class FailingClient:
    """A client that is connected, and that raises `exc` in each call."""

    is_closed = False
    discovered: Final = ()

    def __init__(self, exc: Exception) -> None:
        self._exc = exc
        self.on_error: object = None

    def _fail(self, *_: object, **__: object) -> None:
        raise self._exc

    async def _fail_later(self, *_: object, **__: object) -> None:
        raise self._exc

    listen = publish_now = _fail
    flush = connect = _fail_later

    async def close(self) -> None:
        """A client that is not connected closes without an error."""


def _connection(client: FailingClient | None = None) -> Connection:
    connection = Connection(NatsConfig(), "test", Metrics())
    if client is not None:
        connection._client = client  # type: ignore[assignment]
    connection._up.set()
    return connection


def _durable(connection: Connection) -> PullConsumer:
    return PullConsumer(
        connection,
        "BOX_EVENTS",
        "mail",
        None,  # type: ignore[arg-type] # it is not reached
        subjects=["box.events.*"],
        start=1,
        ack_wait=30.0,
    )


async def _begin_to_follow(connection: Connection) -> None:
    follower = Follower(connection, "BOX_EVENTS", lambda message, seq, time_ns: None, start=1)
    await follower._begin(None)  # type: ignore[arg-type] # it is not reached


CALLS: Final[dict[str, Callable[[Connection], Awaitable[object]]]] = {
    "api_level": topology.api_level,
    "ensure_stream": lambda c: topology.ensure_stream(c, topology.streams(c.subjects)[0]),
    "stream_info": lambda c: topology.stream_info(c, "BOX_EVENTS"),
    "remove": topology.remove,
    "read": lambda c: KeyValueView(c, "box_hosts", InstanceHealth).read("a"),
    "follow": _begin_to_follow,
    "open a durable": lambda c: _durable(c)._open(),
    "look at a durable": lambda c: _durable(c)._look(),
    "outstanding": lambda c: outstanding(c, "BOX_EVENTS", "mail"),
    "account": checks._account,
}
NOT_FOUND_IS_AN_ANSWER: Final = ("stream_info", "remove", "read", "outstanding")


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("exc", [*NATS, *JETSTREAM, *_SOCKET, *_UNREADABLE], ids=_name)
async def test_an_error_of_a_jetstream_call_becomes_a_bus_error(
    exc: Exception, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = FailingJetStream(exc)
    for module in _modules_with_jetstream():
        monkeypatch.setattr(module, "jetstream", lambda connection: failing)
    answer = isinstance(exc, nats.js.errors.NotFoundError) and call in NOT_FOUND_IS_AN_ANSWER
    expected = contextlib.suppress(BusError) if answer else pytest.raises(BusError)
    with expected as caught:
        await CALLS[call](_connection())
    assert failing.calls, "the fault happened"
    if caught is not None:
        assert caught.value.__cause__ is not None


def _modules_with_jetstream() -> list[Any]:
    from bridge.bus.jetstream import follower, kv_view, pull_consumer

    return [api, follower, kv_view, pull_consumer, topology]


@pytest.mark.parametrize("exc", [*NATS, *_SOCKET], ids=_name)
@pytest.mark.parametrize(
    "call",
    [
        lambda c: _awaited(c.publish("subject", b"data")),
        lambda c: c.request("subject", b"data"),
        lambda c: store(c, "subject", b"data"),
        lambda c: c.listen("subject", lambda message: None),
        lambda c: c.flush(),
    ],
    ids=["publish", "request", "store", "listen", "flush"],
)
async def test_an_error_of_a_connection_becomes_a_bus_error(
    exc: Exception, call: Callable[[Connection], Awaitable[object]]
) -> None:
    connection = _connection(FailingClient(exc))
    with pytest.raises(BusError) as caught:
        await call(connection)
    assert caught.value.__cause__ is exc
    assert not connection._requests
    assert not connection._listeners._all


async def _awaited(result: object) -> object:
    return result


@pytest.mark.parametrize("exc", [*NATS, *_SOCKET, *_UNREADABLE, RuntimeError()], ids=_name)
async def test_an_error_while_connecting_becomes_a_bus_error(
    exc: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = _connection(FailingClient(exc))
    monkeypatch.setattr(connect, "GuardedClient", lambda *_: FailingClient(exc))
    with pytest.raises(BusError) as caught:
        await connection._connect(1.0)
    assert caught.value.__cause__ is exc


async def test_text_that_has_no_bytes_is_refused_and_nothing_is_sent() -> None:
    connection = _connection()
    connection._client._status = connection._client.CONNECTED
    with pytest.raises(BusError, match="cannot listen"):
        await connection.listen("\ud800", lambda message: None)
    for headers in ({"name": "\ud800"}, {"line\nbreak:": ""}):
        with pytest.raises(BusError, match="cannot send"):
            connection.publish("subject", headers=headers)
    assert connection._client._pending == []


@pytest.mark.parametrize(
    "settings",
    [
        {"creds": "absent.creds"},
        {"creds": "nul\0byte"},
        {"creds": "broken"},
        {"nkey": "broken"},
        {"ca": "broken"},
        {"ca": "nul\0byte"},
        {"cert": "absent.pem"},
        {"cert": "broken", "key": "broken"},
    ],
    ids=str,
)
async def test_a_file_that_cannot_be_used_is_an_error_of_ours(
    settings: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "broken").write_bytes(b"\xff\xfe not a certificate")
    paths = {key: str(tmp_path / value) for key, value in settings.items()}
    with pytest.raises(BridgeError):
        async with Connection.open(NatsConfig(**paths), name="test", patience=0.1):  # type: ignore[arg-type]
            pass


@pytest.mark.parametrize("data", [b"", b"[]", b'"\xff"', b"[" * 10_000, b'{"ts":"0000"}'])
async def test_a_reply_that_cannot_be_read_is_an_error_of_ours(data: bytes) -> None:
    async def answer(self: Connection, subject: str, *_: object, **__: object) -> Message:
        return Message(subject, "", data, b"")

    connection = _connection()
    connection.request = answer.__get__(connection)  # type: ignore[method-assign]
    for call in (store(connection, "subject", b""), server_time(connection)):
        with pytest.raises(BusError):
            await call


async def test_a_missing_permission_names_the_subject() -> None:
    exc = NotPermitted("$JS.API.INFO")
    with (
        pytest.raises(BusError, match=r"cannot be followed: .*JS\.API\.INFO"),
        api.jetstream_errors("a stream", denied="a stream cannot be followed"),
    ):
        raise exc
    with pytest.raises(NotPermitted), api.jetstream_errors("a stream"):
        raise exc


async def test_cancellation_passes_through_the_boundary() -> None:
    async def wait() -> None:
        with api.jetstream_errors("a stream"):
            await asyncio.Event().wait()

    async with task_scope() as tasks:
        task = tasks.create_task(wait())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
