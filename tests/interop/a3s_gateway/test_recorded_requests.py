"""Requests that a real a3s-gateway 1.1.1 sent to its executor, sent to the gateway daemon.

`requests.jsonl` has two of its sessions, recorded in front of an executor that answered by script.
Each answer is held to the rules by which that gateway refuses an answer as a whole.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from bridge.bus.embedded_server import EmbeddedServer
from bridge.protocol import ScaleConfig
from tests.boxes import serving
from tests.integration.test_http_scale import Client, fleet
from tests.support import ask, eventually

_RECORDED = [
    json.loads(line)
    for line in (Path(__file__).with_name("requests.jsonl")).read_text().splitlines()
]


def recorded(trace: str) -> list[Any]:
    return [each for each in _RECORDED if each["trace"] == trace]


async def send(client: Client, request: Any) -> tuple[int, Any]:
    async with client.session.request(
        request["method"],
        client.url + request["path"],
        data=request["body"] or None,
        headers={"Content-Type": "application/json", "Accept": "*/*"},
    ) as answer:
        return answer.status, json.loads(await answer.read())


def check_observation(seen: Any) -> None:
    """The rules of the gateway for an answer to GET."""
    slots = [item["slot"] for item in seen["endpoints"]]
    assert seen["ready_replicas"] <= seen["replicas"]
    assert len(seen["endpoints"]) <= seen["ready_replicas"]
    assert len({*slots}) == len(slots)
    assert all(slot < seen["replicas"] for slot in slots)
    assert isinstance(seen["revision"], str)
    for key in ("url", "instance_id"):
        assert len({item[key] for item in seen["endpoints"]}) == len(seen["endpoints"])
    for item in seen["endpoints"]:
        url = urlsplit(item["url"])
        assert (url.scheme, url.path, url.query, url.username) == ("http", "", "", None)
        assert url.port not in (None, 80)


async def test_a_recorded_session_scales_up_and_down_without_a_refusal(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with fleet(server, tmp_path) as (client, gateway):
        # The session begins at revision 1 with no replicas.
        await ask(gateway, "web", 0, config=ScaleConfig(env={"LEVEL": "1"}))
        target = 0
        for request in recorded("good"):
            status, answer = await send(client, request)
            assert status == 200, answer
            if request["method"] == "GET":
                check_observation(answer)
                assert answer["replicas"] == target
                continue
            body = json.loads(request["body"])
            target = body["desired_replicas"]
            assert answer["accepted"]
            assert answer["revision"] == str(int(body["expected_revision"]) + 1)
            status, seen = await client.get(request["path"])
            assert (seen["replicas"], seen["revision"]) == (target, answer["revision"])
            await serving(gateway, "web", target)

            async def shown(wanted: int = target) -> bool:
                seen = await client.scale("web")
                check_observation(seen)
                return len(seen["endpoints"]) == wanted

            await eventually(shown)
        assert target == 0


async def test_a_recorded_conflict_is_refused_and_its_successor_accepted(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with fleet(server, tmp_path) as (client, gateway):
        for level in ("1", "2"):  # somebody else's change, which the gateway has not seen
            await ask(gateway, "web", 0, config=ScaleConfig(env={"LEVEL": level}))
        posts = [item for item in recorded("conflict409") if item["method"] == "POST"]
        (first, problem), (second, answer) = [await send(client, item) for item in posts]
        assert (first, problem["code"]) == (409, "stale_revision")
        assert problem["observation"]["revision"] == "2"
        assert (second, answer["accepted"], answer["revision"]) == (200, True, "3")


@pytest.mark.parametrize("key", ["slot", "url"])
def test_an_answer_that_the_gateway_would_refuse_is_noticed(key: str) -> None:
    endpoint = {"slot": 0, "url": "http://10.0.0.1:8080", "instance_id": "a"}
    wrong = {"slot": 1, "url": "http://10.0.0.1"}
    seen = {"replicas": 1, "revision": "1", "ready_replicas": 1}
    check_observation({**seen, "endpoints": [endpoint]})
    with pytest.raises(AssertionError):
        check_observation({**seen, "endpoints": [{**endpoint, key: wrong[key]}]})
