"""What the gateway daemon serves beside the scale contract: routes, discovery, streams, health."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from bridge.bus.embedded_server import EmbeddedServer
from bridge.errors import ConfigError
from bridge.gateway.http.server import GatewayConfig
from tests.boxes import boxed, serving
from tests.integration.test_http_scale import daemon, fleet
from tests.support import ask, eventually


async def next_event(stream: aiohttp.ClientResponse) -> dict[str, str]:
    """The fields of the next server-sent event."""
    fields: dict[str, str] = {}
    async with asyncio.timeout(60):
        async for line in stream.content:
            text = line.decode().rstrip("\r\n")
            if not text and fields:
                return fields
            name, _, value = text.partition(": ")
            if name:
                fields[name] = value
    raise AssertionError("the stream has ended")


async def test_routes_and_discovery_list_exactly_what_takes_traffic(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with fleet(server, tmp_path) as (client, gateway):
        assert await client.get("/v1/discovery/traefik") == (200, {})
        await ask(gateway, "web", 2)
        infos = await serving(gateway, "web", 2)

        async def routed() -> bool:
            return len((await client.get("/v1/routes/web"))[1]) == 2

        await eventually(routed)
        endpoints = sorted(info.endpoint for info in infos if info.endpoint)
        _, routes = await client.get("/v1/routes")
        assert sorted(route["endpoint"] for route in routes) == endpoints
        assert await client.get("/v1/routes/api") == (200, [])
        _, groups = await client.get("/v1/discovery/prometheus")
        assert sorted(target for group in groups for target in group["targets"]) == endpoints
        assert {group["labels"]["box_service"] for group in groups} == {"web"}
        _, config = await client.get("/v1/discovery/traefik")
        servers = config["http"]["services"]["web"]["loadBalancer"]["servers"]
        assert sorted(item["url"] for item in servers) == [f"http://{each}" for each in endpoints]
        _, seen = await client.get("/v1/instances?service=web")
        assert {info["id"] for info in seen["instances"]} == {info.id for info in infos}
        _, services = await client.get("/v1/services")
        assert {item["name"] for item in services} == {"web", "api"}
        _, hosts = await client.get("/v1/hosts")
        assert [host["name"] for host in hosts] == ["box-a"]
        assert (await client.get("/readyz"))[0] == 200
        async with client.session.get(client.url + "/metrics") as answer:
            text = await answer.text()
        assert "box_gateway_routes 2.0" in text
        assert 'box_gateway_requests_total{method="GET",path="/v1/routes",status="200"} 1.0' in text


async def test_a_watcher_of_routes_gets_the_table_and_each_change(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with (
        fleet(server, tmp_path) as (client, gateway),
        client.session.get(client.url + "/v1/routes?watch=true") as stream,
    ):
        assert stream.content_type == "text/event-stream"
        first = await next_event(stream)
        assert (first["event"], json.loads(first["data"])["routes"]) == ("resync", [])
        await ask(gateway, "web", 1)
        added = await next_event(stream)
        assert added["event"] == "put"
        instance = json.loads(added["data"])["route"]["instance_id"]
        await ask(gateway, "web", 0)
        events = [added]
        while events[-1]["event"] != "delete":
            events.append(await next_event(stream))
        assert json.loads(events[-1]["data"])["instance_id"] == instance


async def test_a_reader_of_events_resumes_after_the_last_one_that_it_got(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with fleet(server, tmp_path) as (client, gateway):
        url = client.url + "/v1/events?service=web"
        async with client.session.get(url) as stream:
            await ask(gateway, "web", 1)
            first = await next_event(stream)
        await serving(gateway, "web", 1)
        headers = {"Last-Event-ID": first["id"]}
        async with client.session.get(url, headers=headers) as stream:
            second = await next_event(stream)
        states = [json.loads(item["data"])["to_state"] for item in (first, second)]
        assert states == ["Booting", "Ready"]
        for wrong in ("x", "1@yesterday"):
            status, problem = await client.get("/v1/events", headers={"Last-Event-ID": wrong})
            assert (status, problem["code"]) == (400, "invalid_request")


@pytest.mark.slow
async def test_the_daemon_is_not_ready_while_its_routes_are_old(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with boxed(server, tmp_path), daemon(server, stale=0.5) as client:
        assert (await client.get("/readyz"))[0] == 200
        server.pause()
        try:

            async def not_ready() -> bool:
                return (await client.get("/readyz"))[0] == 503

            await eventually(not_ready)
            assert (await client.get("/healthz"))[0] == 200
        finally:
            server.resume()

        async def ready() -> bool:
            return (await client.get("/readyz"))[0] == 200

        await eventually(ready)


@pytest.mark.slow
async def test_thousands_of_silent_connections_keep_nobody_out(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with fleet(server, tmp_path) as (client, _):
        host, port = client.url.removeprefix("http://").split(":")
        silent = [socket.create_connection((host, int(port)), timeout=20) for _ in range(400)]
        try:
            assert (await client.scale("web"))["replicas"] == 0
            silent[0].setblocking(False)

            async def closed() -> bool:
                try:
                    return silent[0].recv(1) == b""
                except BlockingIOError:
                    return False

            await eventually(closed)
        finally:
            for each in silent:
                each.close()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"host": "0.0.0.0"}, "can be reached from other machines"),
        ({"tokens_file": "open"}, "chmod 600"),
        ({"tokens_file": "empty"}, "it has no token"),
        ({"tokens_file": "short"}, "16 or more"),
        ({"tokens_file": "absent"}, "cannot be read"),
        ({"client_ca": "ca.pem"}, "needed beside"),
        ({"port": 1}, "cannot be used"),
    ],
)
async def test_a_daemon_that_cannot_be_safe_does_not_start(
    settings: dict[str, Any], expected: str, server: EmbeddedServer, tmp_path: Path
) -> None:
    for name, text, mode in (
        ("open", "a-token-of-a-gateway", 0o644),
        ("empty", "# none\n", 0o600),
        ("short", "token", 0o600),
    ):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(mode)
    paths = {
        key: tmp_path / value if key in ("tokens_file", "client_ca") else value
        for key, value in settings.items()
    }
    async with boxed(server, tmp_path):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1] if "port" in settings else 0
            with pytest.raises(ConfigError, match=expected):
                async with daemon(server, **(paths | {"port": port})):
                    pass


@pytest.mark.slow
async def test_no_generated_request_gets_an_answer_that_the_openapi_document_lacks(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with fleet(server, tmp_path) as (client, _):
        process = await asyncio.create_subprocess_exec(
            *(str(Path(sys.executable).with_name("schemathesis")), "run"),
            *(f"{client.url}/openapi.json", "--max-examples", "5", "--no-color"),
            *("--checks", "not_a_server_error,status_code_conformance,response_schema_conformance"),
            *("--exclude-path", "/v1/events", "--exclude-path", "/v1/routes"),  # they stream
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _ = await process.communicate()
        assert process.returncode == 0, out.decode()[-4000:]


def test_a_daemon_on_another_address_starts_with_tokens() -> None:
    GatewayConfig(host="0.0.0.0", tokens_file=Path("tokens")).check()
    GatewayConfig(host="::1").check()
    GatewayConfig(host="localhost").check()
