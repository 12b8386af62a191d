"""The service of the demo: a small HTTP server that answers with its identity. Run as a script.

``/`` answers at once, ``/slow?2.5`` after 2.5 seconds.
"""

import json
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    """Answers every GET with the instance, its service and its pid."""

    def do_GET(self) -> None:
        path, _, seconds = self.path.partition("?")
        if path == "/slow":
            time.sleep(float(seconds))
        about = {
            "instance": os.environ["BOX_INSTANCE_ID"],
            "service": os.environ["BOX_SERVICE"],
            "pid": os.getpid(),
            "path": path,
        }
        body = json.dumps(about).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Log nothing: the probes of the Box would fill the log."""


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
