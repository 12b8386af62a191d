"""Nkeys: the secret seed of a NATS user, and its public key. Needs the extra `nkeys`."""

from __future__ import annotations

import secrets

from msgspec import Struct

from bridge.errors import ConfigError


class KeyPair(Struct, frozen=True):
    """A `seed`, which is secret, and the `public` key that the server knows."""

    seed: str
    public: str


def create_key() -> KeyPair:
    """A new key of a user. Raises ConfigError without the extra `nkeys`."""
    try:
        import nkeys  # type: ignore[import-untyped]
    except ImportError as exc:
        raise ConfigError("nkeys", "is not installed: pip install 'box-bridge[nkeys]'") from exc
    seed = nkeys.encode_seed(secrets.token_bytes(32), nkeys.PREFIX_BYTE_USER)
    pair = nkeys.from_seed(bytearray(seed))
    return KeyPair(seed=bytes(seed).decode(), public=bytes(pair.public_key).decode())
