"""The names that shells complete: services, hosts and instances, from a cache of answers.

A shell runs ``box-bridge __complete WORDS`` at each TAB. It prints the names of the cache at once,
and another process refreshes a cache that is older than 5 s: a name is at most one TAB behind. Only
a first TAB waits for the answer of a Box, for a second at most. Without NATS there are no names.

It imports no library: each TAB starts a Python.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

SERVICES: Final = "services"
HOSTS: Final = "hosts"
INSTANCES: Final = "instances"

KINDS: Final = {
    "cordon": (HOSTS,),
    "drain": (HOSTS,),
    "events": (SERVICES,),
    "exec": (INSTANCES,),
    "history": (SERVICES,),
    "logs": (INSTANCES, SERVICES),
    "plan": (SERVICES,),
    "ps": (SERVICES,),
    "rebalance": (SERVICES,),
    "relay": (SERVICES,),
    "restart": (INSTANCES, SERVICES),
    "routes": (SERVICES,),
    "scale": (SERVICES,),
    "start": (SERVICES,),
    "status": (SERVICES,),
    "stop": (SERVICES,),
    "timeline": (SERVICES,),
    "uncordon": (HOSTS,),
}
"""The kinds of names that a verb takes as its arguments."""

_FRESH: Final = 5.0  # seconds for which the cache is not refreshed
_WAIT: Final = 1.0  # seconds for a first answer
_LOOK: Final = 0.02  # seconds between two looks at the cache
_BEGIN: Final = "\n\x1fbegin"  # what cyclopts' scripts read before the names
_LINK: Final = ("--server", "-s", "--context", "--prefix")
_VARIABLES: Final = ("NATS_", "BOX_BRIDGE_", "XDG_CONFIG_HOME", "HOME")


def complete(words: Sequence[str], *, environ: Mapping[str, str] = os.environ) -> None:
    """Print the names that may stand at the end of `words`. It raises nothing: a shell is typing.

    Whatever is wrong with the cache or the connection, there are no names then.
    """
    found: list[str] = []
    kinds = next((KINDS[word] for word in words if word in KINDS), ())
    with contextlib.suppress(OSError):
        found = _names(kinds, _link(words), environ) if kinds else []
    print("\n".join([_BEGIN, *found]))


def completer(*kinds: str) -> Callable[[object], list[str]]:
    """The completer of a parameter that takes names of these `kinds`. The scripts call `complete`
    instead, which is faster; cyclopts has to know which parameters to ask for.
    """

    def names(_: object) -> list[str]:
        return _names(kinds, [], os.environ)

    return names


def cache_file(link: Sequence[str], kind: str, environ: Mapping[str, str] = os.environ) -> Path:
    """Where the names of a `kind` are kept, for the NATS that `link` and the environment name."""
    import hashlib

    variables = sorted(item for item in environ.items() if item[0].startswith(_VARIABLES))
    key = hashlib.blake2s(repr((variables, list(link))).encode(), digest_size=8).hexdigest()
    root = environ.get("XDG_CACHE_HOME") or f"{environ.get('HOME', '')}/.cache"
    return Path(root) / "box-bridge" / "names" / f"{key}.{kind}"


def _names(kinds: Sequence[str], link: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    files = [cache_file(link, kind, environ) for kind in kinds]
    if not all(map(_is_fresh, files)):
        _refresh(link, environ)
        deadline = time.monotonic() + _WAIT
        while not all(file.exists() for file in files) and time.monotonic() < deadline:
            time.sleep(_LOOK)
    return [name for file in files if file.exists() for name in file.read_text().split()]


def _is_fresh(file: Path) -> bool:
    try:
        return time.time() - file.stat().st_mtime < _FRESH
    except FileNotFoundError:
        return False


def _refresh(link: Sequence[str], environ: Mapping[str, str]) -> None:
    """Start a process that asks for the names; it outlives this one."""
    command = [sys.executable, "-m", "bridge.cli.live_names", *link]
    silent = [
        (os.POSIX_SPAWN_OPEN, descriptor, os.devnull, os.O_RDWR, 0) for descriptor in range(3)
    ]
    os.posix_spawn(command[0], command, environ, file_actions=silent, setsid=True)


def _link(words: Sequence[str]) -> list[str]:
    """The flags of the connection among `words`."""
    link = []
    for index, word in enumerate(words[:-1]):
        if word in _LINK:
            link += [word, words[index + 1]]
        elif word.partition("=")[0] in _LINK:
            link.append(word)
    return link
