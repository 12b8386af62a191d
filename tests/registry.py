"""An image registry on this host, as slow as a test likes: what the distribution spec asks of one
that is only pulled from.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.podman import IMAGE, Podman

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_LAYER = 100_000  # bytes; what is longer is a layer, not what says of what the image is made


class Registry:
    """Serves the test image under `name`; `open` lets its layers through, which wait till then."""

    def __init__(self, port: int) -> None:
        self.name = f"127.0.0.1:{port}/web:1"
        self.open = threading.Event()
        self.asked: list[str] = []


@contextlib.contextmanager
def registry(podman: Podman, directory: Path) -> Iterator[Registry]:
    """A registry that `podman` may pull from; what was pulled is removed in the end."""
    podman("push", IMAGE, f"dir:{directory}")
    layers = {file.name for file in directory.iterdir() if len(file.name) == 64}
    manifest = (directory / "manifest.json").read_bytes()
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
                file = digest.removeprefix("sha256:")
                assert file in layers
                data, content = (directory / file).read_bytes(), "application/octet-stream"
            with contextlib.suppress(ConnectionError):  # the engine was killed meanwhile
                self.send_response(200)
                self.send_header("Content-Type", content)
                self.send_header("Content-Length", str(len(data)))
                sha = hashlib.sha256(data).hexdigest()
                self.send_header("Docker-Content-Digest", f"sha256:{sha}")
                self.end_headers()
                if body:
                    self.wfile.write(data[:100])
                    if len(data) > _LAYER:
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
