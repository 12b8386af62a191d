"""The port at which Prometheus scrapes a Box: few connections, and each has little time.

Connections that say nothing must not use up the descriptors that instances need.
"""

from __future__ import annotations

import hmac
import socket
import threading
import time
from collections.abc import Iterable
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

MAX_CONNECTIONS: Final = 16
TIMEOUT: Final = 5.0  # seconds for each read and write of a connection
_LIFETIME: Final = 15.0  # seconds for a whole connection
_PAUSE: Final = 0.1  # seconds before a connection that could not be accepted is tried again


def serve_registry(registry: CollectorRegistry, host: str, port: int, token: str = "") -> None:
    """Serve the metrics of `registry` from daemon threads. With a `token` only requests that have
    it are answered. Raises OSError, OverflowError.
    """
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    server_class = type("_Server", (_MetricsServer,), {"address_family": family})
    server = server_class((address[0], port), _Handler)
    metrics = make_wsgi_app(registry)
    server.set_app(_protected(metrics, token) if token else metrics)
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()


def _protected(metrics: WSGIApplication, token: str) -> WSGIApplication:
    """`metrics`, for requests with the bearer `token` alone."""
    wanted = f"Bearer {token}".encode()

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        given = str(environ.get("HTTP_AUTHORIZATION", "")).encode(errors="replace")
        if hmac.compare_digest(given, wanted):
            return metrics(environ, start_response)
        start_response(
            "401 Unauthorized",
            [("WWW-Authenticate", "Bearer"), ("Content-Type", "text/plain; charset=utf-8")],
        )
        return [b"the bearer token is in the file metrics-token of the Box's data_dir\n"]

    return answer


class _Handler(WSGIRequestHandler):
    timeout = TIMEOUT

    def log_message(self, *_: object) -> None:
        """Log nothing: scrapes are frequent."""


class _MetricsServer(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = MAX_CONNECTIONS

    def __init__(self, *arguments: Any) -> None:
        self._places = threading.BoundedSemaphore(MAX_CONNECTIONS)
        super().__init__(*arguments)

    def get_request(self) -> tuple[Any, Any]:
        try:
            return super().get_request()
        except OSError:  # no descriptor is left: the connection waits, and so does this thread
            time.sleep(_PAUSE)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        watch = threading.Timer(_LIFETIME, _end, [request])
        watch.daemon = True
        watch.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            watch.cancel()
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore it: the client has gone, or was too slow."""


def _end(request: socket.socket) -> None:
    try:
        request.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it has ended by itself
