"""An HTTP server for tests. Arguments: PORT [WORD …]

ignore-term   take no notice of SIGTERM
crash         exit with code 7 at once, saying why
never-listen  live, but do not listen
daemonize     leave a child behind that is in a session of its own
hog=MIB       allocate so much memory, then serve

``/`` says who answers; ``/slow?S`` answers after S seconds; ``/env`` gives the environment;
``/affinity`` the processors; ``/break`` makes every later ``/`` answer 500, ``/mend`` ends that;
``/exit?N`` exits with code N.
"""

import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

broken = False


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        global broken  # noqa: PLW0603
        path, _, argument = self.path.partition("?")
        status, body = 200, {"instance": os.environ["BOX_INSTANCE_ID"], "pid": os.getpid()}
        if path == "/slow":
            time.sleep(float(argument))
        elif path == "/env":
            body = dict(os.environ)
        elif path == "/affinity":
            body = {"cpus": sorted(os.sched_getaffinity(0))}
        elif path in ("/break", "/mend"):
            broken = path == "/break"
        elif path == "/exit":
            print("told to exit", file=sys.stderr, flush=True)
            os._exit(int(argument))
        elif broken:
            status = 500
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


def main(port: int, words: list[str]) -> None:
    for word in words:
        if word == "ignore-term":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        elif word == "crash":
            print("line one\nno database to be found", file=sys.stderr)
            sys.exit(7)
        elif word == "never-listen":
            time.sleep(3600)
        elif word == "daemonize":
            subprocess.Popen(["sleep", "3600"], start_new_session=True)
        elif word.startswith("hog="):
            held = bytearray(int(word[4:]) << 20)
            held[-1] = 1
    print("serving on", port, flush=True)
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
