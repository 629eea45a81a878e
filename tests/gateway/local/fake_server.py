"""A stand-in for vLLM's process tree: an HTTP server with a child called EngineCore.

    python fake_server.py PORT [--dies | --deaf | --escapes]

--dies: prints a reason and exits with an error. --deaf: ignores SIGTERM. --escapes: its child has a session of its own,
and its id is printed.
"""

import signal
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer


class Answers(BaseHTTPRequestHandler):
    """Healthy, and 200 to whatever is posted."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.do_GET()


def main() -> None:
    port, *options = sys.argv[1:]
    if "--dies" in options:
        sys.exit("no such model: the reason for the failure")
    if "--deaf" in options:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sleeper = [sys.executable, "-c", "import time; time.sleep(600)", "FAKE::EngineCore"]
    child = subprocess.Popen(sleeper, start_new_session="--escapes" in options)
    print("child", child.pid, flush=True)
    HTTPServer(("127.0.0.1", int(port)), Answers).serve_forever()


if __name__ == "__main__":
    main()
