"""The stream of dead letters: made when it is needed, and nothing leaves it unseen."""

from __future__ import annotations

import pytest
from nats.js.api import DiscardPolicy

from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream import topology
from bridge.bus.jetstream.api import jetstream
from bridge.bus.jetstream.dead_letters import dead_stream, ensure_dead_stream
from bridge.bus.jetstream.publish import store
from bridge.errors import NameRefused, StoreRefused, TopologyMismatch
from bridge.subjects import Subjects
from tests.support import connect


async def test_it_is_made_once_beside_the_others_and_keeps_what_it_has(
    server: EmbeddedServer,
) -> None:
    async with connect(server.url) as connection:
        await topology.ensure(connection)
        await ensure_dead_stream(connection)
        await store(connection, connection.subjects.dead("relay"), b"letter")
        await ensure_dead_stream(connection)
        info = await jetstream(connection).stream_info("BOX_DEAD")
        assert info.state.messages == 1
        assert info.config.max_age == 30 * topology.DAY
        assert await topology.ensure(connection) == []


async def test_a_full_one_refuses_instead_of_forgetting(server: EmbeddedServer) -> None:
    async with connect(server.url) as connection:
        small = dead_stream(Subjects()).evolve(max_bytes=10_000)
        await jetstream(connection).add_stream(small)
        await store(connection, "box.dead.relay", b"x" * 8000)
        with pytest.raises(StoreRefused, match="maximum bytes"):
            await store(connection, "box.dead.relay", b"x" * 8000)


async def test_one_that_would_forget_is_refused(server: EmbeddedServer) -> None:
    async with connect(server.url) as connection:
        forgetful = dead_stream(Subjects()).evolve(discard=DiscardPolicy.OLD)
        await jetstream(connection).add_stream(forgetful)
        with pytest.raises(TopologyMismatch, match="discard is old"):
            await ensure_dead_stream(connection)


def test_its_subjects_are_the_fleets_own() -> None:
    subjects = Subjects(prefix="b2")
    assert (subjects.dead_stream, subjects.dead("relay")) == ("B2_DEAD", "b2.dead.relay")
    with pytest.raises(NameRefused):
        subjects.dead("a.b")
