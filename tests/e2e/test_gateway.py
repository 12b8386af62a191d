"""`box-bridge gateway` as a user runs it."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import aiohttp

from bridge.bus.embedded_server import EmbeddedServer
from tests.boxes import boxed
from tests.e2e.program import run, running


async def fetch(url: str) -> Any:
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        return json.loads(await answer.read())


async def test_the_daemon_answers_over_http_until_a_signal(
    home: Path, server: EmbeddedServer
) -> None:
    async with (
        boxed(server, home),
        running("gateway", "--listen", "127.0.0.1:0", "-s", server.url, cwd=home) as gateway,
    ):
        listening = await gateway.wait_for(r"Listening on (http://127\.0\.0\.1:\d+);")
        url = listening[1]
        assert (await fetch(f"{url}/v1/scale/web"))["replicas"] == 0
        document = await fetch(f"{url}/openapi.json")
        assert "/v1/scale/{service}" in document["paths"]
        gateway.process.send_signal(signal.SIGTERM)
        assert await gateway.wait() == 0


async def test_an_address_that_others_reach_needs_tokens(
    home: Path, server: EmbeddedServer
) -> None:
    for listen, expected in (
        ("0.0.0.0:9090", "set tokens_file (--tokens-file)"),
        ("9090", "must be HOST:PORT"),
    ):
        result = await run("gateway", "--listen", listen, "-s", server.url, cwd=home)
        assert (result.code, expected in result.err) == (2, True), result.err
