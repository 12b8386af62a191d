"""Rebuilding journal entries, so that a Box can adopt instances that its journal has lost.

The journal normally lists the instances to adopt. Where it was lost, the host lists them by the
label that every instance carries; the fleet's records and the event stream have the rest.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from datetime import datetime, timedelta
from typing import Final

from msgspec.structs import replace

from bridge.box.fleet.view import FleetView
from bridge.box.journal.entry import JournalEntry
from bridge.box.runtimes.base import LivingInstance
from bridge.box.runtimes.process_identity import GONE
from bridge.box.scheduler import on_request
from bridge.box.state.lifecycle import ENDED, Life
from bridge.box.state.records import HostIdentity, SlotRecord
from bridge.bus.core.connection import Connection
from bridge.bus.core.message import Message
from bridge.bus.jetstream import replay
from bridge.errors import ProtocolError
from bridge.protocol import InstanceEvent, InstanceState, ScaleConfig, decode
from bridge.settings import Config, ServiceConfig
from bridge.subjects import BOX_SEQ, parse_sequence

_log = logging.getLogger(__name__)

_CLOCKS: Final = timedelta(days=1)  # by which the clock of the host may be ahead of the server's


async def rebuild_entries(
    connection: Connection,
    fleet: FleetView,
    me: HostIdentity,
    config: Config,
    journaled: Mapping[str, JournalEntry],
    living: Mapping[str, LivingInstance],
) -> list[JournalEntry]:
    """Entries for this host's instances whose journal entry is missing or outdated.

    `living` are the instances on this host. A claim without any event and without a living instance
    gives no entry: its instance was never started. Raises BusError.
    """
    entries = []
    for service, slots in fleet.state.slots.items():
        outdated = {
            record.info.id: (slot, record)
            for slot, record in slots.items()
            if me.holds(record)
            and record.info.state not in ENDED
            and _is_outdated(journaled.get(record.info.id), record, alive=record.info.id in living)
        }
        if not outdated:
            continue
        oldest = min(record.info.created_at for _, record in outdated.values())
        events = await _last_events(connection, service, outdated.keys(), oldest - _CLOCKS)
        desired = fleet.state.services.get(service)
        made_from = config.services.get(service) or (
            on_request.made_from(desired) if desired else None
        )
        for name, (slot, record) in outdated.items():
            alive, last = living.get(name), events.get(name)
            if record.seq == 0 and alive is None and last is None:
                continue
            entries.append(_entry(slot, record, last, alive, made_from))
            _log.warning("the journal has lost %s: rebuilt from the records of the fleet", name)
    return entries


def _is_outdated(entry: JournalEntry | None, record: SlotRecord, *, alive: bool) -> bool:
    """Whether the slot's record or the host itself knows more than the journal."""
    if entry is None or record.seq > entry.life.seq:
        return True
    return alive and entry.identity is None


def _entry(
    slot: int,
    record: SlotRecord,
    last: tuple[int, InstanceEvent] | None,
    alive: LivingInstance | None,
    made_from: ServiceConfig | None,
) -> JournalEntry:
    """The entry by the slot's record, by the last event where that is newer, and by the host."""
    info, seq = record.info, record.seq
    if last is not None and last[0] > seq:
        seq, event = last
        ready = event.to_state is InstanceState.READY and info.ready_at is None
        info = replace(
            info, state=event.to_state, ready_at=event.timestamp if ready else info.ready_at
        )
    return JournalEntry(
        slot=slot,
        config=record.config,
        service=made_from or ServiceConfig(command=[info.service]),
        overrides=ScaleConfig(),
        life=Life(info=info, seq=seq),
        identity=alive.identity if alive else GONE,
        port=alive.port if alive else 0,
        registered=info.endpoint is not None,
    )


async def _last_events(
    connection: Connection, service: str, ids: AbstractSet[str], since: datetime
) -> dict[str, tuple[int, InstanceEvent]]:
    """The last event of each of `ids` that the stream has stored since then, with its Box-Seq.

    It has no deadline: without these events the Box would number the next ones from 1 again, and
    the stream would drop them as repeated.
    """
    last: dict[str, tuple[int, InstanceEvent]] = {}

    def take(message: Message) -> None:
        try:
            event = decode(InstanceEvent, message.data)
        except ProtocolError:
            return  # not an event of a Box; readers of the stream count it
        seq = parse_sequence(message.headers.get(BOX_SEQ, ""))
        if event.instance_id in ids and seq is not None:
            last[event.instance_id] = seq, event

    def report(count: int) -> None:
        _log.info("rebuilding the journal: %d events of %s are read", count, service)

    subjects = connection.subjects
    await replay.read(
        connection,
        subjects.events_stream,
        subjects.events(service),
        take,
        start=since,
        idle=None,
        timeout=None,
        progress=report,
    )
    return last
