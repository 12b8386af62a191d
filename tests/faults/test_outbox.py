"""Events on their way out of the journal: none is lost, doubled or overtaken."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from bridge.box.journal.entry import JournalEntry
from bridge.box.journal.journal import Journal
from bridge.box.journal.outbox import Outbox
from bridge.box.state import lifecycle
from bridge.bus.core.connection import Connection
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream import topology
from bridge.bus.jetstream.publisher import Publisher
from bridge.protocol import InstanceState, ScaleConfig, now
from bridge.settings import ServiceConfig
from bridge.tasks import task_scope
from tests.faults.history import check_history, read_history
from tests.support import connect, eventually

S = InstanceState


class Killed(Exception):
    """The process ends here."""


def begin(number: int) -> JournalEntry:
    return JournalEntry(
        slot=number,
        config="c",
        service=ServiceConfig(command=["run", "{port}"]),
        overrides=ScaleConfig(),
        life=lifecycle.begin(f"web-{number}", "web", now()),
    )


def tell(journal: Journal, instances: int, steps: int) -> None:
    """So many events of each of so many instances, which take turns."""
    entries = [begin(number) for number in range(instances)]
    for _ in range(steps):
        for index, entry in enumerate(entries):
            state = entry.life.info.state
            to = {S.CREATING: S.BOOTING, S.BUSY: S.READY, S.READY: S.BUSY}.get(state, S.READY)
            life, event = lifecycle.step(entry.life, to, now())
            entries[index] = replace(entry, life=life)
            journal.put(entries[index], event)


@asynccontextmanager
async def sending(
    connection: Connection, path: Path, stored: Callable[[], None] = lambda: None
) -> AsyncIterator[tuple[Journal, Outbox]]:
    """A journal whose events are sent; `stored` is called when some are, before that is noted."""

    async def restore() -> None:
        await topology.ensure(connection)

    async with Journal.open(path) as journal:
        note = journal.mark_stored

        def sent(numbers: Sequence[int]) -> None:
            stored()
            note(numbers)

        journal.mark_stored = sent  # type: ignore[method-assign]
        publisher = Publisher(connection, "BOX_EVENTS", topology.DAY, now, restore)
        outbox = Outbox(journal, publisher, connection.subjects, "box-a", connection.metrics)
        async with task_scope() as tasks:
            tasks.create_task(outbox.run())
            yield journal, outbox


async def killed_after_storing(connection: Connection, path: Path, steps: int) -> None:
    """Publish events of three instances, and end before any of them is recorded."""

    def die() -> None:
        raise Killed

    async with sending(connection, path, die) as (journal, outbox):
        tell(journal, 3, steps)
        await outbox.flush()


@pytest.mark.parametrize("steps", [3, 400])  # singles; one whole batch, and part of another
async def test_a_kill_between_a_publish_and_its_record_stores_no_event_twice(
    server: EmbeddedServer, tmp_path: Path, steps: int
) -> None:
    path = tmp_path / "journal.db"
    async with connect(server.url) as connection:
        await topology.ensure(connection)
        with pytest.raises(Killed):
            await killed_after_storing(connection, path, steps)
        stored_before = len(await read_history(connection))
        async with sending(connection, path) as (journal, outbox):
            assert journal.backlog == 3 * steps  # the next life does not know of it
            await outbox.flush()
        told = await read_history(connection)
    assert 0 < stored_before <= len(told) == 3 * steps
    assert {len(chain) for chain in check_history(told).values()} == {steps}


async def test_an_outage_during_thousands_of_events_loses_and_doubles_none(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    pages = 0

    def kill_at_second() -> None:
        nonlocal pages
        pages += 1
        if pages == 2:
            os.kill(server.pid, signal.SIGKILL)

    async with connect(server.url) as connection:
        await topology.ensure(connection)
        async with sending(connection, tmp_path / "journal.db", kill_at_second) as (
            journal,
            outbox,
        ):
            tell(journal, 50, 100)
            await eventually(lambda: not connection.connected)
            await server.kill()
            assert 0 < journal.backlog < 5000
            assert outbox.oldest
            await server.start()
            await outbox.flush()
            assert not outbox.oldest
        chains = check_history(await read_history(connection))
    assert len(chains) == 50
    assert {len(chain) for chain in chains.values()} == {100}


async def test_events_of_an_outage_are_published_after_its_end(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with connect(server.url) as connection:
        await topology.ensure(connection)
        async with sending(connection, tmp_path / "journal.db") as (journal, outbox):
            await server.kill()
            await eventually(lambda: not connection.connected)
            tell(journal, 5, 5)
            await journal.wait_written()
            assert journal.backlog == 25
            await server.start()
            await outbox.flush()
        assert len(check_history(await read_history(connection))) == 5


async def test_a_missing_stream_is_created_again_for_the_next_event(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with connect(server.url) as connection:  # without a stream
        async with sending(connection, tmp_path / "journal.db") as (journal, outbox):
            tell(journal, 5, 5)
            await outbox.flush()
        assert len(check_history(await read_history(connection))) == 5
