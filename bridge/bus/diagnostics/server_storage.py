"""How much JetStream storage the server has left, which no client may ask it.

The account's information has the account's limits alone, so it reports no limit for a server whose
`max_file_store` is nearly reached. A trial shows it: a stream whose subject belongs to an existing
stream can never be created, and a server checks its storage first. The code of its refusal tells
whether it could have reserved the size. Nothing is created.

A server in a cluster checks the subject first, so there the result is unknown.
"""

from __future__ import annotations

import contextlib
from typing import Any, Final

import msgspec
from msgspec import Struct, field
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig

from bridge.bus.core.connection import Connection
from bridge.bus.diagnostics.permissions import NOBODY
from bridge.bus.jetstream import api, topology
from bridge.diagnostics import Finding, fail, warn
from bridge.errors import BusError, NotPermitted, StoreRefused, StoreUnsuitable

FULL: Final = 0.8  # of what there is
SPENT: Final = 0.99
ROOM: Final = 16 * 2**20  # bytes that should be free beside what streams reserve

_NO_ROOM: Final = (10002, 10023, 10028, 10047)
_OVERLAP: Final = 10065
_STEPS: Final = 12  # of the search, each a trial: to 1/4096


class Storage(Struct, frozen=True, kw_only=True):
    """The storage of one kind, in bytes. `used` and `reserved` are those of the account; `room` can
    be reserved beyond that, or more: the search stops at what is plenty. It `needs_room` if a
    stream of the fleet has no bound, for which the server reserves nothing.
    """

    kind: str
    used: int
    reserved: int
    room: int
    needs_room: bool

    @property
    def capacity(self) -> int:
        """What the streams of this account can hold."""
        return self.reserved + self.room


class _Tier(Struct):
    memory: int = 0
    storage: int = 0
    reserved_memory: int = 0
    reserved_storage: int = 0


class _Account(_Tier):
    tiers: dict[str, _Tier] = field(default_factory=dict)


async def shortage(connection: Connection) -> Finding | None:
    """The finding about a storage that is full, or soon will be; None if there is none."""
    for it in await storages(connection):
        setting = f"max_{it.kind}_store of the server"
        message = f"JetStream has {_mib(it.used)} of {_mib(it.capacity)} in use ({it.kind})"
        if it.used >= it.capacity * SPENT:
            return fail(
                message, f"raise {setting}, or free some: docs/how-to/free-a-full-stream.md"
            )
        if it.used >= it.capacity * FULL:
            return warn(message, f"raise {setting}, or store less")
        if it.needs_room and it.room < ROOM:
            return warn(
                f"only {_mib(it.room)} are left ({it.kind}) beside what streams reserve",
                f"raise {setting}, or lower max_bytes of a stream: the fleet's records need room",
            )
    return None


async def storages(connection: Connection) -> list[Storage]:
    """What is left of the file storage and the memory; empty where a trial cannot show it.

    Raises BusError.
    """
    configs = await _existing(connection)
    if not configs or connection.server_info.get("cluster"):
        return []
    [taken, *_] = configs[0].subjects or [""]
    account = await _account(connection)
    parts = [account, *account.tiers.values()]
    found = []
    for kind, storage, used, reserved in (
        ("file", StorageType.FILE, "storage", "reserved_storage"),
        ("memory", StorageType.MEMORY, "memory", "reserved_memory"),
    ):
        uses, holds = (sum(getattr(part, name) for part in parts) for name in (used, reserved))
        plenty = max(ROOM, int(uses / FULL) - holds + 1)
        try:
            room = await _room(connection, storage, taken, plenty)
        except (NotPermitted, StoreRefused):  # this user may not create streams; another version
            return []
        unbounded = any(it.storage == storage and (it.max_bytes or 0) <= 0 for it in configs)
        found.append(Storage(kind=kind, used=uses, reserved=holds, room=room, needs_room=unbounded))
    return found


async def _existing(connection: Connection) -> list[StreamConfig]:
    """The streams of the fleet that exist and that this user may inspect."""
    found = []
    for config in topology.streams(connection.subjects):
        with contextlib.suppress(StoreUnsuitable):  # this user may not inspect it
            if info := await topology.stream_info(connection, str(config.name)):
                found.append(info.config)
    return found


async def _account(connection: Connection) -> _Account:
    subject = api.api_subject(connection, "INFO")
    with api.jetstream_errors("JetStream"):
        answer = await api.RequestAdapter(connection).request(subject)
        return msgspec.json.decode(answer.data, type=_Account)


async def _room(connection: Connection, storage: StorageType, taken: str, most: int) -> int:
    """The bytes that can be reserved, `most` at most."""
    if await _fits(connection, storage, taken, most):
        return most
    low, high = 0, most
    for _ in range(_STEPS):
        middle = (low + high) // 2
        if middle > 0 and await _fits(connection, storage, taken, middle):
            low = middle
        else:
            high = middle
    return low


def _mib(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"


async def _fits(connection: Connection, storage: StorageType, taken: str, size: int) -> bool:
    """Whether `size` bytes could be reserved. Raises StoreRefused if the refusal has another
    reason.
    """
    limits: dict[str, Any] = {"discard": DiscardPolicy.NEW, "retention": RetentionPolicy.LIMITS}
    config = StreamConfig(name=NOBODY, subjects=[taken], storage=storage, max_bytes=size, **limits)
    try:
        with api.jetstream_errors(NOBODY):
            await api.jetstream(connection).add_stream(config)
    except StoreRefused as exc:
        if exc.code in (_OVERLAP, *_NO_ROOM):
            return exc.code == _OVERLAP
        raise
    # The stream of that subject was deleted in this moment.
    with api.jetstream_errors(NOBODY):
        await api.jetstream(connection).delete_stream(NOBODY)
    raise BusError(f"a stream of {taken} was deleted meanwhile: run this again")
