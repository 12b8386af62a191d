"""Ids of instances: random, so that none is ever used twice."""

from __future__ import annotations

import secrets
from typing import Final

_LETTERS: Final = "abcdefghijkmnpqrstuvwxyz23456789"  # none that people mix up
_LENGTH: Final = 10  # 50 bits: ids are never reused


def new_id(service: str) -> str:
    """``<service>-<random>``; it must be a subject token itself, so a long name is cut."""
    letters = "".join(secrets.choice(_LETTERS) for _ in range(_LENGTH))
    return f"{service[: 63 - _LENGTH - 1].rstrip('-')}-{letters}"
