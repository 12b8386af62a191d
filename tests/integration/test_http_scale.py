"""The A3S scale contract over HTTP, rule by rule, on a real fleet."""

from __future__ import annotations

import contextlib
import hashlib
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from bridge.bus.core.connection import Connection
from bridge.bus.embedded_server import EmbeddedServer
from bridge.gateway.http.server import GatewayConfig, serve
from tests.boxes import boxed, serving
from tests.support import connect, eventually, service_table


class Client:
    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.session, self.url = session, url

    async def get(self, path: str, **options: Any) -> tuple[int, Any]:
        async with self.session.get(self.url + path, **options) as answer:
            return answer.status, await answer.json()

    async def post(self, path: str, body: Any, **options: Any) -> tuple[int, Any]:
        async with self.session.post(self.url + path, json=body, **options) as answer:
            return answer.status, await answer.json()

    async def scale(self, service: str) -> dict[str, Any]:
        status, body = await self.get(f"/v1/scale/{service}")
        assert status == 200, body
        seen: dict[str, Any] = body
        return seen


@contextlib.asynccontextmanager
async def daemon(server: EmbeddedServer, **settings: Any) -> AsyncIterator[Client]:
    config = GatewayConfig(**{"port": 0, **settings})
    async with (
        connect(server.url) as connection,
        serve(connection, config) as running,
        aiohttp.ClientSession() as session,
    ):
        yield Client(session, running.url)


@contextlib.asynccontextmanager
async def fleet(
    server: EmbeddedServer, tmp_path: Path, **settings: Any
) -> AsyncIterator[tuple[Client, Connection]]:
    services = service_table("web"), service_table("api")
    async with (
        boxed(server, tmp_path, *services, max_instances=6, **settings) as (gateway, _),
        daemon(server) as client,
    ):
        yield client, gateway


def operation(current: int, desired: int, revision: str | None = "0", **more: Any) -> Any:
    """What an a3s-gateway posts, with its way to make the id."""
    text = b"a3s-gateway-scale-v1\0web\0" + (revision or "unversioned").encode() + b"\0"
    digest = hashlib.sha256(text + struct.pack(">II", current, desired)).hexdigest()
    return {
        "schema_version": 1,
        "operation_id": f"scale-v1-{digest}",
        "service": "web",
        "expected_revision": revision,
        "direction": "Up" if desired > current else "Down",
        "current_replicas": current,
        "desired_replicas": desired,
        "reason": "a test",
        **more,
    }


