"""A run: measure, print the table, and write JSON and a picture."""

from __future__ import annotations

import contextlib
import secrets
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from bridge.bench.report import describe, render_table
from bridge.bench.row import Row, Site
from bridge.bench.runner import Report, measure
from bridge.bench.svg import render_svg
from bridge.bus.core.connection import Connection
from bridge.bus.embedded_server import EmbeddedServer
from bridge.bus.jetstream import topology
from bridge.config import load_nats
from bridge.console import err, out, print_json
from bridge.errors import ConfigError
from bridge.protocol import encode
from bridge.settings import NatsConfig

_UNREACHABLE = 0.4  # seconds for a server at whose address no program listens


class BenchOptions(Struct, frozen=True, kw_only=True):
    """The rows to measure (`only`; empty: all), how, and the directory to write to."""

    only: Sequence[str] = ()
    rounds: int = 5
    effort: float = 1.0
    directory: Path | None = None
    embedded: bool = False


async def run_bench(
    rows: Sequence[Row], options: BenchOptions, flags: Mapping[str, Any], *, json: bool
) -> bool:
    """Measure `rows` and print them; returns whether each of them reached its goal."""
    chosen = _choose(rows, options.only)
    with tempfile.TemporaryDirectory(prefix="box-bridge-bench-") as name:
        directory = Path(name)
        async with _server(directory, options, flags) as (settings, server):
            own = replace(settings, prefix=f"bench-{secrets.token_hex(3)}")
            site = Site(nats=own, directory=directory, effort=options.effort)
            report = await measure(
                chosen, site, rounds=options.rounds, progress=_show_progress, server=server
            )
    if options.directory is not None:
        _write(options.directory, report)
    if json:
        print_json(report)
    else:
        _print(report)
    return report.met


def _choose(rows: Sequence[Row], only: Sequence[str]) -> list[Row]:
    names = [row.name for row in rows]
    if unknown := set(only) - set(names):
        raise ConfigError(
            "--only",
            f"there is no row {', '.join(sorted(unknown))}; there are {', '.join(names)}",
        )
    return [row for row in rows if not only or row.name in only]


@contextlib.asynccontextmanager
async def _server(
    directory: Path, options: BenchOptions, flags: Mapping[str, Any]
) -> AsyncIterator[tuple[NatsConfig, dict[str, str]]]:
    """The settings of the server to measure on, and facts about it."""
    if not options.embedded:
        settings = load_nats(flags=flags)
        yield settings, await _describe_server(settings) | {"sync_interval": "the server's own"}
        return
    async with EmbeddedServer(directory / "nats") as server:
        settings = NatsConfig(url=server.url)
        yield settings, await _describe_server(settings) | {"sync_interval": "always"}


async def _describe_server(settings: NatsConfig) -> dict[str, str]:
    async with Connection.open(
        settings, name="box-bridge bench", unreachable=_UNREACHABLE
    ) as connection:
        await topology.api_level(connection)  # raises StoreUnsuitable without JetStream
        info = connection.server_info
        place = "on this machine" if connection.is_local else "on another machine"
        return {"nats-server": str(info.get("version", "?")), "place": place}


def _show_progress(line: str) -> None:
    err.print(line, style="bright_black")


def _print(report: Report) -> None:
    out.print(render_table(report))
    out.print()
    for line in describe(report):
        out.print(line, style="bright_black")
    for warning in report.warnings:
        out.print(f"Do not trust these figures: {warning}.", style="yellow")


def _write(directory: Path, report: Report) -> None:
    """``bench.json`` and ``bench.svg``."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "bench.json").write_bytes(encode(report) + b"\n")
        (directory / "bench.svg").write_text(render_svg(report), encoding="utf-8")
    except OSError as exc:
        raise ConfigError("--out", f"{directory} cannot be written: {exc.strerror}") from exc
