"""The command-line reference: a page for each verb, from the commands themselves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from cyclopts import App

from bridge.cli.app import build_app
from docs.generate.markdown import table

_INTRODUCTION: Final = """\
# Command line

Every verb takes `--help`, and every verb that prints results takes `--json`.

Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 no answer or a timeout, 4 done in part.
`scale` and `plan` end with 4 if the fleet has room for fewer instances than the request.

A verb that is to wait for NATS or for a Box prints the reason once, and again when it changes.
These verbs wait: `box`, `register`, `relay`, `events` and each `--watch`. The others name the
missing part and end.

Times are local, with the date unless it is today. Logs add the offset. JSON has times in UTC, and
so has every time that ends in Z.

The first Ctrl-C stops a command in order, a second one ends it at once.

NATS is found as NATS users know it: `-s`, `--context` (a context of the `nats` CLI), or the
variables in [the configuration](../connection.md#nats).

"""


def pages() -> dict[str, str]:
    """The overview and a page for each verb, by file name."""
    verbs = dict(commands(build_app(complete=True)))
    rows = [
        [f"[`box-bridge {verb}`]({_file(verb)})", _summary(text)] for verb, text in verbs.items()
    ]
    written = {"index.md": _INTRODUCTION + table(["command", "what it does"], rows)}
    return written | {_file(verb): text for verb, text in verbs.items()}


def commands(parent: App, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Each command with its page; a command that only groups others is not one."""
    for name in parent:
        if name.startswith("-"):
            continue
        command, full = parent[name], (*path, name)
        nested = list(commands(command, full))
        yield from nested
        if not nested:
            yield " ".join(full), _page(command, " ".join(full))


def _page(command: App, verb: str) -> str:
    text = command.generate_docs(recursive=False, usage_name=f"box-bridge {verb}")
    text = re.sub(r"\A# .*", f"# box-bridge {verb}", text)
    return text.replace("**Parameters**", "**Options**")


def _summary(text: str) -> str:
    paragraphs = [part for part in text.split("\n\n") if not part.startswith(("#", "```"))]
    return paragraphs[0]


def _file(verb: str) -> str:
    return f"{verb.replace(' ', '-')}.md"
