"""The whole history in `BOX_EVENTS`, and whether it is one that instances can have lived."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from msgspec import Struct

from bridge.box.state.lifecycle import ENDED, NEXT
from bridge.bus.core.connection import Connection
from bridge.bus.core.message import Message
from bridge.bus.jetstream import replay
from bridge.bus.jetstream.ack_subject import parse_position
from bridge.protocol import InstanceEvent, InstanceInfo, InstanceState, decode
from bridge.subjects import BOX_SEQ
from tests.support import eventually

S = InstanceState


class Told(Struct, frozen=True):
    """A stored event: its place in the stream, its Box-Seq, what it says, and its batch's id."""

    place: int
    seq: int
    event: InstanceEvent
    batch: str


async def read_history(connection: Connection, service: str = "*") -> list[Told]:
    """Every event that the stream holds, of one service or of all, from the first on."""
    found: dict[int, Told] = {}  # by place: after a gap reading starts over

    def take(message: Message) -> None:
        if BOX_SEQ not in message.headers:
            return  # a test's own vandalism
        position = parse_position(message.reply)
        assert position is not None, message.reply
        found[position.stream_seq] = Told(
            position.stream_seq,
            int(message.headers[BOX_SEQ]),
            decode(InstanceEvent, message.data),
            message.headers.get("Nats-Batch-Id", ""),
        )

    subject = f"{connection.subjects.prefix}.events.{service}"
    await replay.read(connection, connection.subjects.events_stream, subject, take)
    return [found[place] for place in sorted(found)]


def check_history(told: Iterable[Told], lost: Iterable[Told] = ()) -> dict[str, list[Told]]:
    """The events by instance; fails unless each chain is unbroken, stored once, and legal.

    `lost` is what had been stored by the time that the store was lost. An event of it may be
    there still, in its old place, but was not told a second time.
    """
    chains: dict[str, list[Told]] = {}
    before = {(one.event.instance_id, one.seq): one for one in lost}
    seen: set[tuple[str, int]] = set()
    for one in told:
        key = (one.event.instance_id, one.seq)
        assert key not in seen, f"stored twice: {one}"
        seen.add(key)
        assert before.pop(key, one) == one, f"told again after it had been stored: {one}"
        chains.setdefault(one.event.instance_id, []).append(one)
    for chain in chains.values():
        assert chain == sorted(chain, key=lambda one: one.seq), f"stored out of order: {chain}"
    for one in before.values():
        chains.setdefault(one.event.instance_id, []).append(one)
    for chain in chains.values():
        chain.sort(key=lambda one: one.seq)
        _check_chain(chain)
    return chains


def states(chain: Iterable[Told]) -> list[InstanceState]:
    """Where the instance went, one state after the other, without notes and without Busy:
    whether a request is met by a sample is chance.
    """
    went = [one.event.to_state for one in chain if one.event.to_state is not S.BUSY]
    return [state for state, _ in itertools.groupby(went)]


class History:
    """Every stored event, by instance, in the order of the stream."""

    def __init__(self, told: Iterable[Told] = ()) -> None:
        self.told = list(told)

    @classmethod
    async def read(cls, connection: Connection) -> History:
        """All that the stream holds now."""
        return cls(await read_history(connection))

    @classmethod
    async def settled(cls, connection: Connection, living: Iterable[InstanceInfo]) -> History:
        """The history once it has the end of every instance except the `living`."""
        alive = {info.id for info in living}
        found = cls()

        async def ended() -> bool:
            nonlocal found
            found = await cls.read(connection)
            return all(name in alive or went[-1] in ENDED for name, went in found.states().items())

        await eventually(ended, what=f"all chains but of {alive} have ended")
        return found

    @property
    def events(self) -> dict[str, list[tuple[int, InstanceEvent]]]:
        """The events of each instance, with their Box-Seq."""
        events: dict[str, list[tuple[int, InstanceEvent]]] = {}
        for one in self.told:
            events.setdefault(one.event.instance_id, []).append((one.seq, one.event))
        return events

    @property
    def total(self) -> int:
        return len(self.told)

    def states(self) -> dict[str, list[InstanceState]]:
        """The states that each instance went to."""
        return {name: [event.to_state for _, event in told] for name, told in self.events.items()}

    def check(self) -> None:
        """See `check_history`."""
        check_history(self.told)


def _check_chain(chain: list[Told]) -> None:
    assert [one.seq for one in chain] == list(range(1, len(chain) + 1)), f"a gap: {chain}"
    state = S.CREATING
    for one in chain:
        event = one.event
        assert event.from_state is state, f"{event} after {state}"
        note = event.to_state is state and state not in ENDED
        assert note or event.to_state in NEXT[state], f"{event} is no step of a life"
        state = event.to_state
