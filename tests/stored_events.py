"""Events stored by a test itself, as a Box would, and what a reader got of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from bridge.bus.core.connection import Connection
from bridge.bus.jetstream import topology
from bridge.bus.jetstream.api import jetstream
from bridge.bus.jetstream.publish import OutgoingMessage
from bridge.bus.jetstream.publisher import Publisher
from bridge.protocol import InstanceEvent, InstanceState, encode, now
from tests.support import eventually

S = InstanceState
_numbers = itertools.count(1)


def note(text: str, service: str = "web", state: S = S.READY) -> InstanceEvent:
    """An event that says `text`."""
    name = f"{service}-1"
    return InstanceEvent.transition(name, service, S.READY, state).with_message(text)


def outgoing(event: InstanceEvent, number: int | None = None) -> OutgoingMessage:
    """`event` as a Box would publish it, with the Box-Seq `number`."""
    number = next(_numbers) if number is None else number
    return OutgoingMessage(
        subject=f"box.events.{event.service}",
        data=encode(event),
        headers={
            "Nats-Msg-Id": f"{event.instance_id}.{number}",
            "Box-Seq": str(number),
            "Box-Host": "box-a",
        },
        key=event.instance_id,
        at=event.timestamp,
    )


async def tell(
    connection: Connection, *texts: str, service: str = "web", state: S = S.READY
) -> None:
    """Store events that say these `texts`, in their order."""
    await store_all(connection, [outgoing(note(text, service, state)) for text in texts])


async def store_all(connection: Connection, messages: Iterable[OutgoingMessage]) -> None:
    """Store `messages`, over any outage, 1,000 at a time."""

    async def restore() -> None:
        await topology.ensure(connection)

    publisher = Publisher(connection, "BOX_EVENTS", 60.0, now, restore)
    rest = iter(messages)
    while part := list(itertools.islice(rest, 1000)):
        await publisher.publish(part)


async def age_out(connection: Connection) -> None:
    """Have the stream let go of all that it holds, as by age."""
    js = jetstream(connection)
    config = (await js.stream_info("BOX_EVENTS")).config
    old = config.duplicate_window
    await js.update_stream(config.evolve(max_age=0.2, duplicate_window=0.1))

    async def empty() -> bool:
        return (await js.stream_info("BOX_EVENTS")).state.messages == 0

    await eventually(empty, what="all has aged out")
    await js.update_stream(config.evolve(max_age=config.max_age, duplicate_window=old))


def texts(items: Iterable[object]) -> list[str]:
    """What the events say; for others than events, the name of their type."""
    return [
        item.message if isinstance(item, InstanceEvent) else type(item).__name__ for item in items
    ]
