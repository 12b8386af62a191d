"""The codes of refusals."""

from __future__ import annotations

import re

from bridge.box.api.replies import Refused, refusal_of
from bridge.errors import CutOff, NameRefused, NoResponders, NotPermitted, StoreRefused, TooLarge
from bridge.reply_codes import TRANSIENT, Refusal, ReplyCode
from tests.paths import DOCS

CODES = DOCS / "reference" / "refusal-codes.md"


def test_the_contract_lists_each_code_and_after_which_the_same_request_may_succeed() -> None:
    rows = re.findall(r"^\| `([a-z_]+)` \|.*\| ([^|]+) \|$", CODES.read_text(), re.MULTILINE)
    assert [code for code, _ in rows] == list(ReplyCode)
    assert {code for code, retry in rows if retry == "soon, the same request"} == TRANSIENT


def test_an_error_after_which_nothing_was_changed_is_reported_with_its_code() -> None:
    errors: dict[ReplyCode, Refused] = {
        ReplyCode.INVALID_REQUEST: NameRefused("service", "a.b"),
        ReplyCode.NOT_READY: CutOff(1.0),
        ReplyCode.NOT_PERMITTED: NotPermitted("$KV.box_services.web"),
        ReplyCode.TOO_LARGE: TooLarge("$KV.box_services.web", "1 MiB is too much"),
        ReplyCode.STORE_REFUSED: StoreRefused("$KV.box_services.web", 10077, "too many"),
        ReplyCode.BUSY: Refusal(ReplyCode.BUSY, "other decisions kept coming first; ask again"),
    }
    for code, error in errors.items():
        assert refusal_of(error).code == code
    assert refusal_of(NoResponders("$KV")).code == ReplyCode.STORE_REFUSED
    busy = "Busy: other decisions kept coming first; ask again"
    assert str(refusal_of(errors[ReplyCode.BUSY])) == busy
    unready = "not ready: this Box is cut off from NATS; ask again"
    assert str(refusal_of(errors[ReplyCode.NOT_READY])) == unready
