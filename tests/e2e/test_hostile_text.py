"""Each verb, and the log of a Box, while peers send text that controls terminals."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from bridge.box.daemon import Box
from bridge.bus.embedded_server import EmbeddedServer
from bridge.observe import _TextFormatter
from bridge.protocol import InstanceEvent, InstanceRegistration, InstanceState, encode, now
from tests.e2e.program import run
from tests.support import ask, box_config, connect, eventually

S = InstanceState
FORGED = "2026-11-28 forged"
EVIL = f"\x1b]0;owned\x07\x9b31m\u202e[/red]\n{FORGED}"

VERBS = [
    ["ps"],
    ["hosts"],
    ["services"],
    ["routes"],
    ["routes", "--json"],
    ["history", "web"],
    ["plan", "web", "3"],
    ["scale", "web", "1", "--request-id", "again", "--dry-run"],
    ["scale", "web", "1", "--env", f"K={EVIL}", "--dry-run"],
    ["scale", "web", "1", "--env", f"{EVIL}=1", "--dry-run"],
    ["events", "--since", "all", "--no-follow"],
    ["events", "--since", "all", "--no-follow", "--json"],
    ["timeline", "web", "--since", "all"],
    ["drain", "web"],
    ["uncordon", "web"],
    ["uncordon", "box-a"],
    ["logs", "web-nosuch"],
    ["doctor"],
    ["ps", "--json"],
    ["hosts", "--json"],
    ["history", "web", "--json"],
]


def unsafe(text: str) -> set[str]:
    return {char for char in text if not char.isprintable() and char != "\n"}


@pytest.mark.slow
async def test_no_verb_prints_what_a_peer_sends_to_control_a_terminal(
    server: EmbeddedServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    registration = InstanceRegistration(
        instance_id="web-9",
        service="web",
        endpoint="10.0.0.1:80",
        metadata={f"key{EVIL}": EVIL},
        started_at=now(),
    )
    event = InstanceEvent.transition("web-9", "web", S.BOOTING, S.FAILED).with_message(EVIL)
    config = box_config(tmp_path, server.url)
    async with Box.running(config), connect(server.url) as peer:
        assert (await ask(peer, "web", 1, request_id=EVIL[:60])).accepted
        peer.publish("box.register.web.web-9", encode(registration), reply="_INBOX.x.1")
        peer.publish("$KV.box_services.\x1b[31mred", b"{}x", reply="_INBOX.x.2")
        peer.publish("box.events.\x1b[31mred", encode(event), reply="_INBOX.x.3")
        peer.publish("box.events.web", encode(event), reply="_INBOX.x.4")
        await run("cordon", "box-a", "--reason", EVIL, cwd=tmp_path, NATS_URL=server.url)
        await eventually(lambda: "cannot be read" in caplog.text)
        for verb in VERBS:
            shown = await run(*verb, cwd=tmp_path, NATS_URL=server.url)
            text = shown.out + shown.err
            assert (verb, unsafe(text)) == (verb, set())
            assert not any(line.startswith(FORGED) for line in text.splitlines()), verb
            assert "Traceback" not in text
    formatter = _TextFormatter()
    for record in caplog.records:
        assert record.levelno < logging.CRITICAL
        assert unsafe(formatter.format(record)) == set()
