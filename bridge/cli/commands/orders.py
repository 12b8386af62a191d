"""`cordon`, `drain`, `uncordon` and `rebalance`: give the order, and follow it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Self

from rich.status import Status
from rich.text import Text

from bridge.admin_protocol import AdminResponse, Host, Move
from bridge.cli.connect import connected
from bridge.cli.exit_codes import DONE, FAILED
from bridge.console import err, out, plain_table, print_json
from bridge.errors import BridgeError
from bridge.gateway.errors import DrainStuck, DrainTimeout
from bridge.gateway.operator import Operator
from bridge.subjects import check_name


async def run_cordon(
    host: str, flags: Mapping[str, Any], *, reason: str, force: bool, json: bool
) -> int:
    """Cordon the host."""
    check_name("host", host)
    async with connected(flags, "cordon") as connection:
        await Operator(connection).cordon(host, reason=reason, force=force)
    _done(f"{host} is cordoned: nothing is placed there until `box-bridge uncordon {host}`", json)
    return DONE


async def run_uncordon(host: str, flags: Mapping[str, Any], *, json: bool) -> int:
    """Take the host's order back."""
    check_name("host", host)
    async with connected(flags, "uncordon") as connection:
        await Operator(connection).uncordon(host)
    _done(f"{host} takes instances again", json)
    return DONE


async def run_drain(
    host: str,
    flags: Mapping[str, Any],
    *,
    timeout: float,
    force: bool,
    reason: str,
    wait: bool,
    json: bool,
) -> int:
    """Drain the host, and follow it until it is empty."""
    check_name("host", host)
    ends = f"`box-bridge uncordon {host}` ends it"
    short: Mapping[str, int] = {}
    async with connected(flags, "drain") as connection:
        operator = Operator(connection)
        with _Progress(f"{host}: asking for its drain", quiet=json or not wait) as progress:

            def look(done: int, of: int, there: Host) -> None:
                nonlocal short
                short = there.short
                no_room = f"; no host has room for {_listed(short)}" if short else ""
                progress.tell(f"{host}: {done} of {of} gone from it{no_room}")

            count = await operator.drain(host, force=force, reason=reason, wait=False)
            if wait:
                with _standing(f"The drain of {host} goes on; {ends}."):
                    await operator.emptied(host, of=count, timeout=timeout, progress=look)
    if json:
        waiting = {name: f"no host has room for {count}" for name, count in short.items()}
        print_json(AdminResponse(done=True, affected=count, waiting=waiting))
    elif wait:
        waits = f", and no host has room for {_listed(short)}" if short else ""
        out.print(f"{host} is empty: {count} gone from it{waits}; {ends}")
    else:
        out.print(f"{host} is being drained: {count} to go from it; see `box-bridge hosts`")
    return DONE


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} of {service}" for service, count in sorted(counts.items()))


async def run_rebalance(
    service: str,
    flags: Mapping[str, Any],
    *,
    dry_run: bool,
    wait: bool,
    timeout: float,
    json: bool,
) -> int:
    """Show the moves and have them made."""
    if service:
        check_name("service", service)
    async with connected(flags, "rebalance") as connection:
        operator = Operator(connection)
        with _Progress("asking for moves", quiet=json or not wait or dry_run) as progress:
            response = await operator.rebalance(service, dry_run=dry_run)
            if wait and not dry_run:
                with _standing("The moves go on; see `box-bridge history`."):
                    await operator.moved(
                        response.moves,
                        timeout=timeout,
                        progress=lambda done, of: progress.tell(f"{done} of {of} moved"),
                    )
    if json:
        print_json(response)
    else:
        _tell_moves(response, verb="would move" if dry_run else "moved" if wait else "move")
    return FAILED if response.waiting and not response.moves else DONE


def _tell_moves(response: AdminResponse, *, verb: str) -> None:
    if response.moves:
        out.print(_moves_table(response.moves))
        out.print(f"{len(response.moves)} {verb}")
    elif not response.waiting:
        out.print("nothing to move: no host has two places less than another that could take more")
    for service, why in response.waiting.items():
        err.print(Text(f"{service} was left as it is: {why}"))
    if response.more:
        err.print("there is more to move: ask again when these moves are made")


def _moves_table(moves: list[Move]) -> Any:
    table = plain_table("ID", "SERVICE", "FROM", "TO")
    for move in moves:
        cells = (move.instance_id, move.service, move.source, move.target)
        table.add_row(*map(Text, cells))
    return table


def _done(text: str, json: bool) -> None:
    if json:
        print_json(AdminResponse(done=True))
    else:
        out.print(text)


@contextlib.contextmanager
def _standing(order: str) -> Iterator[None]:
    """Say that the order stands, whatever ends the wait for it, unless that says it itself."""
    try:
        yield
    except (DrainStuck, DrainTimeout):
        raise
    except (asyncio.CancelledError, BridgeError):
        err.print(order)
        raise


class _Progress:
    """One line on the terminal that says how far it is; plain lines where there is none."""

    def __init__(self, first: str, *, quiet: bool) -> None:
        self._quiet = quiet
        self._first = first
        self._status: Status | None = None
        self.told = ""

    def __enter__(self) -> Self:
        if not self._quiet and err.is_terminal:
            self._status = err.status(self._first)
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def tell(self, line: str) -> None:
        """Say `line`, if it is new."""
        if line == self.told:
            return
        self.told = line
        if self._quiet:
            return
        if self._status is not None:
            self._status.update(line)
        else:
            err.print(Text(line))
