"""Events that can never be stored: kept apart, reported, and no obstacle for the others."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from msgspec.structs import replace

from bridge import RouteTable
from bridge.box.daemon import Box
from bridge.box.journal.entry import PendingEvent
from bridge.box.journal.journal import Journal
from bridge.box.journal.store import JOURNAL, JournalStore, read_snapshot
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream import topology
from bridge.bus.jetstream.api import jetstream
from bridge.bus.jetstream.publish import OutgoingMessage
from bridge.bus.jetstream.publisher import Publisher
from bridge.errors import BusError, InvalidMessage, TooLarge
from bridge.protocol import encode, now
from tests.boxes import serving
from tests.integration.test_alerts import alerts_of
from tests.stored_events import note, outgoing
from tests.support import ask, box_config, connect, eventually


@pytest.mark.parametrize("count", [2, 20])  # one by one, and as an atomic batch
async def test_a_message_that_can_never_be_stored_delays_no_other(
    server: EmbeddedServer, count: int
) -> None:
    refused: list[tuple[OutgoingMessage, BusError]] = []

    async def restore() -> None:
        await topology.ensure(connection)

    async with connect(server.url) as connection:
        await topology.ensure(connection)
        messages = [outgoing(note(f"{number}")) for number in range(count)]
        header = outgoing(note("a line break in a header"))
        header = replace(header, headers={**header.headers, "traceparent": "a\nb"})
        large = replace(outgoing(note("too large for the stream")), data=b"x" * 70_000)
        larger = replace(outgoing(note("too large for the server")), data=b"x" * 2_000_000)
        half = count // 2
        publisher = Publisher(connection, "BOX_EVENTS", 60.0, now, restore)
        await publisher.publish(
            [*messages[:half], header, large, larger, *messages[half:]],
            on_refusal=lambda message, exc: refused.append((message, exc)),
        )
        info = await jetstream(connection).stream_info("BOX_EVENTS")
        assert info.state.messages == count
        kinds = {message.data: type(exc) for message, exc in refused}
        assert kinds == {header.data: InvalidMessage, large.data: TooLarge, larger.data: TooLarge}


async def test_events_that_their_stream_never_takes_are_kept_and_reported(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    config = box_config(tmp_path, server.url)
    async with connect(server.url) as gateway:
        async with Box.running(config) as box:
            js = jetstream(gateway)
            stream = (await js.stream_info("BOX_EVENTS")).config
            await js.update_stream(stream, max_msg_size=1)
            assert (await ask(gateway, "web", 1)).accepted
            await serving(gateway, "web", 1)
            alert = await eventually(lambda: alerts_of(gateway), what="an alert")
            assert "can never be stored, kept in the journal" in alert
            assert "max_msg_size" in alert
            value = box.metrics.registry.get_sample_value
            await eventually(lambda: value("box_bridge_rejected_events") == 2.0)
            assert value("box_bridge_backlog_events") == 0.0
            async with RouteTable.open(gateway, "web") as table:
                await table.wait_ready("web", 1)
            await js.update_stream(stream)
        # What ended the instance could be stored again.
        assert (await js.stream_info("BOX_EVENTS")).state.messages == 3
        count, reason = read_snapshot(config.data_dir / JOURNAL).rejected
        assert (count, "max_msg_size" in reason) == (2, True)
        async with Box.running(config):  # the next process reports them too
            assert "2 events can never be stored" in await alerts_of(gateway)


@pytest.mark.parametrize("data", [b"{", b"\xff", b"[]"])
async def test_a_journaled_event_that_cannot_be_read_is_kept_apart(
    server: EmbeddedServer, tmp_path: Path, data: bytes
) -> None:
    config = box_config(tmp_path, server.url)
    event = encode(replace(note("of an earlier process"), service="web", instance_id="web-0"))
    config.data_dir.mkdir()
    async with Journal.open(config.data_dir / JOURNAL):
        pass
    with contextlib.closing(JournalStore(config.data_dir / JOURNAL)) as store:
        rows = [(1, data), (2, event), (3, data), (4, event), (5, data)]
        store.apply([("outbox", (n, n), (n, "web-0", n, blob, "")) for n, blob in rows])
    async with connect(server.url) as gateway, Box.running(config) as box:
        value = box.metrics.registry.get_sample_value
        await eventually(lambda: value("box_bridge_backlog_events") == 0.0)
        assert value("box_bridge_rejected_events") == 3.0
        assert (await jetstream(gateway).stream_info("BOX_EVENTS")).state.messages == 2
        alert = await eventually(lambda: alerts_of(gateway), what="an alert")
        assert "3 events can never be stored" in alert
    assert not list(config.data_dir.glob("journal.db.damaged-*"))
    with contextlib.closing(JournalStore(config.data_dir / JOURNAL, readonly=True)) as store:
        assert [n for n, _ in store.rejected_sizes()] == [1, 3, 5]
        assert store.backlog() == 0


@pytest.mark.parametrize(("service", "trace"), [("not a name", ""), ("web", "00-\r\nx: y")])
async def test_a_journaled_event_that_cannot_be_sent_delays_no_other_after_a_restart(
    server: EmbeddedServer, tmp_path: Path, service: str, trace: str
) -> None:
    config = box_config(tmp_path, server.url)
    event = replace(note("of an earlier process"), service=service, instance_id="web-0")
    item = PendingEvent(1, 1, event, trace, encode(event))
    config.data_dir.mkdir()
    async with Journal.open(config.data_dir / JOURNAL):
        pass
    with contextlib.closing(JournalStore(config.data_dir / JOURNAL)) as store:
        row = (item.n, "web-0", item.seq, item.data, item.traceparent)
        store.apply([("outbox", (1, 1), row)])
    async with connect(server.url) as gateway, Box.running(config) as box:
        assert (await ask(gateway, "web", 1)).accepted
        await serving(gateway, "web", 1)
        value = box.metrics.registry.get_sample_value
        await eventually(lambda: value("box_bridge_backlog_events") == 0.0)
        # Without its invalid trace the event can be stored.
        assert value("box_bridge_rejected_events") == (0.0 if trace else 1.0)
        if not trace:
            alert = await eventually(lambda: alerts_of(gateway), what="an alert")
            assert "is not a name" in alert
