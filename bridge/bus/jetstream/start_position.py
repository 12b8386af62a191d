"""Where a reader of a stream begins, and which messages it finds missing when it continues."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from msgspec import Struct
from nats.js.api import DeliverPolicy, StreamInfo


class Start(enum.Enum):
    """Where a reader begins. Later runs continue where the last one ended, except for SNAPSHOT."""

    SNAPSHOT = "the last message of each subject, again in each run"
    NOW = "the next message to be stored"
    FIRST = "the first message that is kept"


class Checkpoint(Struct, frozen=True, kw_only=True):
    """The last message that was read: stream sequence `position` of the stream created at
    `created`.

    `created` distinguishes a re-created stream from the old one, whatever their sequences.
    """

    position: int
    created: datetime


Begin = Start | int | datetime | Checkpoint
"""Where a reader begins: an int is the sequence of the first message to read, a time the oldest
storing time to read, a checkpoint the last message that was read before.
"""


class Reset(Struct, frozen=True, kw_only=True):
    """Messages are missing: sequence `expected` was due, and reading continues with `next`.

    `trimmed`: the stream no longer keeps `expected` to `next` - 1. With a filter, none of these
    need have matched it. `recreated`: the stream was created again, or lost its end, and is read
    from its start; what it held from `expected` on is unknown.
    """

    reason: Literal["trimmed", "recreated"]
    expected: int
    next: int


def find_reset(position: int, created: datetime | None, info: StreamInfo) -> Reset | None:
    """The Reset for a reader that has read up to `position`; None if no message is missing.

    `created` is the creation time of the stream that was read, None if unknown.
    """
    first, last = max(info.state.first_seq, 1), info.state.last_seq
    if (created is not None and info.created != created) or last < position:
        return Reset(reason="recreated", expected=position + 1, next=first)
    if first > position + 1:
        return Reset(reason="trimmed", expected=position + 1, next=first)
    return None


def begin_at(start: Begin) -> dict[str, Any]:
    """The settings of a consumer that begins at `start`."""
    if isinstance(start, Checkpoint):
        start = start.position + 1
    if isinstance(start, int):
        policy = DeliverPolicy.BY_START_SEQUENCE
        return {"deliver_policy": policy, "opt_start_seq": max(start, 1)}
    if isinstance(start, datetime):
        return {
            "deliver_policy": DeliverPolicy.BY_START_TIME,
            "opt_start_time": start.astimezone(UTC),
        }
    return {"deliver_policy": DeliverPolicy.NEW if start is Start.NOW else DeliverPolicy.ALL}


def filters(subjects: Sequence[str]) -> dict[str, Any]:
    """The settings of a consumer that gets only these subjects."""
    if len(subjects) == 1:
        return {"filter_subject": subjects[0]}
    return {"filter_subjects": list(subjects)}
