"""Reports known vulnerabilities of the dependencies in a requirements file.

The exit code is 1 if there is one. Where the advisories cannot be had, a line says so, and the exit
code is 0.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

_TIMEOUT = 300  # seconds
_COMMAND = [
    *(str(Path(sys.executable).with_name("pip-audit")), "--format", "json", "--no-deps"),
    *("--disable-pip", "--progress-spinner", "off", "--requirement"),
]


def main(file: str) -> int:
    try:
        done = subprocess.run(
            [*_COMMAND, file], check=False, capture_output=True, text=True, timeout=_TIMEOUT
        )
        found = json.loads(done.stdout)["dependencies"]
    except (subprocess.TimeoutExpired, json.JSONDecodeError, KeyError):
        found = []
    audited = [each for each in found if "skip_reason" not in each]
    if not audited:
        print("audit: SKIPPED, because no advisories can be had here")
        return 0
    vulnerable = [each for each in audited if each["vulns"]]
    for each in vulnerable:
        names = ", ".join(vuln["id"] for vuln in each["vulns"])
        print(f"audit: {each['name']} {each['version']} is vulnerable: {names}")
    left_out = len(found) - len(audited)
    rest = f"; {left_out} could not be audited" if left_out else ""
    print(f"audit: {len(vulnerable)} of {len(audited)} dependencies are vulnerable{rest}")
    return 1 if vulnerable else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
