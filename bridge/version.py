"""The version of this package. pyproject.toml reads it here, and so does `box-bridge version`:
the package's metadata says the same, and takes 30 ms to read.
"""

from __future__ import annotations

VERSION = "0.1.0"
