"""The loopback alone, and a server on it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from serving import Server, start, stop


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests of the app reach the loopback, and nothing else."""
    original = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> Any:
        if self.family != socket.AF_UNIX and str(address[0]) not in ("127.0.0.1", "::1", "localhost"):
            pytest.fail(f"a test connects to {address!r}; only the loopback is allowed")
        return original(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    found = start(tmp_path_factory.mktemp("server"))
    yield found
    if found.process.poll() is None:
        stop(found)
