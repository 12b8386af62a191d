"""The secrets of an instance, read when it is started. No message contains a value."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from bridge.errors import InstanceError
from bridge.settings import Secret

_LONGEST: Final = 64 * 1024  # bytes: the kernel takes 128 KiB for one variable


def path_of(secret: Secret, credentials: str) -> Path | None:
    """The file of a secret; None for a credential if systemd has given this process none."""
    if secret.file:
        return Path(secret.file)
    return Path(credentials) / secret.credential if credentials else None


def read_secrets(secrets: Mapping[str, Secret], credentials: str) -> dict[str, str]:
    """The values by the name of the variable, as they are now. It blocks: call it in a thread.

    Raises InstanceError, which names the variable and the file.
    """
    return {name: _read(name, secret, credentials) for name, secret in secrets.items()}


def _read(name: str, secret: Secret, credentials: str) -> str:
    path = path_of(secret, credentials)
    if path is None:
        raise InstanceError(
            f"env {name}: credential {secret.credential!r} needs systemd: set LoadCredential= in "
            "the unit of the Box"
        )
    try:
        with path.open("rb") as file:
            data = file.read(_LONGEST + 1)
    except OSError as exc:
        reason = os.strerror(exc.errno or errno.EIO)
        raise InstanceError(f"env {name}: {path} cannot be read: {reason}") from exc
    if len(data) > _LONGEST:
        raise InstanceError(f"env {name}: {path} is longer than {_LONGEST} bytes")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise InstanceError(f"env {name}: {path} is not UTF-8") from None
    if "\0" in text:
        raise InstanceError(f"env {name}: {path} contains a NUL character")
    return text.removesuffix("\n").removesuffix("\r")
