"""A real server in a process of its own, on the loopback; it notes every connection that it tries to make elsewhere."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

WATCH = """
import os, socket
_connect = socket.socket.connect
def connect(self, address):
    if self.family != socket.AF_UNIX and str(address[0]) not in ("127.0.0.1", "::1", "localhost"):
        with open(os.environ["SIGHTLINE_TEST_CONNECTIONS"], "a") as log:
            log.write(f"{address}\\n")
    return _connect(self, address)
socket.socket.connect = connect
"""


@dataclass(frozen=True)
class Server:
    """Its address, its process, and where it notes connections to others."""

    url: str
    process: subprocess.Popen[str]
    connections: Path
    temporary: Path

    @contextmanager
    def visitor(self) -> Iterator[httpx.Client]:
        """Somebody who has opened the page, with the cookie that comes with it."""
        with httpx.Client(base_url=self.url, timeout=60, follow_redirects=False, trust_env=False) as client:
            client.get("/")
            yield client


def start(place: Path, *arguments: str, code: str = "") -> Server:
    """Starts `sightline app` and waits for its address."""
    (place / "watch").mkdir(parents=True)
    (place / "tmp").mkdir()
    (place / "watch" / "sitecustomize.py").write_text(WATCH)
    connections = place / "connections.txt"
    path = os.pathsep.join([str(place / "watch"), *(one for one in sys.path if one)])
    environment = {
        **os.environ,
        "PYTHONPATH": path,
        "SIGHTLINE_TEST_CONNECTIONS": str(connections),
        "TMPDIR": str(place / "tmp"),
    }
    environment.pop("PYTHONUNBUFFERED", None)  # without it, too, the address must come at once
    with (place / "stderr.txt").open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, *(["-c", code] if code else ["-m", "sightline", "app", "--port", "0", *arguments])],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
            cwd=place,
            start_new_session=True,
        )
    assert process.stdout is not None
    line = process.stdout.readline()
    address = re.search(r"http://\S+", line)
    assert address, line + (place / "stderr.txt").read_text()
    return Server(address.group(0), process, connections, place / "tmp")


def stop(server: Server) -> int:
    """Ctrl-C, as a person would."""
    server.process.send_signal(signal.SIGINT)
    code = server.process.wait(timeout=30)
    assert server.process.stdout is not None
    server.process.stdout.close()
    return code
