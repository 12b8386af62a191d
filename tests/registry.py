"""An image registry on this host, as slow as a test likes: what the distribution spec asks of one
that is only pulled from.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import secrets
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.podman import Podman, rootfs

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


class Registry:
    """Serves the test image under `name`; `open` lets its layers through, which wait till then."""

    def __init__(self, port: int) -> None:
        self.name = f"127.0.0.1:{port}/web:1"
        self.open = threading.Event()
        self.asked: list[str] = []


@contextlib.contextmanager
def registry(podman: Podman) -> Iterator[Registry]:
    """A registry that `podman` may pull from; what was pulled is removed in the end."""
    layer = rootfs({"etc/pulled": secrets.token_bytes(8)})  # one that is in no store yet
    config = json.dumps(
        {
            "architecture": _MACHINES.get(platform.machine(), platform.machine()),
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
        }
    ).encode()
    blobs = {_digest(data): data for data in (layer, config)}
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "config": _part(_CONFIG, config),
            "layers": [_part(_LAYER, layer)],
        }
    ).encode()
    found: list[Registry] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def _answer(self, *, body: bool) -> None:
            found[0].asked.append(self.path)
            kind, _, digest = self.path.rpartition("/")
            data, content = b"{}", "application/json"
            if kind.endswith("/manifests"):
                data, content = manifest, _MANIFEST
            elif kind.endswith("/blobs"):
                data, content = blobs[digest], "application/octet-stream"
            with contextlib.suppress(ConnectionError):  # the engine was killed meanwhile
                self.send_response(200)
                self.send_header("Content-Type", content)
                self.send_header("Content-Length", str(len(data)))
                self.send_header("Docker-Content-Digest", _digest(data))
                self.end_headers()
                if body:
                    self.wfile.write(data[:100])
                    if data is layer:
                        found[0].open.wait(20)
                    self.wfile.write(data[100:])

        def log_message(self, *_: object) -> None:
            """The summary is for what failed."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.append(Registry(server.server_port))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        podman.trust(f"127.0.0.1:{server.server_port}")
        yield found[0]
    finally:
        found[0].open.set()
        server.shutdown()
        thread.join()
        server.server_close()
        podman.remove_all()
        with contextlib.suppress(Exception):
            podman("rmi", "-f", found[0].name)


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _part(kind: str, data: bytes) -> dict[str, Any]:
    return {"mediaType": kind, "digest": _digest(data), "size": len(data)}
