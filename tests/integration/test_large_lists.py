"""Lists of ten thousand instances: whole, in few answers, for clients with and without a cursor."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge import ScaleClient
from bridge.bench import fleets
from bridge.bus.core.connection import Connection
from bridge.bus.embedded_server import EmbeddedServer
from bridge.protocol import InstancesResponse, decode
from tests.boxes import boxed
from tests.support import connect, eventually

pytestmark = pytest.mark.slow

COUNT = 10_000


async def test_ten_thousand_instances_are_listed_whole_in_few_answers(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with boxed(server, tmp_path), connect(server.url) as connection:
        await fleets.record(connection, COUNT)
        client = ScaleClient(connection)
        ids: set[str] = set()

        async def all_seen() -> bool:
            ids.update(info.id for info in (await client.observe()).instances)
            return len(ids) == COUNT

        await eventually(all_seen)
        queries = list[str]()
        inquire = Connection.inquire

        def counted(self: Connection, subject: str, *args: object, **kwargs: object) -> object:
            queries.append(subject)
            return inquire(self, subject, *args, **kwargs)  # type: ignore[arg-type]

        monkeypatch.setattr(Connection, "inquire", counted)
        listed = await client.observe()
        assert listed.total == len(listed.hosts) == COUNT
        assert {info.id for info in listed.instances} == ids
        assert len(queries) <= 6, "a page is as long as max_payload allows"

        offsets = list[str]()
        while True:
            body = b'{"offset": %d, "limit": 500}' % len(offsets)
            reply = await connection.request("box.instances", body)
            page = decode(InstancesResponse, reply.data)
            offsets += [info.id for info in page.instances]
            if len(offsets) >= page.total:
                break
        assert offsets == [info.id for info in listed.instances]
