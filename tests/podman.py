"""Real podman for tests: its own store, images made from busybox, and faults of the engine.

Nothing is pulled from outside. Where podman cannot run, the tests that need it are skipped, with
the reason.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tests.paths import SERVICES

IMAGE = "localhost/box-bridge-test:1"
OTHER_IMAGE = "localhost/box-bridge-test:2"
"""The same, under another name."""

# Debian's podman 4.3 as root: runc under cgroups v1, no systemd, and limits that a container may
# not be allowed to raise. An unset stop timeout is 0.
_CONF = """
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
"""

# Stands between a Box and podman, and fails on demand: a test creates files for that.
_SCRIPT = """#!/bin/sh
echo "$@" >> {here}/calls
if [ -e {here}/gone ]; then echo "podman: not found" >&2; exit 127; fi
while [ -e {here}/hung ]; do sleep 0.1; done
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
export CONTAINERS_CONF={here}/containers.conf CONTAINERS_REGISTRIES_CONF={here}/registries.conf
if [ -e {here}/slow ] && [ "$1" = start ]; then sleep 5; fi
for word in "$@"; do
  [ "$before" != --env-file ] || stat -c "%a $word" "$word" >> {here}/env-files
  before=$word
done
exec podman --root {here}/root --runroot {here}/run --storage-driver vfs "$@"
"""

# The files of the image besides busybox: they serve the environment, slow answers and the like.
_FILES = {
    "www/index.html": "ok\n",
    "www/cgi-bin/env": "#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n'\n"
    "tr '\\0' '\\n' </proc/1/environ\n",
    "www/cgi-bin/slow": "#!/bin/sh\nsleep 3\nprintf 'Content-Type: text/plain\\r\\n\\r\\nok\\n'\n",
    "etc/passwd": "root:x:0:0:root:/:/bin/sh\n",
}
SERVE = ["httpd", "-f", "-p", "{port}", "-h", "/www"]


class Podman:
    """An engine with its own store in `here`; `engine` is the path for a Box."""

    def __init__(self, here: Path) -> None:
        self.here = here
        self.engine = here / "podman"

    @property
    def a3s_shaped(self) -> Path:
        """The same podman behind calls and answers like those of a3s-box."""
        script = self.here / "a3s-box"
        shaped = SERVICES / "a3s_shaped.py"
        script.write_text(f'#!/bin/sh\nexec {sys.executable} {shaped} {self.engine} "$@"\n')
        script.chmod(0o755)
        return script

    def install(self) -> str:
        """Make the store and the image; returns why that is not possible here, or ""."""
        if shutil.which("podman") is None:
            return "podman is not installed"
        if shutil.which("busybox") is None:
            return "busybox is not installed (Debian: busybox-static)"
        if os.geteuid() != 0:
            return "podman is tried as root alone"
        (self.here / "containers.conf").write_text(_CONF)
        (self.here / "registries.conf").touch()
        self.engine.write_text(_SCRIPT.format(here=self.here))
        self.engine.chmod(0o755)
        try:
            self._import(rootfs())
            self("tag", IMAGE, OTHER_IMAGE)
            self("run", "--rm", "-p", "127.0.0.1::80", "--memory", "32m", IMAGE, "true")
        except subprocess.CalledProcessError as exc:
            return f"podman cannot run here: {exc.stderr.decode(errors='replace').strip()[-300:]}"
        return ""

    def __call__(self, *words: str) -> str:
        """The output of podman, called without the faults."""
        done = subprocess.run(
            ["podman", *self._where, *words], env=self._environ, capture_output=True, check=True
        )
        return done.stdout.decode()

    def inspect(self, name: str) -> Any:
        return json.loads(self("inspect", name))[0]

    def pid(self, name: str) -> int:
        return int(self.inspect(name)["State"]["Pid"])

    def names(self) -> set[str]:
        """All containers, ended ones too."""
        return set(self("ps", "-a", "--format", "{{.Names}}").split())

    @contextlib.contextmanager
    def fault(self, kind: str) -> Iterator[None]:
        """The engine is ``gone``, has ``hung``, or is ``slow`` to start a container (5 s), for as
        long as the block lasts.
        """
        switch = self.here / kind
        switch.touch()
        try:
            yield
        finally:
            switch.unlink()

    def trust(self, registry: str) -> None:
        """Let it pull from a registry without TLS."""
        text = f'[[registry]]\nlocation = "{registry}"\ninsecure = true\n'
        (self.here / "registries.conf").write_text(text)

    def calls(self) -> list[str]:
        """The calls of Boxes to the engine in this test, a line each."""
        return self._lines("calls")

    def env_files(self) -> list[str]:
        """The mode and the name of each environment file that the engine was given in this test."""
        return self._lines("env-files")

    def _lines(self, name: str) -> list[str]:
        file = self.here / name
        return file.read_text().splitlines() if file.exists() else []

    def remove_all(self) -> None:
        """Kill and remove every container, and forget the calls."""
        for name in ("calls", "env-files"):
            (self.here / name).unlink(missing_ok=True)
        if names := self.names():
            with contextlib.suppress(subprocess.CalledProcessError):
                self("rm", "-f", "-t", "0", *names)

    def destroy(self) -> None:
        """Remove the containers, the images and the store."""
        self.remove_all()
        with contextlib.suppress(subprocess.CalledProcessError):
            self("rmi", "-af")
        shutil.rmtree(self.here, ignore_errors=True)

    def kill_monitor(self, name: str) -> None:
        """Kill conmon, which reports the end of a container to podman."""
        os.kill(int(self.inspect(name)["State"]["ConmonPid"]), signal.SIGKILL)

    @property
    def _where(self) -> list[str]:
        root, run = self.here / "root", self.here / "run"
        return ["--root", str(root), "--runroot", str(run), "--storage-driver", "vfs"]

    @property
    def _environ(self) -> dict[str, str]:
        return {**os.environ, "CONTAINERS_CONF": str(self.here / "containers.conf")}

    def _import(self, rootfs: bytes) -> None:
        subprocess.run(
            ["podman", *self._where, "import", "-", IMAGE],
            input=rootfs,
            env=self._environ,
            capture_output=True,
            check=True,
        )


def rootfs(more: Mapping[str, bytes] = MappingProxyType({})) -> bytes:
    """A file system of busybox, `_FILES` and `more` files, as a tar archive."""
    busybox = shutil.which("busybox")
    assert busybox is not None
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in ("bin", "etc", "proc", "sys", "dev", "tmp", "www", "www/cgi-bin"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        files = {"bin/busybox": Path(busybox).read_bytes(), **more}
        files |= {name: text.encode() for name, text in _FILES.items()}
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o755
            tar.addfile(entry, io.BytesIO(data))
        for applet in ("sh", "httpd", "sleep", "cat", "tr", "dd", "true", "env", "tail", "head"):
            entry = tarfile.TarInfo(f"bin/{applet}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(entry)
    return buffer.getvalue()
