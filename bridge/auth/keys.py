"""Nkeys: the secret seed of a user, an account or an operator, and its public key.

Needs the extra `nkeys`.
"""

from __future__ import annotations

import enum
import secrets
from types import ModuleType

from msgspec import Struct

from bridge.errors import ConfigError


class KeyKind(enum.Enum):
    """What a key is for."""

    USER = "PREFIX_BYTE_USER"
    ACCOUNT = "PREFIX_BYTE_ACCOUNT"
    OPERATOR = "PREFIX_BYTE_OPERATOR"


class KeyPair(Struct, frozen=True):
    """A `seed`, which is secret, and the `public` key that the server knows."""

    seed: str
    public: str


def create_key(kind: KeyKind = KeyKind.USER) -> KeyPair:
    """A new key. Raises ConfigError without the extra `nkeys`."""
    nkeys = _nkeys()
    seed = nkeys.encode_seed(secrets.token_bytes(32), getattr(nkeys, kind.value))
    pair = nkeys.from_seed(bytearray(seed))
    return KeyPair(seed=bytes(seed).decode(), public=bytes(pair.public_key).decode())


def sign(key: KeyPair, data: bytes) -> bytes:
    """The signature of `data` by `key`. Raises ConfigError without the extra `nkeys`."""
    pair = _nkeys().from_seed(bytearray(key.seed.encode()))
    signature: bytes = pair.sign(data)
    return signature


def _nkeys() -> ModuleType:
    try:
        import nkeys  # type: ignore[import-untyped]
    except ImportError as exc:
        raise ConfigError("nkeys", "is not installed: pip install 'box-bridge[nkeys]'") from exc
    module: ModuleType = nkeys
    return module
