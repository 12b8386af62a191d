"""`exec`: run a command in an instance of this host."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from bridge.cli.completion import INSTANCES, completer
from bridge.cli.flags import ConfigFile, DataDir, Link
from bridge.errors import BridgeError, ConfigError, InstanceError
from bridge.subjects import check_name


async def exec(  # noqa: A001
    instance_id: Annotated[
        str,
        Parameter(
            name="ID", completer=completer(INSTANCES), help="The instance, as `ps` names it."
        ),
    ],
    /,
    *command: Annotated[str, Parameter(allow_leading_hyphen=True, help="The command, after --.")],
    config: ConfigFile = None,
    data_dir: DataDir = None,
    link: Link | None = None,
) -> int:
    """Run a command in an instance of this host.

    In a container the engine runs it, on this terminal if there is one. For a
    process it runs in the working directory and with the environment of the
    instance, as its user. The exit code is that of the command. For example:

        box-bridge exec web-01jz3k -- sh
        box-bridge exec web-01jz3k -- env
    """
    from bridge.box.runtimes.logs import ENGINE, instances_dir
    from bridge.cli.box_config import load_config

    check_name("instance id", instance_id)
    if not command:
        raise ConfigError("exec", "no command is given: put it after --")
    root = instances_dir(data_dir or load_config(config, {}).data_dir)
    directory = root / instance_id
    if not directory.is_dir():
        raise InstanceError(await _place(instance_id, root, link))
    if (directory / ENGINE).exists():
        engine = (directory / ENGINE).read_text()
        terminal = ["-it"] if sys.stdin.isatty() and sys.stdout.isatty() else ["-i"]
        _become([engine, "exec", *terminal, instance_id, *command], os.environ)
    _become(command, _enter(instance_id, root.absolute()))
    raise AssertionError("this process is the command now")


async def _place(instance_id: str, root: Path, link: Link | None) -> str:
    """The sentence about an instance that is not on this host: where it is, if a Box answers."""
    from bridge.cli.connect import connect
    from bridge.cli.known_names import unknown
    from bridge.gateway.client import ScaleClient

    here = f"{instance_id} is not in {root}"
    try:
        async with connect(link, "exec") as connection:
            seen = await ScaleClient(connection).observe()
    except BridgeError as exc:
        return f"{here}: give the data directory of its Box with -c or --data-dir ({exc})"
    if host := seen.hosts.get(instance_id):
        return f"{here}: it runs on host {host}; run `box-bridge exec` there"
    return unknown("instance", instance_id, seen.hosts)


def _enter(instance_id: str, root: Path) -> Mapping[str, str]:
    """Go to the working directory of the instance, and become its user; returns its environment.

    Raises InstanceError.
    """
    from bridge.box.runtimes.process.shim import LABEL, command_pid, list_living

    living = list_living(root).get(instance_id)
    pid = command_pid(living.identity.pid) if living else None
    if pid is None:
        raise InstanceError(f"{instance_id} does not run: its process has ended, or has not begun")
    process = Path(f"/proc/{pid}")
    try:
        items = (process / "environ").read_bytes().split(b"\0")
        status = process.stat()
        groups = _groups((process / "status").read_text())
        os.chdir(process / "cwd")
        if os.geteuid() == 0 and status.st_uid != 0:
            os.setgroups(groups)
            os.setgid(status.st_gid)
            os.setuid(status.st_uid)
    except OSError as exc:
        raise InstanceError(f"{instance_id} cannot be entered: {exc.strerror}") from exc
    environ = dict(os.fsdecode(item).split("=", 1) for item in items if b"=" in item)
    # A process with the label would count as the instance itself.
    environ.pop(LABEL, None)
    return {"TERM": os.environ.get("TERM", "dumb"), **environ}


def _groups(status: str) -> list[int]:
    """The supplementary groups that /proc/<pid>/status lists."""
    line = next((line for line in status.splitlines() if line.startswith("Groups:")), "")
    return [int(word) for word in line.split()[1:]]


def _become(command: Sequence[str], environ: Mapping[str, str]) -> None:
    """Replace this process by the command. Raises InstanceError if it cannot be run."""
    sys.stdout.flush()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it
    try:
        os.execvpe(command[0], list(command), dict(environ))  # noqa: S606 the user's command
    except OSError as exc:
        raise InstanceError(f"{command[0]} cannot be run: {exc.strerror}") from exc