async def test_a_gateway_scales_a_service_up_and_down(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with fleet(server, tmp_path) as (client, gateway):
        seen = await client.scale("web")
        assert seen == {"replicas": 0, "revision": "0", "ready_replicas": 0, "endpoints": []}
        status, done = await client.post("/v1/scale/web", operation(0, 3))
        assert (status, done["accepted"], done["revision"]) == (200, True, "1")
        seen = await client.scale("web")
        assert (seen["replicas"], seen["revision"]) == (3, "1")
        infos = {info.id: info for info in await serving(gateway, "web", 3)}

        async def all_shown() -> bool:
            return bool((await client.scale("web"))["ready_replicas"] == 3)

        await eventually(all_shown)
        seen = await client.scale("web")
        assert [item["slot"] for item in seen["endpoints"]] == [0, 1, 2]
        for item in seen["endpoints"]:
            assert item["url"] == f"http://{infos[item['instance_id']].endpoint}"
        staying = seen["endpoints"][0]
        status, done = await client.post("/v1/scale/web", operation(3, 1, "1"))
        assert (status, done["revision"]) == (200, "2")
        seen = await client.scale("web")
        assert (seen["replicas"], seen["revision"], seen["endpoints"]) == (1, "2", [staying])
        [left] = await serving(gateway, "web", 1)
        assert left.id == staying["instance_id"], "the highest slots end first"


async def test_each_breach_of_the_contract_has_its_status_and_code_and_no_effect(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with fleet(server, tmp_path) as (client, _):
        first = operation(0, 2)
        assert (await client.post("/v1/scale/web", first))[0] == 200
        up = operation(2, 3, "1")
        cases: list[tuple[str, Any, int, str]] = [
            ("/v1/scale/api", up, 422, "service_mismatch"),
            ("/v1/scale/nobody", {**up, "service": "nobody"}, 404, "unknown_service"),
            ("/v1/scale/No%20Name", {**up, "service": "No Name"}, 404, "unknown_service"),
            ("/v1/scale/web", {**first, "reason": "another"}, 409, "operation_conflict"),
            ("/v1/scale/web", {**first, "desired_replicas": 1}, 409, "operation_conflict"),
            ("/v1/scale/web", {**first, "schema_version": 2}, 409, "operation_conflict"),
            ("/v1/scale/web", {**up, "schema_version": 2}, 422, "unsupported_schema"),
            ("/v1/scale/web", {**up, "operation_id": "  "}, 422, "invalid_request"),
            ("/v1/scale/web", operation(2, 3, "0"), 409, "stale_revision"),
            ("/v1/scale/web", operation(2, 3, "7"), 409, "stale_revision"),
            ("/v1/scale/web", operation(2, 3, "one"), 409, "stale_revision"),
            ("/v1/scale/web", operation(2, 3, None), 409, "stale_revision"),
            ("/v1/scale/web", operation(1, 3, "1"), 409, "stale_revision"),
            ("/v1/scale/web", {**up, "direction": "Down"}, 422, "invalid_direction"),
            ("/v1/scale/web", operation(2, 2, "1"), 422, "invalid_direction"),
            ("/v1/scale/web", operation(2, 7, "1"), 507, "capacity_exceeded"),
        ]
        for path, body, status, code in cases:
            got, problem = await client.post(path, body)
            assert (got, problem["code"]) == (status, code), (body, problem)
            assert problem["message"]
            if code in ("service_mismatch", "unknown_service"):
                assert problem["observation"] is None
            else:
                assert problem["observation"]["revision"] == "1"
        assert (await client.get("/v1/scale/nobody"))[0] == 404
        seen = await client.scale("web")
        assert (seen["replicas"], seen["revision"]) == (2, "1")


async def test_a_repeated_operation_has_one_effect_and_the_first_answer_at_any_daemon(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with fleet(server, tmp_path) as (client, _), daemon(server) as other:
        status, first = await client.post("/v1/scale/web", operation(0, 2))
        assert status == 200
        status, done = await other.post("/v1/scale/web", operation(2, 1, "1"))
        assert (status, done["revision"]) == (200, "2")
        for each in (client, other):
            status, again = await each.post("/v1/scale/web", operation(0, 2))
            assert (status, again["accepted"], again["revision"]) == (200, True, first["revision"])
        assert (await other.scale("web"))["replicas"] == 1


async def test_malformed_requests_get_a_sentence_and_the_daemon_serves_on(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with fleet(server, tmp_path) as (client, _):
        for body, statuses in (
            (b"{", (400, 422)),
            (b'{"service":"web"}', (400, 422)),
            (b'{"schema_version":1,"desired_replicas":-1}', (400, 422)),
            (b"\xff\xfe", (400, 422)),
            (b" " * 70_000, (413,)),
        ):
            async with client.session.post(
                f"{client.url}/v1/scale/web",
                data=body,
                headers={"Content-Type": "application/json"},
            ) as answer:
                assert answer.status in statuses, await answer.text()
                assert (await answer.json())["message"]
        assert (await client.get("/v1/nothing"))[0] == 404
        assert (await client.scale("web"))["replicas"] == 0


async def test_a_token_is_needed_where_the_daemon_has_tokens(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("# of the gateways\na-token-of-a-gateway\n")
    tokens.chmod(0o600)
    async with boxed(server, tmp_path), daemon(server, tokens_file=tokens) as client:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "a-token"}):
            status, problem = await client.get("/v1/scale/web", headers=headers)
            assert (status, problem["code"]) == (401, "unauthorized")
        good = {"Authorization": "Bearer a-token-of-a-gateway"}
        assert (await client.get("/v1/scale/web", headers=good))[0] == 200
        assert (await client.get("/healthz"))[0] == 200


@pytest.mark.parametrize("port", [80])
def test_an_endpoint_that_the_gateway_would_refuse_is_left_out(port: int) -> None:
    from bridge.gateway.http.observation import Observation
    from bridge.gateway.http.scale_contract import observe
    from bridge.gateway.routes.index import Route
    from bridge.protocol import InstanceState, now

    def route(name: str, endpoint: str) -> Route:
        return Route(
            service="web",
            instance_id=name,
            endpoint=endpoint,
            state=InstanceState.READY,
            host="",
            metadata={},
            started_at=now(),
        )

    seen = observe(
        Observation(target=3, revision=4, ranks={}),
        [
            (0, route("a", f"10.0.0.1:{port}")),
            (1, route("b", "10.0.0.1:8080")),
            (2, route("c", "10.0.0.1:8080")),
        ],
    )
    assert [item.instance_id for item in seen.endpoints] == ["b"]
    assert (seen.replicas, seen.ready_replicas, seen.revision) == (3, 1, "4")
