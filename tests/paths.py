"""Where the repository's files are, for the tests that read or run them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

TESTS: Final = Path(__file__).parent
REPOSITORY: Final = TESTS.parent
DOCS: Final = REPOSITORY / "docs"
EXAMPLES: Final = REPOSITORY / "examples"
SERVICES: Final = TESTS / "services"

HTTP_SERVICE: Final = SERVICES / "http_service.py"
"""A small HTTP server; its docstring lists what its arguments make it do."""
TINY_SERVICE: Final = SERVICES / "tiny_service.py"
SELF_REGISTERED: Final = SERVICES / "self_registered.py"
