"""An engine of the shape that a3s-box's documentation describes, made of podman.

python a3s_shaped.py PODMAN CALL…

It is no a3s-box: it shows that a runtime which asks in that shape, and is answered in it, works.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

_STATUS = {"exited": "stopped", "configured": "created", "initialized": "created"}


def ask(podman: str, *words: str) -> Any:
    """What podman answers; ends like podman if that fails."""
    done = subprocess.run([podman, *words], stdout=subprocess.PIPE)
    if done.returncode:
        sys.exit(done.returncode)
    return json.loads(done.stdout)


def shaped(found: dict[str, Any]) -> dict[str, Any]:
    """An answer of `inspect`, in its shape."""
    state = found["State"]
    status = _STATUS.get(state["Status"], state["Status"])
    ended = status == "stopped"
    bound = (found["NetworkSettings"]["Ports"] or {}).items()
    return {
        "name": found["Name"],
        "status": status,
        "pid": state["Pid"] or None,
        "port_map": [
            f"{item['HostPort']}:{guest.partition('/')[0]}"
            for guest, items in bound
            for item in items or ()
        ],
        "State": {
            "Status": status,
            "Running": state["Running"],
            "Paused": False,
            "ExitCode": state["ExitCode"] if ended else None,
        },
    }


def main(podman: str, verb: str, *rest: str) -> int:
    words = list(rest)
    match verb:
        case "--version":
            print("a3s-box 3.2.0")
            return 0
        case "run":
            words = [word.removeprefix("0:") for word in words if word != "--"]
        case "rm":
            words = ["-t", "0", *words]
        case "image-inspect":
            verb, words = "image", ["inspect", *words]
        case "ps":
            listed = ask(podman, verb, *words)
            print(json.dumps([{"name": x["Names"][0], "status": x["State"]} for x in listed]))
            return 0
        case "inspect":
            [name] = words  # one at a time
            print(json.dumps([shaped(ask(podman, verb, name)[0])]))
            return 0
        case "stats":
            assert words == ["--no-stream"]
            print("│ BOX ID │ NAME │ CPU % │ MEM USAGE / LIMIT │")
            for x in ask(podman, verb, *words, "--format", "json"):
                print(f"│ {x['id']} │ {x['name']} │ {x['cpu_percent']} │ {x['mem_usage']} │")
            return 0
        case "create" | "start" | "image":
            print(f"error: unrecognized subcommand '{verb}'", file=sys.stderr)
            return 2
    return subprocess.run([podman, verb, *words]).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
