"""What docs/how-to/behind-a-proxy.md says, with a proxy of the few lines that count: `Host` handed on, a folder taken off, streams as they come."""

from __future__ import annotations

import asyncio
import re
import shlex
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from serving import Server, start, stop

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "how-to" / "behind-a-proxy.md").read_text(encoding="utf-8")
CAT = ROOT / "src" / "sightline" / "data" / "demo" / "cat.jpg"
# The two ways to start it that the page names, the second in a folder.
STARTED = re.findall(r"^(?:SIGHTLINE_AUTH=\S+ )?sightline app (.*)$", PAGE, re.M)
FOLDER = "/why"


def proxying(client: httpx.AsyncClient, folder: str, host: Callable[[str], str]) -> Any:
    """An ASGI application that hands every request on, as nginx does by the lines of the page."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        path = scope["raw_path"].decode()
        if not path.startswith(folder + "/"):
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body", "body": b"not here"})
            return
        body, more = bytearray(), True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        given = [(name, value) for name, value in scope["headers"] if name not in (b"host", b"connection")]
        asked = next(value for name, value in scope["headers"] if name == b"host").decode()
        query = scope["query_string"].decode()
        request = client.build_request(
            scope["method"],
            path.removeprefix(folder) + (f"?{query}" if query else ""),
            headers=[*given, (b"host", host(asked).encode()), (b"x-forwarded-proto", b"http")],
            content=bytes(body),
        )
        answer = await client.send(request, stream=True)
        hop = (b"connection", b"keep-alive", b"transfer-encoding")
        headers = [(name, value) for name, value in answer.headers.raw if name.lower() not in hop]
        await send({"type": "http.response.start", "status": answer.status_code, "headers": headers})
        async for part in answer.aiter_raw():
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        await answer.aclose()

    return app


@contextmanager
def proxy(behind: str, folder: str = "", host: Callable[[str], str] = str) -> Iterator[str]:
    """The address of a proxy before `behind`; `host` says which name it hands on."""
    running: list[uvicorn.Server] = []
    begun = threading.Event()

    async def serve(listening: socket.socket) -> None:
        async with httpx.AsyncClient(base_url=behind, timeout=60, trust_env=False) as client:
            app = proxying(client, folder, host)
            config = uvicorn.Config(app, log_level="error", lifespan="off", timeout_graceful_shutdown=2)
            running.append(uvicorn.Server(config))
            begun.set()
            await running[0].serve(sockets=[listening])

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(128)  # who comes before it serves waits
        thread = threading.Thread(target=lambda: asyncio.run(serve(listening)))
        thread.start()
        begun.wait()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}{folder}"
        finally:
            running[0].should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def in_a_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Started as the page says for a folder of a site."""
    found = start(tmp_path_factory.mktemp("server"), *shlex.split(STARTED[1]))
    yield found
    stop(found)


def visit(address: str, name: str) -> httpx.Client:
    return httpx.Client(base_url=address, timeout=60, trust_env=False, headers={"host": name})


def test_the_page_names_a_name_and_a_folder() -> None:
    assert ["--name why.example.org", f"--name www.example.org --root-path {FOLDER}"] == STARTED


def test_a_visitor_of_the_folder_gets_a_map_through_the_proxy(in_a_folder: Server) -> None:
    with proxy(in_a_folder.url, FOLDER) as address, visit(address, "www.example.org") as client:
        page = client.get("/")
        assert page.status_code == 200
        assert f'"root":"http://www.example.org{FOLDER}"' in page.text.replace(" ", "")
        assert client.get("/health").json()["status"] == "ok"
        (path,) = client.post("/gradio_api/upload", files={"files": ("cat.jpg", CAT.read_bytes())}).json()
        given = {"path": path, "meta": {"_type": "gradio.FileData"}}
        begun = client.post(
            "/gradio_api/call/explain",
            json={"data": [given, "tabby", "grad-cam", ""]},
            headers={"origin": "http://www.example.org"},
        )
        with client.stream("GET", f"/gradio_api/call/explain/{begun.json()['event_id']}") as answer:
            assert "event: complete" in list(answer.iter_lines())


@pytest.mark.parametrize(
    ("name", "handed_on", "origin", "status", "says"),
    [
        ("www.example.org", str, None, 200, "ok"),
        ("evil.example", str, None, 400, "Invalid host header"),
        ("www.example.org", lambda _: "proxy-1:80", None, 400, "Invalid host header"),
        ("www.example.org:8443", str, "https://www.example.org:8443", 200, "ok"),
        (
            "www.example.org:8443",
            lambda name: name.partition(":")[0],
            "https://www.example.org:8443",
            403,
            "requests of other pages are refused",
        ),
    ],
    ids=["its name", "another name", "the proxy's own", "a port, $http_host", "a port, $host"],
)
def test_what_the_table_of_troubles_says_is_what_happens(
    in_a_folder: Server, name: str, handed_on: Any, origin: str | None, status: int, says: str
) -> None:
    with proxy(in_a_folder.url, FOLDER, handed_on) as address, visit(address, name) as client:
        answer = client.get("/health", headers={"origin": origin} if origin else {})
        assert (answer.status_code, says in answer.text) == (status, True), answer.text
    if status != 200:
        assert f'{status}, "{says}"' in PAGE


def test_a_picture_over_the_limit_is_413_through_the_proxy(in_a_folder: Server) -> None:
    with proxy(in_a_folder.url, FOLDER) as address, visit(address, "www.example.org") as client:
        answer = client.post("/gradio_api/upload", files={"files": ("big.jpg", b"\xff" * (21 * 2**20 + 1))})
        assert answer.status_code == 413


def test_the_page_knows_that_it_was_asked_for_in_secret(in_a_folder: Server) -> None:
    with visit(in_a_folder.url, "www.example.org") as client:
        page = client.get("/", headers={"x-forwarded-proto": "https"})
        assert f'"root":"https://www.example.org{FOLDER}"' in page.text


def opened(browser: Any, address: str) -> tuple[Any, list[str]]:
    """The page in a browser once it listens, and what it asked for in vain."""
    tab = browser.new_page()
    failed: list[str] = []
    tab.on("response", lambda one: failed.append(one.url) if one.status >= 400 else None)
    tab.goto(f"{address}/")
    tab.wait_for_selector("#picture input[type=file]", state="attached")
    tab.wait_for_selector("#answer .sightline-empty", state="visible")
    tab.wait_for_timeout(500)
    return tab, failed


@pytest.mark.slow
def test_a_person_gets_a_map_in_a_folder_of_a_site(in_a_folder: Server, browser: Any) -> None:
    with proxy(in_a_folder.url, FOLDER) as address:
        tab, failed = opened(browser, address)
        tab.set_input_files("#picture input[type=file]", str(CAT))
        tab.wait_for_selector("#answer [data-drawn]", state="attached", timeout=30_000)
        tab.close()
    assert not failed


@pytest.mark.slow
def test_without_a_root_path_the_page_in_a_folder_has_no_colours(server: Server, browser: Any) -> None:
    with proxy(server.url, FOLDER) as address:
        tab, failed = opened(browser, address)
        tab.close()
    assert any("/theme.css" in one for one in failed)
