"""What a check of an installation finds: a sentence, how bad it is, and the cure."""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct


class Status(StrEnum):
    """How bad it is. What could not be looked at because of another failure is skipped."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIP = "skip"


class Finding(Struct, frozen=True, kw_only=True):
    """What one check found: `says` what is so, `cure` what to do about it, "" where nothing is."""

    status: Status
    says: str
    cure: str = ""


def ok(says: str) -> Finding:
    """All is well."""
    return Finding(status=Status.OK, says=says)


def warn(says: str, cure: str) -> Finding:
    """It works, but something will want attention."""
    return Finding(status=Status.WARN, says=says, cure=cure)


def fail(says: str, cure: str) -> Finding:
    """It does not work."""
    return Finding(status=Status.FAIL, says=says, cure=cure)


def skip(says: str) -> Finding:
    """It could not be looked at."""
    return Finding(status=Status.SKIP, says=says)
