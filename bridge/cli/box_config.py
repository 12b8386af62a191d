"""The configuration of a Box, from a file, the environment and flags."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bridge.config import find_file, load
from bridge.errors import ConfigError
from bridge.settings import Config


def load_config(
    file: Path | None, box: Mapping[str, Any], nats: Mapping[str, Any] | None = None
) -> Config:
    """The configuration from `file`, or from the default place if `file` is None."""
    return load(find_file(file), flags={"box": box, "nats": nats or {}})


def require_services(config: Config) -> Config:
    """`config`, unless it configures nothing to run. Raises ConfigError then."""
    if not (config.services or config.box.allow_images):
        raise ConfigError(
            "[services]",
            "no service is configured: `box-bridge init` writes a box.toml to begin with, or give "
            "-c box.toml with\n"
            "  [services.web]\n"
            '  command = ["python3", "-m", "http.server", "{port}"]',
        )
    return config
