"""`reload`: apply changed services to a running Box."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from bridge.cli.exit_codes import DONE, FAILED
from bridge.cli.flags import ConfigFile, DataDir, Json, OrderTimeout
from bridge.console import err, out, print_json

if TYPE_CHECKING:
    from bridge.box.reload import Changes


async def reload(
    *,
    dry_run: Annotated[
        bool, Parameter(negative="", help="Show what would change; change nothing.")
    ] = False,
    config: ConfigFile = None,
    data_dir: DataDir = None,
    timeout: OrderTimeout = 30.0,
    json: Json = False,
) -> int:
    """Apply changed services to a running Box.

    The Box reads its file, and conf.d/*.toml beside it, again. It offers added
    services. It replaces the instances of changed ones, each Ready before the old
    one drains. It drains those of removed ones, whose target becomes 0 if no other
    host offers them. Nothing else is touched. A wrong file changes nothing. For
    example:

        box-bridge reload --dry-run
        box-bridge reload -c /etc/box-bridge/box.toml

    [box], [nats] and [timing] apply after a restart; the output names what has
    changed there. SIGHUP does the same to `box-bridge box`.
    """
    import asyncio
    import os
    import signal

    from bridge.box.reload import check, compare
    from bridge.cli.box_config import load_config
    from bridge.cli.reloading import read_loaded, wait_reloaded
    from bridge.errors import BoxError
    from bridge.settings import Config

    directory = load_config(config, {}).data_dir if data_dir is None else data_dir
    loaded = read_loaded(directory)
    if dry_run:
        wanted = load_config(Path(loaded.file) if loaded.file else config, {})
        check(wanted)
        before = Config(box=wanted.box, nats=wanted.nats, services=loaded.services)
        changes = compare(
            before, Config(box=wanted.box, nats=wanted.nats, services=wanted.services)
        )
        _print(changes, loaded.host, json=json, dry_run=True)
        return DONE
    try:
        async with asyncio.timeout(timeout):
            loaded = await wait_reloaded(
                directory, lambda process: os.kill(process.pid, signal.SIGUSR1)
            )
    except TimeoutError as exc:
        raise BoxError(f"Box {loaded.host} has not reloaded within {timeout:g} s") from exc
    if loaded.changes is None:
        err.print(f"box-bridge: nothing was reloaded: {loaded.error}", markup=False)
        return FAILED
    _print(loaded.changes, loaded.host, json=json, dry_run=False)
    return DONE


def _print(changes: Changes, host: str, *, json: bool, dry_run: bool) -> None:
    if json:
        print_json(changes)
        return
    would, are = ("would be ", "would be") if dry_run else ("", "are")
    lines = [f"{name}: {would}added" for name in changes.added]
    lines += [
        f"{name}: {would}changed ({', '.join(keys)}); its instances {are} replaced, "
        "each Ready before an old one drains"
        for name, keys in changes.changed.items()
    ]
    lines += [f"{name}: {would}removed; its instances drain" for name in changes.removed]
    for line in lines or ["nothing changed"]:
        out.print(f"{host}: {line}", markup=False)
    if changes.restart:
        err.print(f"{host}: restart the Box to apply {', '.join(changes.restart)}", markup=False)
