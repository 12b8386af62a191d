"""The key of a NATS server that `box-bridge up` runs on this machine, for programs of its user.

`up` writes the secret seed to a file that only its user may read. A program without credentials of
its own finds it there by the port of the server, when it connects and each time it reconnects.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from bridge.config.nats_context import account_home
from bridge.private_files import make_private, make_private_directory, opened

_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
_MOST: Final = 200  # bytes of a seed, at most


def find_local_key(urls: Sequence[str], environ: Mapping[str, str] = os.environ) -> str:
    """The seed for the only server of `urls`, if `up` runs it for this user; else empty."""
    if len(urls) != 1:
        return ""
    url = urlsplit(urls[0])
    if url.hostname not in _LOOPBACK:
        return ""
    with contextlib.suppress(OSError, UnicodeDecodeError), opened(_file(url.port, environ)) as file:
        if os.fstat(file).st_uid == os.getuid():
            return os.read(file, _MOST).decode("ascii").strip()
    return ""


@contextlib.contextmanager
def local_key(url: str, seed: str, environ: Mapping[str, str] = os.environ) -> Iterator[Path]:
    """Let programs of this user find `seed` for the server at `url` inside the block; gives the
    file. Raises OSError.
    """
    file = _file(urlsplit(url).port, environ)
    make_private_directory(file.parent)
    part = file.with_suffix(f".{os.getpid()}")
    make_private(part, empty=True)
    part.write_text(f"{seed}\n")
    part.replace(file)
    try:
        yield file
    finally:
        file.unlink(missing_ok=True)


def _file(port: int | None, environ: Mapping[str, str]) -> Path:
    home = Path(environ.get("HOME") or account_home())
    state = Path(environ.get("XDG_STATE_HOME") or home / ".local" / "state")
    return state / "box-bridge" / "up" / f"{port or 4222}.nk"
