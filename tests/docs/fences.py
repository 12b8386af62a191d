"""The fenced blocks of a page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from tests.paths import DOCS


class Fence(Struct, frozen=True, kw_only=True):
    """One fenced block: its language, its title, and the text between the fences."""

    language: str
    title: str
    text: str


class Command(Struct, frozen=True, kw_only=True):
    """What follows a `$ `, and the lines that the page shows as its output."""

    text: str
    output: list[str]


def fences(page: str) -> list[Fence]:
    """The blocks of a page beneath docs/, in order."""
    text = (DOCS / page).read_text(encoding="utf-8")
    found = re.finditer(
        r'^```(\w*)(?: title="([^"]*)")?\n(.*?)^```$', text, re.DOTALL | re.MULTILINE
    )
    return [Fence(language=m[1], title=m[2] or "", text=m[3]) for m in found]


def commands(fence: Fence) -> Iterator[Command]:
    """The commands of a console block."""
    for part in re.split(r"^\$ ", fence.text, flags=re.MULTILINE)[1:]:
        first, *output = part.splitlines()
        yield Command(text=first, output=output)


def pages() -> list[Path]:
    """Every page that is written by hand."""
    return sorted(DOCS.rglob("*.md"))
