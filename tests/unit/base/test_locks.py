"""What the project installs is pinned with the hashes of its files."""

from __future__ import annotations

import re

import pytest

from tests.paths import REPOSITORY

LOCKS = [
    "requirements.lock",
    "docs/requirements.txt",
    "tests/bench/peers/requirements.txt",
    ".ci/requirements.txt",
]
PINNED = re.compile(
    r"[A-Za-z0-9._\-\[\]]+==\S+(?: ; [^\\\n]+)?(?: \\\n +--hash=sha256:[0-9a-f]{64})+\n"
)


@pytest.mark.parametrize("lock", LOCKS)
def test_each_requirement_is_pinned_with_hashes(lock: str) -> None:
    text = "".join(
        line
        for line in (REPOSITORY / lock).read_text().splitlines(keepends=True)
        if not line.lstrip().startswith("#")
    )
    assert text.count("==") > 5
    assert PINNED.sub("", text) == ""


def test_the_makefile_installs_nothing_else() -> None:
    installs = re.findall(r"pip install .*", (REPOSITORY / "Makefile").read_text())
    assert len(installs) == 5
    assert all("--require-hashes" in line or "--editable ." in line for line in installs)
