"""`bench`: measure, print the table, write JSON and a picture."""

from __future__ import annotations

import contextlib
import secrets
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from bridge.bench.report import setting, table
from bridge.bench.row import Row, Site
from bridge.bench.runner import Report, measure
from bridge.bench.svg import svg
from bridge.bus.core.connection import Connection
from bridge.bus.embedded_server import EmbeddedServer
from bridge.cli.exit_codes import DONE, FAILED
from bridge.config import load_nats
from bridge.console import err, out, print_json
from bridge.errors import ConfigError
from bridge.protocol import encode
from bridge.settings import NatsConfig


class BenchOptions(Struct, frozen=True, kw_only=True):
    """What to measure and where to write it. No name in `only` is all rows."""

    only: Sequence[str] = ()
    rounds: int = 5
    effort: float = 1.0
    directory: Path | None = None
    embedded: bool = False


async def run_bench(
    rows: Sequence[Row], asked: BenchOptions, flags: Mapping[str, Any], *, json: bool
) -> int:
    """Measure `rows`; 0 if each of them reached its goal."""
    chosen = _chosen(rows, asked.only)
    with tempfile.TemporaryDirectory(prefix="box-bridge-bench-") as name:
        directory = Path(name)
        async with _server(directory, asked, flags) as (settings, server):
            own = replace(settings, prefix=f"bench-{secrets.token_hex(3)}")
            site = Site(nats=own, directory=directory, effort=asked.effort)
            report = await measure(chosen, site, rounds=asked.rounds, tell=_tell, server=server)
    if asked.directory is not None:
        _write(asked.directory, report)
    if json:
        print_json(report)
    else:
        _print(report)
    return DONE if report.met else FAILED


def _chosen(rows: Sequence[Row], only: Sequence[str]) -> list[Row]:
    names = [row.name for row in rows]
    if strangers := set(only) - set(names):
        raise ConfigError(
            "--only",
            f"there is no row {', '.join(sorted(strangers))}; there are {', '.join(names)}",
        )
    return [row for row in rows if not only or row.name in only]


@contextlib.asynccontextmanager
async def _server(
    directory: Path, asked: BenchOptions, flags: Mapping[str, Any]
) -> AsyncIterator[tuple[NatsConfig, dict[str, str]]]:
    """How to reach the server to measure on, and what is known of it."""
    if not asked.embedded:
        settings = load_nats(flags=flags)
        yield settings, await _told_of(settings) | {"sync_interval": "the server's own"}
        return
    async with EmbeddedServer(directory / "nats") as server:
        settings = NatsConfig(url=server.url)
        yield settings, await _told_of(settings) | {"sync_interval": "always"}


async def _told_of(settings: NatsConfig) -> dict[str, str]:
    async with Connection.open(settings, name="box-bridge bench") as connection:
        info = connection.server_info
        place = "on this machine" if connection.is_local else "on another machine"
        return {"nats-server": str(info.get("version", "?")), "place": place}


def _tell(words: str) -> None:
    err.print(words, style="bright_black")


def _print(report: Report) -> None:
    out.print(table(report))
    out.print()
    for line in setting(report):
        out.print(line, style="bright_black")
    for warning in report.warnings:
        out.print(f"Not to be believed: {warning}.", style="yellow")


def _write(directory: Path, report: Report) -> None:
    """``bench.json`` and ``bench.svg``."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "bench.json").write_bytes(encode(report) + b"\n")
        (directory / "bench.svg").write_text(svg(report), encoding="utf-8")
    except OSError as exc:
        raise ConfigError("--out", f"{directory} cannot be written: {exc.strerror}") from exc
