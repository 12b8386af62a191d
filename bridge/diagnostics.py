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
    """The result of one check: a `message`, and its `fix`, which is "" if none is needed."""

    status: Status
    message: str
    fix: str = ""


def ok(message: str) -> Finding:
    """The check passed."""
    return Finding(status=Status.OK, message=message)


def warn(message: str, fix: str) -> Finding:
    """It works, but needs attention."""
    return Finding(status=Status.WARN, message=message, fix=fix)


def fail(message: str, fix: str) -> Finding:
    """It does not work."""
    return Finding(status=Status.FAIL, message=message, fix=fix)


def skip(message: str) -> Finding:
    """The check could not run."""
    return Finding(status=Status.SKIP, message=message)
