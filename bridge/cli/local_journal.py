"""What the journal of this host says: for `ps` when nobody answers, or when it alone is asked."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from rich.text import Text

from bridge.box.journal.alerts import list_alerts
from bridge.box.journal.entry import JournalEntry
from bridge.box.journal.store import CUT_OFF, JOURNAL, SET_ASIDE, Snapshot, read_snapshot
from bridge.box.runtimes.process_identity import is_alive
from bridge.box.state.lifecycle import ENDED
from bridge.cli.connect import configuration
from bridge.console import err, instances_table, out, print_json
from bridge.errors import ConfigError, JournalError
from bridge.protocol import InstancesResponse

_HERE = "this host"  # the journal does not know under which name
_SAYS = "this is what the journal of this host says"


class JournalSeen(InstancesResponse, frozen=True, kw_only=True, gc=False):
    """The journal at `journal` as an answer to `ps`, and what only a journal knows.

    `ended` are those of the instances whose process is no more, `events_waiting` are yet to be
    told, the oldest since `waiting_since`. Empty: not so, or not known.
    """

    journal: str
    ended: list[str]
    cut_off_since: str
    set_aside: str
    events_waiting: int
    waiting_since: datetime | None


class JournalView:
    """The journal of the Box that `file` configures, or whose data directory is `data_dir`."""

    def __init__(self, file: Path | None, data_dir: Path | None) -> None:
        self._file = file
        self._data_dir = data_dir

    def show(self, service: str, *, json: bool) -> None:
        """Print what it says. Raises ConfigError and JournalError where it cannot be found."""
        self._print(self._path(), _SAYS.capitalize(), service, json)

    def show_instead(self, service: str, *, json: bool) -> None:
        """Print what it says, if there is one, now that nobody answers."""
        try:
            path = self._path()
            if not path.exists():
                return
            self._print(path, f"nobody answers on NATS; {_SAYS}", service, json)
        except (JournalError, OSError) as exc:
            err.print(Text(f"box-bridge: {exc}"))
        except ConfigError as exc:
            if self._file is not None:  # else nobody has said that there is one
                err.print(Text(f"box-bridge: {exc}"))

    def _path(self) -> Path:
        told = None if self._data_dir is None else str(self._data_dir)
        return configuration(self._file, {"data_dir": told}).data_dir / JOURNAL

    def _print(self, path: Path, first: str, service: str, json: bool) -> None:
        snapshot = read_snapshot(path)
        seen = _seen(path, snapshot, service)
        if json:
            print_json(seen)
            return
        out.print(Text(f"{first} ({path}):"))
        if seen.instances:
            out.print(instances_table(seen))
        else:
            out.print("no instances")
        for sentence in [*_of_ended(seen.ended), *list_alerts(snapshot)]:
            out.print(Text(sentence, style="red"))


def _seen(path: Path, snapshot: Snapshot, service: str) -> JournalSeen:
    entries = [entry for entry in snapshot.entries if _is_wanted(entry, service)]
    entries.sort(key=lambda entry: (entry.life.info.created_at, entry.life.info.id))
    instances = [entry.life.info for entry in entries]
    ended = [
        entry.life.info.id
        for entry in entries
        if entry.identity is not None and not is_alive(entry.identity)
    ]
    sentences = [*_of_ended(ended), *list_alerts(snapshot)]
    return JournalSeen(
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


def _is_wanted(entry: JournalEntry, service: str) -> bool:
    info = entry.life.info
    return info.state not in ENDED and service in ("", info.service)


def _of_ended(ids: Sequence[str]) -> list[str]:
    return [f"ended since, as no Box has noted yet: {', '.join(ids)}"] if ids else []
