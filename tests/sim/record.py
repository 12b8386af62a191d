"""What came of each seed, kept in a file: a run of hours can be broken off and gone on with."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any, Final, TextIO

from tests.sim.world import Size

Key = tuple[int, Size]

_PACKAGES: Final = ("__main__", "bridge", "tests")


def code() -> str:
    """A digest of all code that a simulation runs: the result of a seed holds only for it."""
    digest = hashlib.sha256()
    for name, module in sorted(sys.modules.items()):
        if name.partition(".")[0] in _PACKAGES and (file := getattr(module, "__file__", None)):
            digest.update(Path(file).read_bytes())
    return digest.hexdigest()[:16]


class Record:
    """The results in the file at `path`, a line of JSON for each; those of other code are passed
    over, a last line that was cut short is dropped.
    """

    def __init__(self, path: Path) -> None:
        self._code = code()
        self._known: dict[Key, dict[str, Any]] = {}
        text = path.read_text() if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        for result in map(json.loads, whole.splitlines()):
            if result["code"] == self._code:
                self._known[_key(result)] = result
        if whole != text:
            path.write_text(whole)
        self._file: TextIO = path.open("a")

    def get(self, seed: int, size: Size) -> dict[str, Any] | None:
        """What came of the seed with this size, if it was run."""
        return self._known.get((seed, size))

    def keep(self, result: dict[str, Any]) -> None:
        """Write one down, at once."""
        if _key(result) not in self._known:
            self._known[_key(result)] = result
            self._file.write(json.dumps(result | {"code": self._code}) + "\n")
            self._file.flush()


def _key(result: dict[str, Any]) -> Key:
    return result["seed"], Size(result["hosts"], result["instances"], result["troubled"])
