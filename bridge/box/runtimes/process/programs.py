"""Whether the configured services can be started: their programs, directories and placeholders.

The checks start nothing. They need no extra, so that `config check` runs on any machine.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bridge.box.runtimes.secret_files import path_of
from bridge.box.state.runtime_limits import is_never_requested
from bridge.settings import Config, ServiceConfig

_PLACEHOLDER: Final = re.compile(r"(?<!\$)\{(\w+)\}")  # `${NAME}` is a shell's
_FOREIGN: Final = ("print",)  # of an awk program


def missing_programs(config: Config) -> list[str]:
    """The programs of the services that are not there, or not executable."""
    missing = []
    for name, service in config.services.items():
        program = next(iter(service.command), "")
        found = _directory(config, service) / program if "/" in program else program
        if shutil.which(found, path=config.environ.get("PATH", os.defpath)) is None:
            missing.append(f"{program} of service {name}")
    return missing


def launch_problems(config: Config) -> Iterator[tuple[str, str]]:
    """What would fail at the first start of an instance: the place, and the problem."""
    for name, service in config.services.items():
        place = f"[services.{name}]"
        for variable in filter(is_never_requested, service.request_env):
            yield place, f"request_env: no request may set {variable}, also if it is listed"
        for word in (*service.entrypoint, *service.command):
            for unknown in _PLACEHOLDER.findall(word):
                if unknown not in ("port", *_FOREIGN):
                    yield place, f"unknown placeholder `{{{unknown}}}` in {word!r}; use `{{port}}`"
        for name, value in service.env.items():
            path = None if isinstance(value, str) else path_of(value, config.credentials)
            if path is not None and not os.path.exists(path):  # noqa: PTH110, it never raises
                yield place, f"env.{name}: {path} is not there, or not readable"
        if config.box.runtime == "process" and not _directory(config, service).is_dir():
            yield place, f"cwd {_directory(config, service)} is not a directory"
    if config.box.runtime == "process" and (missing := missing_programs(config)):
        yield (
            "[services]",
            (
                f"missing, or not executable: {', '.join(missing)}: install it, or give its full "
                "path in command"
            ),
        )


def _directory(config: Config, service: ServiceConfig) -> Path:
    return config.directory / Path(service.cwd).expanduser()
