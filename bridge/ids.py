"""Ids of instances: random, and therefore unique."""

from __future__ import annotations

import secrets
from typing import Final

_LETTERS: Final = "abcdefghijkmnpqrstuvwxyz23456789"  # without those that look alike
_LENGTH: Final = 10  # 50 bits: ids are never reused


def new_id(service: str) -> str:
    """``<service>-<random>``. A long service name is cut: the id must be a subject token."""
    letters = "".join(secrets.choice(_LETTERS) for _ in range(_LENGTH))
    return f"{service[: 63 - _LENGTH - 1].rstrip('-')}-{letters}"
