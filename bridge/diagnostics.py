"""The findings of `box-bridge doctor`: a sentence, a status, and the fix."""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct


class Status(StrEnum):
    """The severity of a finding. A check that needs another, failed one is skipped."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIP = "skip"


class Finding(Struct, frozen=True, kw_only=True):
    """The result of one check: `says` describes it, `cure` is the fix, "" if none is needed."""

    status: Status
    says: str
    cure: str = ""


def ok(says: str) -> Finding:
    """The check passed."""
    return Finding(status=Status.OK, says=says)


def warn(says: str, cure: str) -> Finding:
    """It works, but needs attention."""
    return Finding(status=Status.WARN, says=says, cure=cure)


def fail(says: str, cure: str) -> Finding:
    """It does not work."""
    return Finding(status=Status.FAIL, says=says, cure=cure)


def skip(says: str) -> Finding:
    """The check could not run."""
    return Finding(status=Status.SKIP, says=says)
