"""Registrations: there from Ready on, renewed, and withdrawn before an instance goes."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from bridge.box.daemon import Box
from bridge.box.runner.publication import InstancePublication
from bridge.box.state.records import SlotRecord
from bridge.bus.core.message import Message
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream.api import jetstream
from bridge.bus.jetstream.kv_view import KeyValueView
from bridge.bus.jetstream.publish import store
from bridge.protocol import (
    InstanceDeregistration,
    InstanceRegistration,
    InstanceState,
    decode,
    encode,
)
from tests.boxes import boxed, fetch, serving
from tests.support import Recorder, ask, box_config, connect, eventually, service_table


def kinds(recorder: Recorder, instance_id: str) -> list[str]:
    """What was told of one instance, in order, repetitions of a registration left out."""
    told: list[str] = []
    for message in recorder.messages:
        _, kind, *rest = message.subject.split(".")
        if kind == "events":
            event = recorder.of(instance_id)[sum(word[0].isupper() for word in told) :]
            if not event or message.headers["Nats-Msg-Id"].rpartition(".")[0] != instance_id:
                continue
            told.append(event[0].to_state.value)
        elif rest[1] == instance_id and told[-1] != kind:
            told.append(kind)
    return told


def registrations(recorder: Recorder, instance_id: str) -> list[Message]:
    return [m for m in recorder.messages if m.subject == f"box.register.web.{instance_id}"]


async def test_an_instance_is_registered_after_ready_and_deregistered_while_it_drains(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with boxed(server, tmp_path) as (gateway, recorder):
        await ask(gateway, "web", 1)
        [info] = await serving(gateway, "web", 1)
        await eventually(lambda: registrations(recorder, info.id))
        await ask(gateway, "web", 0)
        await serving(gateway, "web", 0)
        await recorder.reached(info.id, "Stopped")
        seen = kinds(recorder, info.id)
        assert [kind for kind in seen if kind != "deregister"] == [
            "Booting",
            "Ready",
            "register",
            "Draining",
            "Stopping",
            "Stopped",
        ]
        # The withdrawal does not wait for the event of the drain.
        assert seen.index("register") < seen.index("deregister") < seen.index("Stopping")
        [last] = [m for m in recorder.messages if m.subject == f"box.deregister.web.{info.id}"]
        gone = decode(InstanceDeregistration, last.data)
        assert (gone.instance_id, gone.service, gone.reason) == (info.id, "web", "scaled down")


async def test_events_that_happen_while_the_slot_is_written_are_published_in_order(
    server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = asyncio.Event()
    update, register = KeyValueView.update, InstancePublication.register

    async def update_late(self: KeyValueView[Any], key: str, value: Any, revision: int) -> int:
        if isinstance(value, SlotRecord) and value.info.state is InstanceState.BOOTING:
            await told.wait()  # the instance is Ready, and wants to be registered
        return await update(self, key, value, revision)

    def register_and_say(self: InstancePublication, metadata: dict[str, str]) -> None:
        register(self, metadata)
        told.set()

    monkeypatch.setattr(KeyValueView, "update", update_late)
    monkeypatch.setattr(InstancePublication, "register", register_and_say)
    async with boxed(server, tmp_path) as (gateway, recorder):
        await gateway.listen("$KV.box_slots.web.0", recorder.messages.append)
        await gateway.flush()
        await ask(gateway, "web", 1)
        [info] = await serving(gateway, "web", 1)
        await eventually(lambda: registrations(recorder, info.id))
        order = [message.subject for message in recorder.messages]
    slot, event = "$KV.box_slots.web.0", "box.events.web"
    registration = f"box.register.web.{info.id}"
    assert order[:6] == [slot, event, slot, event, slot, registration]


async def test_a_registration_has_the_endpoint_and_is_renewed_as_a_lease(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    table = service_table("web", metadata={"zone": "a"})
    async with boxed(server, tmp_path, table) as (gateway, recorder):
        await ask(gateway, "web", 1)
        [info] = await serving(gateway, "web", 1)
        await eventually(lambda: len(registrations(recorder, info.id)) >= 3)
        for message in registrations(recorder, info.id):
            told = decode(InstanceRegistration, message.data)
            assert (told.instance_id, told.service) == (info.id, "web")
            assert (told.endpoint, told.metadata) == (info.endpoint, {"zone": "a"})
            assert told.started_at == info.created_at
            assert message.headers["Nats-TTL"] == "30"
            assert message.headers["Box-Host"] == "box-a"
        kept = await jetstream(gateway).get_last_msg("BOX_REGISTRY", f"box.register.web.{info.id}")
        assert decode(InstanceRegistration, kept.data or b"").endpoint == info.endpoint


async def test_a_failed_instance_is_withdrawn_at_once_with_the_reason(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with boxed(server, tmp_path) as (gateway, recorder):
        await ask(gateway, "web", 1)
        [info] = await serving(gateway, "web", 1)
        await eventually(lambda: registrations(recorder, info.id))
        os.kill((await fetch(info))["pid"], signal.SIGKILL)
        subject = f"box.deregister.web.{info.id}"
        last = await eventually(
            lambda: next((m for m in recorder.messages if m.subject == subject), None)
        )
        assert "killed by signal 9" in decode(InstanceDeregistration, last.data).reason
        await serving(gateway, "web", 1)  # its replacement
        after = recorder.messages[recorder.messages.index(last) :]
        assert not [m for m in after if m.subject == f"box.register.web.{info.id}"]


async def test_an_unhealthy_instance_is_marked_in_its_registration(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    table = service_table("web", probe={"http": "/", "interval": 0.05, "failures": 2})
    async with boxed(server, tmp_path, table) as (gateway, recorder):
        await ask(gateway, "web", 1)
        [info] = await serving(gateway, "web", 1)

        def told() -> dict[str, str]:
            found = registrations(recorder, info.id)
            return decode(InstanceRegistration, found[-1].data).metadata if found else {}

        await fetch(info, "/break")
        await eventually(lambda: told() == {"box-healthy": "false"})
        await fetch(info, "/mend")
        await eventually(lambda: told() == {})


async def test_an_instance_that_never_was_ready_is_never_registered(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with boxed(server, tmp_path, service_table("web", "crash")) as (gateway, recorder):
        await ask(gateway, "web", 1)
        await eventually(lambda: len(recorder.events) >= 4)
        assert not [m for m in recorder.messages if ".register." in m.subject]
        assert not [m for m in recorder.messages if ".deregister." in m.subject]


async def test_registrations_are_repeated_at_once_after_a_server_restart(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with boxed(server, tmp_path) as (gateway, recorder):
        await ask(gateway, "web", 2)
        found = await serving(gateway, "web", 2)
        for info in found:  # what was told but not yet heard would go with the server
            await recorder.reached(info.id, "Ready")
        await server.kill()  # the registry lives in the server's memory
        await server.start()
        await gateway.wait_connected()

        async def both_kept() -> bool:
            state = (await jetstream(gateway).stream_info("BOX_REGISTRY")).state
            return state.messages == 2

        async def there_again() -> bool:
            try:
                return await both_kept()
            except Exception:
                return False

        await eventually(there_again)
        for info in found:
            assert recorder.states(info.id) == ["Booting", "Ready"]  # nobody was restarted
        assert (await ask(gateway, "web", 2)).current_replicas == 2


async def test_events_carry_the_headers_of_the_contract(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    async with boxed(server, tmp_path) as (gateway, recorder):
        await ask(gateway, "web", 1, headers={"traceparent": trace})
        [info] = await serving(gateway, "web", 1)
        await recorder.reached(info.id, "Ready")
        events = [m for m in recorder.messages if m.subject == "box.events.web"]
        for number, message in enumerate(events, 1):
            assert message.headers["Nats-Msg-Id"] == f"{info.id}.{number}"
            assert message.headers["Box-Seq"] == str(number)
            assert message.headers["Box-Host"] == "box-a"
            assert message.headers["traceparent"] == trace
        stored = (await jetstream(gateway).stream_info("BOX_EVENTS")).state.messages
        assert stored == len(events) == 2


async def test_what_another_withdrew_is_replaced_for_its_id_never_comes_back(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    async with boxed(server, tmp_path) as (gateway, recorder):
        await ask(gateway, "web", 1)
        [info] = await serving(gateway, "web", 1)
        lost = InstanceDeregistration(instance_id=info.id, service="web", reason="host lost")
        await store(gateway, f"box.deregister.web.{info.id}", encode(lost))

        async def replaced() -> bool:
            [there] = await serving(gateway, "web", 1)
            return there.id != info.id

        await eventually(replaced, what="another serves in its place")
        await recorder.reached(info.id, "Stopped")
        assert any("withdrawn" in event.message for event in recorder.of(info.id))


async def test_a_withdrawal_that_is_not_of_the_instance_on_its_subject_is_refused_and_counted(
    server: EmbeddedServer, tmp_path: Path
) -> None:
    config = box_config(tmp_path, server.url)
    async with connect(server.url) as gateway, Box.running(config) as box:
        await ask(gateway, "web", 1)
        [info] = await serving(gateway, "web", 1)
        other = InstanceDeregistration(instance_id="web-2", service="web")
        long = InstanceDeregistration(instance_id=info.id, service="web", reason="x" * 20_000)
        for service, payload, reason in (
            ("api", b"", "another service's instance"),
            ("web", b"", "malformed"),
            ("web", encode(other), "subject and payload disagree"),
            ("web", encode(long), "too large"),
        ):
            await store(gateway, f"box.deregister.{service}.{info.id}", payload)
            refused = f"deregister: {reason}"
            await eventually(lambda: refused in box.metrics.refusals(), what=refused)  # noqa: B023
        [there] = await serving(gateway, "web", 1)
        assert there.id == info.id
