"""The requests that wait: clients take turns, and no client takes the places of the others."""

from __future__ import annotations

import json

import pytest

from bridge.bus.core.message import Message
from bridge.bus.service.endpoint import Endpoint, Reply
from bridge.bus.service.intake import Intake, Waiting, client_of


async def never(*_: object) -> Reply | None:
    raise AssertionError("nothing is handled here")


ENDPOINT = Endpoint(
    name="scale", subject="box.scale", queue="box", handle=never, refuse=lambda _: Reply(data=b"")
)


def waiting(client: str, data: bytes = b"x") -> Waiting:
    message = Message("box.scale", f"{client}.1", data, b"")
    return Waiting(client, ENDPOINT, message, never)


def fill(intake: Intake, client: str, data: bytes = b"x") -> int:
    """Put requests of `client` while there is room; how many there were."""
    count = 0
    while intake.has_room(client, len(data)):
        intake.put_nowait(waiting(client, data))
        count += 1
    return count


async def test_one_client_takes_half_of_the_places_and_each_further_one_half_of_the_rest() -> None:
    intake = Intake(places=96)
    assert [fill(intake, client) for client in ("a", "b", "c")] == [48, 24, 12]
    assert intake.qsize() == 84


async def test_the_bytes_of_waiting_requests_are_bounded_in_the_same_way() -> None:
    intake = Intake(size=1000)
    assert fill(intake, "a", b"x" * 100) == 5
    assert not intake.has_room("b", 600)
    assert intake.has_room("b", 500)


async def test_clients_take_turns_and_the_requests_of_each_keep_their_order() -> None:
    intake = Intake()
    for client, data in [("a", b"1"), ("a", b"2"), ("a", b"3"), ("b", b"4"), ("c", b"5")]:
        intake.put_nowait(waiting(client, data))
    taken = [intake.get_nowait().message.data for _ in range(5)]
    assert taken == [b"1", b"4", b"5", b"2", b"3"]
    assert intake.empty()
    assert fill(intake, "a") == 4096, "all places are free again"


@pytest.mark.parametrize(
    ("reply", "client"),
    [
        ("_INBOX.abc.17", "_INBOX.abc"),
        ("_INBOX.abc.17.x", "_INBOX.abc"),
        ("_EDGE.gateway.abc.17", "_EDGE.gateway"),
        ("_INBOX.17", "_INBOX."),  # an inbox for each request: no client of its own
    ],
)
def test_a_client_is_known_by_its_inbox(reply: str, client: str) -> None:
    assert client_of(Message("box.scale", reply, b"", b"")) == client


def test_a_client_of_a_service_import_is_known_by_what_the_server_says_of_it() -> None:
    def message(info: str) -> Message:
        headers = f"NATS/1.0\r\nNats-Request-Info: {info}\r\n\r\n".encode()
        return Message("box.scale", "_R_.abc.17", b"", headers)

    one = client_of(message(json.dumps({"acc": "EDGE", "user": "U1", "rtt": 1})))
    again = client_of(message(json.dumps({"acc": "EDGE", "user": "U1", "rtt": 2})))
    other = client_of(message(json.dumps({"acc": "EDGE", "user": "U2", "rtt": 1})))
    assert one == again != other
    assert client_of(message("{nonsense")) == ""
