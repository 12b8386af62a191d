"""What happened to instances over a stretch of time, gathered from their events, to be drawn.

Pure: the events and the time come in, and a `Picture` goes out. What peers say is made harmless
here, once, for every way of drawing it.
"""

from __future__ import annotations

from collections import deque
from datetime import datetime
from typing import Final

from msgspec import Struct

from bridge.protocol import InstanceEvent, InstanceState

ENDS: Final = (InstanceState.STOPPED, InstanceState.FAILED)

_MESSAGE: Final = 300  # letters of a message that are kept
_NOTES: Final = 50  # notes of one instance that are kept, the latest


class Span(Struct, frozen=True, kw_only=True):
    """A time that an instance spent in one state."""

    state: InstanceState
    begin: datetime
    end: datetime


class Note(Struct, frozen=True, kw_only=True):
    """Something said about an instance: a health change, or why it ended."""

    at: datetime
    message: str


class Life(Struct, frozen=True, kw_only=True):
    """One instance. `ended` is Stopped or Failed, None while it lives; `last` says why."""

    instance_id: str
    spans: list[Span]
    notes: list[Note]
    ended: InstanceState | None
    last: Note


class Picture(Struct, frozen=True, kw_only=True):
    """Lives between two times, in the order of their first events; `left_out` did not fit."""

    begin: datetime
    end: datetime
    lives: list[Life]
    left_out: int = 0


class _Open(Struct):
    """An instance that is being read."""

    steps: list[tuple[datetime, InstanceState]]
    notes: deque[Note]
    last: Note
    order: int


class Lives:
    """Gathers events, in their order, and keeps what can be drawn.

    Only instances that were there at or after `since` count (None: all). Of those that have
    ended the last `most` are kept, so that a crash loop of a week takes no more memory.
    """

    def __init__(self, *, since: datetime | None, most: int) -> None:
        self._since = since
        self._most = most
        self._living: dict[str, _Open] = {}
        self._ended: deque[tuple[str, _Open]] = deque()
        self._left_out = 0
        self._order = 0

    def take(self, event: InstanceEvent) -> None:
        """The next event."""
        at, state = event.timestamp, event.to_state
        note = Note(at=at, message=printable(event.message))
        life = self._living.get(event.instance_id)
        if life is None:
            self._order += 1
            life = _Open([], deque(maxlen=_NOTES), note, self._order)
            self._living[event.instance_id] = life
            if event.from_state is not InstanceState.CREATING and self._since:
                # Its beginning is no longer kept: it was in that state for as long as one sees.
                life.steps.append((min(at, self._since), event.from_state))
        life.last = note
        if event.from_state is state:
            life.notes.append(note)
        if not life.steps or life.steps[-1][1] is not state:
            self._step(life, at, state)
        if state in ENDS:
            self._end(event.instance_id, at)

    def picture(self, now: datetime) -> Picture:
        """What was taken, up to `now`, or to the last event where nothing lives any more."""
        there = [*self._ended, *self._living.items()]
        there.sort(key=lambda named: (named[0] in self._living, named[1].last.at))
        kept = sorted(there[-self._most :], key=lambda named: named[1].order)
        times = [at for _, life in kept for at, _ in (life.steps[0], life.steps[-1])]
        # A Box's clock may be ahead of this one.
        end = max([now, *times]) if self._since or self._living else max(times, default=now)
        begin = self._since or min(times, default=end)
        return Picture(
            begin=begin,
            end=end,
            lives=[_life(name, life, begin, end) for name, life in kept],
            left_out=self._left_out + len(there) - len(kept),
        )

    def _step(self, life: _Open, at: datetime, state: InstanceState) -> None:
        """Add a step; of those before `since` only the last is seen."""
        if self._since and at <= self._since:
            life.steps.clear()
        life.steps.append((at, state))

    def _end(self, name: str, at: datetime) -> None:
        life = self._living.pop(name)
        if self._since and at < self._since:
            return
        self._ended.append((name, life))
        if len(self._ended) > self._most:
            self._ended.popleft()
            self._left_out += 1


def printable(message: str) -> str:
    """`message` on one line, without what a terminal would obey or XML could not hold."""
    kept = message[:_MESSAGE] + ("…" if len(message) > _MESSAGE else "")
    return "".join(char if char.isprintable() else " " if char.isspace() else "�" for char in kept)


def _life(name: str, life: _Open, begin: datetime, end: datetime) -> Life:
    steps = life.steps
    state = steps[-1][1]
    ended = state if state in ENDS else None
    nexts = [at for at, _ in steps[1:]] + [end]
    return Life(
        instance_id=name,
        spans=[
            Span(state=step, begin=max(at, begin), end=max(until, begin))
            for (at, step), until in zip(steps, nexts, strict=True)
            if step not in ENDS
        ],
        notes=[note for note in life.notes if note.at >= begin],
        ended=ended,
        last=life.last,
    )
