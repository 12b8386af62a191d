"""The hook of mkdocs: adds the generated pages to the site, and lists folders in its navigation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from docs.generate.pages import pages

_ROOT: Final = Path(__file__).parents[2]


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the generated pages; an entry of the navigation that ends in `/` lists that folder."""
    for name, text in pages(_ROOT).items():
        files.append(File.generated(config, name, content=text))
    names = [file.src_uri for file in files.documentation_pages()]
    config.nav = _expanded(config.nav, names)
    return files


def _expanded(entry: Any, names: list[str]) -> Any:
    match entry:
        case list():
            return [_expanded(child, names) for child in entry]
        case dict():
            return {title: _expanded(child, names) for title, child in entry.items()}
        case str() if entry.endswith("/"):
            here = [name for name in names if re.fullmatch(rf"{entry}[^/]+\.md", name)]
            return sorted(here, key=lambda name: (not name.endswith("/index.md"), name))
    return entry
