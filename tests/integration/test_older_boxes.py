"""While a fleet is updated, a client of this version meets Boxes of 0.1, which send no codes.

The replies are recorded from a Box of 0.1: see tests/transcripts/replies-of-0.1.jsonl.
"""

from __future__ import annotations

from typing import Final

import msgspec
import pytest
from msgspec import Struct

from bridge import ScaleClient, ScaleRefused
from bridge.bus.core.message import Message
from bridge.bus.embedded_server import EmbeddedServer
from bridge.protocol import ScaleResponse, decode, encode
from bridge.reply_codes import ReplyCode, code_of_sentence
from tests.paths import TESTS
from tests.support import connect


class Recorded(Struct, frozen=True, kw_only=True):
    """A reply, and the code that this version would have sent with it."""

    name: str
    subject: str
    code: str
    reply: msgspec.Raw

    @property
    def error(self) -> str | None:
        return msgspec.json.decode(self.reply, type=_WithError).error


class _WithError(Struct):
    error: str | None


_LINES: Final = (TESTS / "transcripts" / "replies-of-0.1.jsonl").read_bytes().splitlines()
RECORDED: Final = {
    it.name: it for it in (msgspec.json.decode(line, type=Recorded) for line in _LINES)
}
_CUT_OFF: Final = "not ready: this Box is cut off from NATS; ask again"


@pytest.mark.parametrize("reply", RECORDED.values(), ids=RECORDED)
def test_the_sentence_of_an_old_reply_gives_the_code_that_clients_decide_by(
    reply: Recorded,
) -> None:
    assert code_of_sentence(reply.error) == (reply.code or None)


@pytest.mark.parametrize(
    "error", ["Busy, in words alone", "it is not ready: no", "expired", "", None]
)
def test_another_sentence_gives_no_code(error: str | None) -> None:
    assert code_of_sentence(error) is None


async def test_a_passing_refusal_of_an_old_box_is_retried_and_another_is_final(
    server: EmbeddedServer,
) -> None:
    async with connect(server.url) as connection, ScaleClient.connect(server.url) as client:
        requests: list[Message] = []
        accepted = bytes(RECORDED["accepted"].reply)
        refused = encode(
            msgspec.structs.replace(decode(ScaleResponse, accepted), accepted=False, error=_CUT_OFF)
        )
        others = [bytes(RECORDED[name].reply) for name in ("unknown service", "expired")]
        answers = [refused, accepted, *others]

        def answer(message: Message) -> None:
            requests.append(message)
            connection.publish(message.reply, answers[len(requests) - 1])

        await connection.listen("box.scale", answer, queue="box")
        await connection.flush()
        assert (await client.scale("web", 0)).accepted
        assert len(requests) == 2
        with pytest.raises(ScaleRefused, match="unknown service 'nope'") as refusal:
            await client.scale("nope", 1)
        assert refusal.value.code is None
        with pytest.raises(ScaleRefused, match="expired at") as refusal:
            await client.scale("web", 1)
        assert refusal.value.code == ReplyCode.EXPIRED
        assert len(requests) == 4
