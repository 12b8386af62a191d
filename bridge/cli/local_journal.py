"""The journal of this host, as `ps` shows it when no Box answers, or with --local."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from rich.text import Text

from bridge.box.journal.alerts import list_alerts
from bridge.box.journal.entry import JournalEntry
from bridge.box.journal.store import CUT_OFF, FLEET, JOURNAL, SET_ASIDE, Snapshot, read_snapshot
from bridge.box.runtimes.process_identity import is_alive
from bridge.box.state.lifecycle import ENDED
from bridge.cli.box_config import load_config
from bridge.cli.output import Style
from bridge.console import err, instances_table, out
from bridge.errors import ConfigError, JournalError
from bridge.nats_url import parse_urls
from bridge.protocol import InstancesResponse
from bridge.settings import NatsConfig

_HERE = "this host"  # the journal does not contain the host's name
_TITLE = "this is what the journal of this host says"


class JournalResponse(InstancesResponse, frozen=True, kw_only=True, gc=False):
    """The journal at `journal` as an answer to `ps`, with facts that only a journal has.

    `ended` are the instances whose process has ended, unnoticed by any Box. `events_waiting` events
    are unpublished, the oldest since `waiting_since`. An empty value: not the case, or not known.
    """

    journal: str
    ended: list[str]
    cut_off_since: str
    set_aside: str
    events_waiting: int
    waiting_since: datetime | None


def show_journal(service: str, file: Path | None, data_dir: Path | None, style: Style) -> None:
    """Print the journal of the Box that `file` configures, or whose data directory is `data_dir`.

    Raises ConfigError and JournalError if it cannot be found or read.
    """
    _print(_path(file, data_dir), _TITLE.capitalize(), service, style)


def show_journal_instead(
    service: str, file: Path | None, data_dir: Path | None, nats: NatsConfig, style: Style
) -> None:
    """Print the same because no Box answers, if there is a journal of a Box on that `nats`. Raises
    nothing.
    """
    try:
        config = load_config(file, {"data_dir": None if data_dir is None else str(data_dir)})
        path = config.data_dir / JOURNAL
        if path.exists() and _is_of_fleet(path, nats, config.nats):
            _print(path, f"nobody answers on NATS; {_TITLE}", service, style)
    except (JournalError, OSError) as exc:
        err.print(Text(f"box-bridge: {exc}"))
    except ConfigError as exc:
        if file is not None:  # without -c this host need not have a Box
            err.print(Text(f"box-bridge: {exc}"))


def _path(file: Path | None, data_dir: Path | None) -> Path:
    chosen = None if data_dir is None else str(data_dir)
    return load_config(file, {"data_dir": chosen}).data_dir / JOURNAL


def _is_of_fleet(path: Path, nats: NatsConfig, configured: NatsConfig) -> bool:
    """Whether the Box of the journal is of the fleet that `nats` names: it has the prefix and one
    of the servers. A journal that names no fleet belongs to the configured one.
    """
    try:
        fact = read_snapshot(path).facts.get(FLEET, "")
    except JournalError:
        if _fleet(nats.prefix, nats.urls).isdisjoint(_fleet(configured.prefix, configured.urls)):
            return False
        raise
    prefix, *urls = fact.split() or (configured.prefix, *configured.urls)
    return not _fleet(nats.prefix, nats.urls).isdisjoint(_fleet(prefix, urls))


def _fleet(prefix: str, urls: Sequence[str]) -> set[tuple[str, str]]:
    servers = {server.netloc for server in parse_urls(",".join(urls))}
    return {(prefix, server.replace("localhost:", "127.0.0.1:")) for server in servers}


def _print(path: Path, title: str, service: str, style: Style) -> None:
    snapshot = read_snapshot(path)
    seen = _read(path, snapshot, service)
    if style.print_data(seen, lambda: [info.id for info in seen.instances]):
        return
    out.print(Text(f"{title} ({path}):"))
    if seen.instances:
        out.print(instances_table(seen, wide=style.wide))
    else:
        out.print("no instances")
    for sentence in [*_list_ended(seen.ended), *list_alerts(snapshot)]:
        out.print(Text(sentence, style="red"))


def _read(path: Path, snapshot: Snapshot, service: str) -> JournalResponse:
    entries = [entry for entry in snapshot.entries if _matches(entry, service)]
    entries.sort(key=lambda entry: (entry.life.info.created_at, entry.life.info.id))
    instances = [entry.life.info for entry in entries]
    ended = [
        entry.life.info.id
        for entry in entries
        if entry.identity is not None and not is_alive(entry.identity)
    ]
    sentences = [*_list_ended(ended), *list_alerts(snapshot)]
    return JournalResponse(
        total=len(instances),
        instances=instances,
        hosts={info.id: _HERE for info in instances},
        notices={_HERE: "; ".join(sentences)} if sentences else {},
        journal=str(path),
        ended=ended,
        cut_off_since=snapshot.facts.get(CUT_OFF, ""),
        set_aside=snapshot.facts.get(SET_ASIDE, ""),
        events_waiting=snapshot.backlog,
        waiting_since=snapshot.oldest,
    )


def _matches(entry: JournalEntry, service: str) -> bool:
    info = entry.life.info
    return info.state not in ENDED and service in ("", info.service)


def _list_ended(ids: Sequence[str]) -> list[str]:
    return [f"ended since, as no Box has noted yet: {', '.join(ids)}"] if ids else []
