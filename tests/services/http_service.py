"""An HTTP server for tests. Arguments: PORT [WORD …]

ignore-term   ignore SIGTERM
crash         exit with code 7 at once, with a message on stderr
never-listen  live, but do not listen
daemonize     leave a child behind that is in a session of its own
hog=MIB       allocate so much memory, then serve

``/`` gives the instance's id and pid; ``/slow?S`` answers after S seconds, ``/until?FILE`` once
FILE exists; ``/env`` gives the environment; ``/affinity`` the processors; ``/break`` makes every
later ``/`` answer 500, ``/mend`` ends that; ``/exit?N`` exits with code N.

The suite starts some hundred of these. That is why it uses the modules that are built in, and
imports others only where a word needs them: it takes 10 ms of processor to start, `http.server` 40.
"""

import _socket
import _thread
import os
import sys
import time

broken = False


def main(port: int, words: list[str]) -> None:
    for word in words:
        if word == "ignore-term":
            import signal

            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        elif word == "crash":
            print("line one\nno database to be found", file=sys.stderr)
            sys.exit(7)
        elif word == "never-listen":
            time.sleep(3600)
        elif word == "daemonize":
            import subprocess

            subprocess.Popen(["sleep", "3600"], start_new_session=True)
        elif word.startswith("hog="):
            held = bytearray(int(word[4:]) << 20)
            held[-1] = 1
    listener = _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM)
    listener.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(128)
    print("serving on", port, flush=True)
    while True:
        descriptor, _ = listener._accept()  # type: ignore[attr-defined]
        connection = _socket.socket(fileno=descriptor)
        _thread.start_new_thread(serve, (connection,))


def serve(connection: _socket.socket) -> None:
    """Answer one request, and close the connection."""
    try:
        data = b""
        while b"\r\n\r\n" not in data:
            more = connection.recv(65536)
            if not more:
                return
            data += more
        status, body = answer(data.split(b" ", 2)[1].decode())
        head = f"HTTP/1.0 {status}\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
    except OSError:
        pass  # the client is gone
    finally:
        connection.close()


def answer(target: str) -> tuple[str, str]:
    """The status line and the body for a path with its query."""
    global broken  # noqa: PLW0603
    path, _, argument = target.partition("?")
    if path == "/slow":
        time.sleep(float(argument))
    elif path == "/until":
        while not os.path.exists(argument):  # noqa: PTH110 (pathlib takes long to import)
            time.sleep(0.01)
    elif path == "/env":
        import json

        return "200 OK", json.dumps(dict(os.environ))
    elif path == "/affinity":
        return "200 OK", f'{{"cpus": {sorted(os.sched_getaffinity(0))}}}'
    elif path in ("/break", "/mend"):
        broken = path == "/break"
    elif path == "/exit":
        print("told to exit", file=sys.stderr, flush=True)
        os._exit(int(argument))
    elif broken:
        return "500 Internal Server Error", "{}"
    instance = os.environ["BOX_INSTANCE_ID"]
    return "200 OK", f'{{"instance": "{instance}", "pid": {os.getpid()}}}'


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
