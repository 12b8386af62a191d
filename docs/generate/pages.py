"""Every generated page of the site, by its path beneath docs/."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from docs.generate import cli, errors, metrics, python, roles, settings

# Files of the repository's root that are pages of the site as well.
_COPIES: Final = {
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
}


def pages(root: Path) -> dict[str, str]:
    """The text of each page, made from the code and the files under `root`."""
    made = {
        "reference/errors.md": errors.page(),
        "reference/metrics.md": metrics.page(),
        "reference/python.md": python.page(),
        "reference/roles.md": roles.page(),
    }
    made |= {f"reference/{name}": text for name, text in settings.pages().items()}
    made |= {f"reference/cli/{name}": text for name, text in cli.pages().items()}
    for page, name in _COPIES.items():
        made[page] = _relinked((root / name).read_text(encoding="utf-8"))
    return made


def _relinked(text: str) -> str:
    """`text` with links that start at docs/, where the page stands, and to the other copies."""
    text = re.sub(r"\]\(docs/", "](", text)
    for page, name in _COPIES.items():
        text = text.replace(f"]({name}", f"]({page}")
    return text
