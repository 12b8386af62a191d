"""The instances that have ended, from the stored events: the reason, the exit code, and when."""

from __future__ import annotations

import contextlib
import signal
from collections import deque
from collections.abc import Iterable
from datetime import datetime
from typing import Final

from msgspec import Struct
from msgspec.structs import replace
from rich.table import Table
from rich.text import Text

from bridge.admin_protocol import FailedSlot
from bridge.bus.core.connection import Connection
from bridge.bus.core.message import Message
from bridge.bus.jetstream import replay
from bridge.bus.jetstream.start_position import Start
from bridge.console import clock, plain_table, state_text
from bridge.errors import BusError
from bridge.exit_text import parse_exit
from bridge.gateway.errors import ScaleError
from bridge.gateway.events.filter import read_event
from bridge.gateway.operator import Operator
from bridge.protocol import InstanceEvent, InstanceState, Time
from bridge.subjects import BOX_HOST, is_name

_MOST: Final = 1000  # instances that are kept, the last ones
_ENDS: Final = (InstanceState.STOPPED, InstanceState.FAILED)
_ASK_TIMEOUT: Final = 2.0  # seconds for the next tries, which only an operator may ask for


class EndedInstance(Struct, frozen=True, kw_only=True):
    """An instance that was stopped, or has failed, at `ended_at`.

    `exit_code` is that of its main process, `signal` what killed it; None where its Box did not
    note it, as after an orderly stop. `next_try` is when its host makes the next one; None if that
    is not due, or if this user may not ask.
    """

    id: str
    service: str
    state: InstanceState
    host: str
    reason: str
    exit_code: int | None
    signal: int | None
    ended_at: Time
    next_try: Time | None = None


class EndedInstances:
    """Gathers events in their order, and keeps the last instances that have ended."""

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}
        self._ended: deque[EndedInstance] = deque(maxlen=_MOST)

    def add(self, event: InstanceEvent, host: str) -> None:
        """Add the next event, which `host` published."""
        if event.to_state not in _ENDS:
            leaving = event.to_state in (InstanceState.DRAINING, InstanceState.STOPPING)
            if leaving and event.message and event.from_state is not event.to_state:
                self._reasons[event.instance_id] = event.message
            return
        reason = self._reasons.pop(event.instance_id, "")
        code, number = parse_exit(event.message)
        self._ended.append(
            EndedInstance(
                id=event.instance_id,
                service=event.service,
                state=event.to_state,
                host=host,
                reason=event.message or reason,
                exit_code=code,
                signal=number,
                ended_at=event.timestamp,
            )
        )

    def listed(self, failed: Iterable[FailedSlot] = ()) -> list[EndedInstance]:
        """The instances, the last one first; `failed` has the next tries."""
        tries = {slot.instance_id: slot.retry_at for slot in failed}
        return [replace(one, next_try=tries.get(one.id)) for one in reversed(self._ended)]


async def read_ended(
    connection: Connection, service: str, since: datetime | None
) -> list[EndedInstance]:
    """The instances of `service` ("": of all) that ended since then (None: all that are stored),
    the last one first. Raises BusError.
    """
    subjects, metrics, ended = connection.subjects, connection.metrics, EndedInstances()

    def take(message: Message) -> None:
        event = read_event(message, metrics)
        if event is not None and is_name(event.instance_id):
            ended.add(event, message.headers.get(BOX_HOST, ""))

    subject = subjects.events(service) if service else subjects.all_events
    start = Start.FIRST if since is None else since
    await replay.read(connection, subjects.events_stream, subject, take, start=start)
    return ended.listed(await _failed_slots(connection, service))


async def _failed_slots(connection: Connection, service: str) -> list[FailedSlot]:
    with contextlib.suppress(BusError, ScaleError):
        listed = await Operator(connection).services(service, timeout=_ASK_TIMEOUT)
        return [slot for one in listed for slot in one.failed]
    return []


def ended_table(ended: Iterable[EndedInstance], *, wide: bool = False) -> Table:
    """The table of ended instances."""
    table = plain_table("ID", "STATE", "EXIT", "ENDED", "HOST", "NEXT TRY", wide=wide)
    table.add_column("WHY", overflow="fold")
    for one in ended:
        table.add_row(
            Text(one.id),
            state_text(one.state),
            exit_text(one),
            clock(one.ended_at)[:-4],
            Text(one.host or "–"),
            "–" if one.next_try is None else clock(one.next_try)[:-4],
            Text(one.reason or "–"),
        )
    return table


def exit_text(one: EndedInstance) -> str:
    """The exit code, or the name of the signal."""
    if one.signal is not None:
        with contextlib.suppress(ValueError):
            return signal.Signals(one.signal).name
        return f"signal {one.signal}"
    return "–" if one.exit_code is None else str(one.exit_code)
