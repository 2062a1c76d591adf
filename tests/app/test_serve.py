"""The whole server on the loopback: what it hands out, and what it refuses."""

from __future__ import annotations

import asyncio
import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from PIL import Image

from serving import Server, start, stop
from sightline.app.page import WAITING
from sightline.app.serve import _examples, _user, run
from sightline.app.visitors import Visitors
from sightline.errors import SightlineError

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "src" / "sightline" / "data" / "demo"
CAT = DEMO / "cat.jpg"


@pytest.fixture
def visitor(server: Any) -> Iterator[httpx.Client]:
    with server.visitor() as client:
        yield client


def upload(client: Any, content: bytes, name: str = "cat.jpg") -> str:
    answer = client.post("/gradio_api/upload", files={"files": (name, content)})
    assert answer.status_code == 200, answer.text
    (path,) = answer.json()
    return str(path)


def asked(client: Any, *values: Any) -> tuple[str, Any]:
    """Calls the public endpoint as gradio_client does; ("complete" or "error", data)."""
    started = client.post("/gradio_api/call/explain", json={"data": list(values)})
    if started.status_code != 200:
        return "refused", started
    with client.stream("GET", f"/gradio_api/call/explain/{started.json()['event_id']}") as stream:
        event = ""
        for line in stream.iter_lines():
            if line.startswith("event:"):
                event = line.partition(":")[2].strip()
            elif line.startswith("data:") and event in ("complete", "error"):
                return event, json.loads(line.partition(":")[2])
    raise AssertionError("no answer")


def file(path: str) -> dict[str, Any]:
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def test_the_page_comes_with_its_own_scripts_and_no_address_of_others(visitor: Any) -> None:
    page = visitor.get("/")
    assert page.status_code == 200
    assert "sightlineViewer" in page.text
    assert page.cookies or visitor.cookies
    for foreign in ("fonts.googleapis", "cdnjs", "cdn.jsdelivr", "unpkg.com"):
        assert f'src="https://{foreign}' not in page.text
        assert f'href="https://{foreign}' not in page.text


def test_health_answers(visitor: Any) -> None:
    assert visitor.get("/health").json() == {"status": "ok", "version": "0.1.0", "models": ["bundled"]}


def test_the_public_endpoint_explains_a_picture(visitor: Any) -> None:
    kind, data = asked(visitor, file(upload(visitor, CAT.read_bytes())), "tabby", "grad-cam", "")
    assert kind == "complete"
    (answer,) = data
    assert answer["target"]["label"] == "tabby"
    assert len(answer["map"]) == answer["grid"][0]
    assert answer["overlay"].startswith("data:image/png;base64,")
    assert next(iter(answer["predictions"])) in ("tabby", "Egyptian cat", "tiger cat")


def test_only_the_one_endpoint_is_public(visitor: Any) -> None:
    info = visitor.get("/gradio_api/info").json()
    assert list(info["named_endpoints"]) == ["/explain"]
    assert info["unnamed_endpoints"] == {}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (("no such thing", "grad-cam", ""), "no such thing"),
        (("tabby", "grad-camm", ""), "grad-cam"),
        (("tabby", "grad-cam", "elsewhere"), "elsewhere"),
    ],
)
def test_the_public_endpoint_says_what_was_wrong(visitor: Any, values: tuple[str, ...], said: str) -> None:
    kind, data = asked(visitor, file(upload(visitor, CAT.read_bytes())), *values)
    assert kind == "error"
    assert said in json.dumps(data)


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"<svg xmlns='http://www.w3.org/2000/svg'/>", CAT.read_bytes()[:3000], b"%!PS-Adobe"]
)
def test_what_is_no_picture_gets_our_sentence(visitor: Any, content: bytes) -> None:
    kind, data = asked(visitor, file(upload(visitor, content or b" ", "x.jpg")), "", "", "")
    assert kind == "error"
    assert "Traceback" not in json.dumps(data)
    assert "picture" in json.dumps(data) or "image" in json.dumps(data)


def test_a_strangers_picture_can_neither_be_read_nor_explained(server: Any, visitor: Any) -> None:
    path = upload(visitor, CAT.read_bytes(), "mine.jpg")
    assert visitor.get(f"/gradio_api/file={path}").status_code == 200
    with server.visitor() as other:
        assert other.cookies != visitor.cookies
        assert other.get(f"/gradio_api/file={path}").status_code == 404
        kind, answer = asked(other, file(path), "", "", "")
        assert (kind, answer.status_code) == ("refused", 404)
        again = upload(other, CAT.read_bytes(), "mine.jpg")
        assert asked(other, file(again), "", "", "")[0] == "complete", "who has the same picture may of course ask"


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd", "../../../../etc/passwd", "..%2f..%2f..%2fetc%2fpasswd", "/proc/self/environ", "C:/windows/win.ini",
        "\\\\host\\share", "file:///etc/passwd", "/etc/passwd%00.jpg", str(CAT), "/gradio_api/file=/etc/passwd",
    ],
)  # fmt: skip
def test_files_of_the_server_are_not_handed_out(visitor: Any, path: str) -> None:
    for route in ("/gradio_api/file=", "/gradio_api/file/", "/file="):
        answer = visitor.get(route + path)
        assert answer.status_code in (400, 403, 404), (route, answer.status_code)
        assert b"root:" not in answer.content


@pytest.mark.parametrize(
    "given",
    [
        {"path": "/etc/passwd"},
        {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}},
        {"url": "http://127.0.0.1:9/canary", "meta": {"_type": "gradio.FileData"}},
        {"path": None, "url": "http://127.0.0.1:9/canary", "meta": {"_type": "gradio.FileData"}},
        {"path": "http://127.0.0.1:9/canary", "meta": {"_type": "gradio.FileData"}},
        {"path": "../../etc/passwd", "url": "http://127.0.0.1:9/canary", "meta": {"_type": "gradio.FileData"}},
    ],
)
def test_a_request_names_neither_files_of_the_server_nor_addresses(visitor: Any, given: dict[str, Any]) -> None:
    for route in (
        "/gradio_api/call/explain",
        "/gradio_api/run/explain",
        "/gradio_api/queue/join",
        "/gradio_api/api/explain",
    ):
        answer = visitor.post(route, json={"data": [given, "", "", ""], "fn_index": 0, "session_hash": "x"})
        assert answer.status_code in (400, 403, 404), (route, answer.status_code, answer.text[:200])


def test_other_hosts_and_origins_are_refused(server: Any, visitor: Any) -> None:
    assert visitor.get("/health", headers={"host": "evil.example"}).status_code == 400
    for origin in ("http://evil.example", "null", "http://127.0.0.1.evil.example", "http://localhost:1"):
        for answer in (
            visitor.get("/health", headers={"origin": origin}),
            visitor.options("/gradio_api/upload", headers={"origin": origin, "access-control-request-method": "POST"}),
            visitor.post("/gradio_api/upload", files={"files": ("a.jpg", b"x")}, headers={"origin": origin}),
        ):
            assert answer.status_code in (400, 403)
            assert "access-control-allow-origin" not in answer.headers
    assert visitor.get("/health", headers={"origin": server.url}).status_code == 200


def test_a_file_over_the_limit_is_413(visitor: Any) -> None:
    answer = visitor.post("/gradio_api/upload", files={"files": ("big.jpg", b"\xff" * (21 * 2**20 + 1))})
    assert answer.status_code == 413
    long = visitor.post(
        "/gradio_api/call/explain",
        content=b'{"data": ["' + b"x" * 600_000 + b'"]}',
        headers={"content-type": "application/json"},
    )
    assert long.status_code == 413


def test_a_thousand_files_at_once_are_refused(visitor: Any) -> None:
    answer = visitor.post("/gradio_api/upload", files=[("files", (f"{number}.jpg", b"x")) for number in range(1001)])
    assert answer.status_code == 400


def test_twenty_visitors_at_once_get_each_their_own_answer(server: Any, visitor: Any) -> None:
    wanted = ["tabby", "goldfish", "espresso", "sports car"]

    def visit(number: int) -> tuple[str, str, str]:
        with server.visitor() as client:
            content = (DEMO / ("cat.jpg" if number % 2 else "coffee.jpg")).read_bytes()
            path = upload(client, content, f"{number}.jpg")
            target = wanted[number % 4]
            kind, data = asked(client, file(path), target, "grad-cam", "")
            return kind, target, data[0]["target"]["label"] + " " + next(iter(data[0]["predictions"]))

    with ThreadPoolExecutor(20) as pool:
        jobs = [pool.submit(visit, number) for number in range(20)]
        waits = []
        while not all(job.done() for job in jobs):
            begun = time.monotonic()
            assert visitor.get("/health").status_code == 200
            waits.append(time.monotonic() - begun)
            time.sleep(0.05)
        found = [job.result() for job in jobs]
    assert waits
    assert max(waits) < 3, "the health page waits for the model"
    for number, (kind, target, got) in enumerate(found):
        assert kind == "complete"
        assert got.startswith(target)
        assert got.endswith("espresso") == (number % 2 == 0)


@pytest.mark.parametrize("auth", ["", "user", ":word", "user:"])
def test_a_user_without_a_password_is_refused(auth: str) -> None:
    with pytest.raises(SightlineError, match="USER:PASS"):
        _user(auth)


def test_others_are_let_in_only_with_a_password() -> None:
    with pytest.raises(SightlineError, match="--auth"):
        run([], host="0.0.0.0", said=str)


def test_examples_are_a_folder_of_pictures(tmp_path: Path) -> None:
    with pytest.raises(SightlineError, match="no folder"):
        _examples(tmp_path / "nowhere")
    with pytest.raises(SightlineError, match="no picture"):
        _examples(tmp_path)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    assert _examples(tmp_path) == [tmp_path / "a.png"]


def test_the_lines_of_the_documentation_ask_the_server(server: Any, tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "app.md").read_text(encoding="utf-8"), re.S)
    (tmp_path / "cat.jpg").write_bytes(CAT.read_bytes())
    script = code.replace("http://127.0.0.1:7860", server.url)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "'x':" in done.stdout


def test_the_endpoint_is_a_tool_for_language_models(server: Any) -> None:
    pytest.importorskip("mcp", reason="the package mcp is not installed")
    code = """
import asyncio, sys
from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client

async def main():
    async with streamablehttp_client(sys.argv[1] + "/gradio_api/mcp/") as (read, write, _):
        async with ClientSession(read, write) as session:
            await session.initialize()
            for tool in (await session.list_tools()).tools:
                print(tool.name, sorted(tool.inputSchema["properties"]), tool.description.splitlines()[0])

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, server.url], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    (tool,) = done.stdout.strip().splitlines()
    assert "explain ['class_name', 'method', 'model', 'picture'] Explain a picture" in tool


@pytest.mark.parametrize(
    "kind",
    ["Application/JSON", "APPLICATION/json; charset=utf-8", "application/x+json", "application/vnd.api+json", "text/plain", "application/octet-stream", ""],
)  # fmt: skip
def test_files_are_guarded_whatever_a_request_calls_itself(visitor: Any, kind: str, tmp_path: Path) -> None:
    private = tmp_path / "private.png"
    Image.new("RGB", (8, 8)).save(private)
    body = json.dumps({"data": [file(str(private)), "", "grad-cam", ""]}).encode()
    answer = visitor.post("/gradio_api/call/explain", content=body, headers={"content-type": kind})
    assert answer.status_code == 404
    twice = [("content-type", "application/json"), ("content-type", "text/plain")]
    assert visitor.post("/gradio_api/call/explain", content=body, headers=twice).status_code == 404


@pytest.mark.parametrize("kind", ["text/plain", "application/octet-stream", "application/x+json"])
@pytest.mark.parametrize("route", ["/gradio_api/queue/join", "/gradio_api/reset"])
def test_a_request_without_a_length_has_a_limit_too(visitor: Any, route: str, kind: str) -> None:
    def endless() -> Iterator[bytes]:
        yield b'{"data":["'
        for _ in range(40):
            yield b"a" * 2**18
        yield b'"]}'

    try:
        answer = visitor.post(route, content=endless(), headers={"content-type": kind})
    except httpx.TransportError:
        return  # the server hung up in the middle, which is right, too
    assert answer.status_code == 413
    assert len(answer.content) < 1000


def test_an_upload_without_a_length_has_a_limit_too(server: Any, visitor: Any) -> None:
    def parts() -> Iterator[bytes]:
        for number in range(6):
            head = f'--b\r\nContent-Disposition: form-data; name="files"; filename="{number}.jpg"\r\n\r\n'
            yield head.encode()
            for _ in range(8):
                yield b"x" * 2**20
            yield b"\r\n"
        yield b"--b--\r\n"

    try:
        answer = visitor.post(
            "/gradio_api/upload", content=parts(), headers={"content-type": "multipart/form-data; boundary=b"}
        )
        assert answer.status_code == 413
    except httpx.TransportError:
        pass
    left = sum(one.stat().st_size for one in server.temporary.rglob("*.jpg") if one.stat().st_size > 4e6)
    assert left < 30e6


def test_whoever_is_cut_off_in_the_middle_of_an_upload_hears_that_it_was_too_large(tmp_path: Path) -> None:
    async def app(_scope: Any, receive: Any, send: Any) -> None:
        """As Starlette does, which answers before it lets an error pass."""
        while (await receive())["type"] == "http.request":
            pass
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": b""})
        raise ConnectionError

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"x" * 2**20, "more_body": True}

    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/gradio_api/upload", "headers": []}
    asyncio.run(Visitors(app, folder=tmp_path, limit=2**20)(scope, receive, send))
    assert [one["status"] for one in sent if "status" in one] == [413]


def test_two_people_may_have_the_same_picture(server: Any, visitor: Any) -> None:
    path = upload(visitor, CAT.read_bytes(), "class.jpg")
    with server.visitor() as other:
        assert upload(other, CAT.read_bytes(), "class.jpg") == path
        assert other.get(f"/gradio_api/file={path}").status_code == 200
    assert visitor.get(f"/gradio_api/file={path}").status_code == 200


def test_a_strange_cookie_does_not_hide_ours(server: Any) -> None:
    cookie = {"cookie": 'j={"a":1,"b":2}; sightline_visit=deadbeefdeadbeef'}
    with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as client:
        (path,) = client.post("/gradio_api/upload", files={"files": ("x.jpg", CAT.read_bytes())}, headers=cookie).json()
        assert client.get(f"/gradio_api/file={path}").status_code == 404
        assert client.get(f"/gradio_api/file={path}", headers=cookie).status_code == 200


def test_answers_name_no_folder_of_the_server_and_are_not_endless(visitor: Any) -> None:
    kind, data = asked(visitor, file(upload(visitor, CAT.read_bytes()[:3000], "cut.jpg")), "", "", "")
    assert kind == "error"
    assert "cut.jpg" in json.dumps(data)
    assert "sightline-app" not in json.dumps(data)
    for name in ("9" * 5000, "x" * 5000):
        kind, data = asked(visitor, file(upload(visitor, CAT.read_bytes())), name, "", "")
        assert kind == "error"
        assert "has no class" in json.dumps(data)
        assert len(json.dumps(data)) < 2000
    assert visitor.get("/health").headers["x-content-type-options"] == "nosniff"
    assert visitor.get("/gradio_api/dev/reload").status_code == 404


def test_a_very_large_picture_is_seen_whole_and_shown_smaller(visitor: Any, server: Any) -> None:
    content = io.BytesIO()
    with Image.open(CAT) as cat:
        cat.convert("RGB").resize((7000, 5000)).save(content, "JPEG")
    process = psutil.Process(server.process.pid)
    before = process.memory_info().rss
    kind, data = asked(visitor, file(upload(visitor, content.getvalue(), "large.jpg")), "tabby", "", "")
    assert kind == "complete"
    assert any("7000 x 5000 is shown and saved at 2400 x 1714" in warning for warning in data[0]["warnings"])
    assert process.memory_info().rss - before < 1.2e9


# What a server of its own is needed for. The first three share one, which the third ends.


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One that asks for a password and deletes uploads after two seconds."""
    code = (
        "import sys; import sightline.app.page as page; page.SWEPT_S = (1, 2); from sightline.cli import main\n"
        "sys.argv = ['sightline', 'app', '--port', '0', '--auth', 'ann:secret']; main()"
    )
    found = start(tmp_path_factory.mktemp("closed") / "server", code=code)
    yield found
    if found.process.poll() is None:
        stop(found)


@pytest.fixture
def let_in(closed: Server) -> Iterator[httpx.Client]:
    with closed.visitor() as client:
        assert client.post("/login", data={"username": "ann", "password": "secret"}).status_code == 200
        yield client


def test_a_password_is_asked_for(closed: Server) -> None:
    with closed.visitor() as client:
        assert client.post("/gradio_api/call/explain", json={"data": [None, "", "", ""]}).status_code == 401
        assert client.post("/gradio_api/upload", files={"files": ("a.jpg", b"x")}).status_code == 401
        assert client.post("/login", data={"username": "ann", "password": "wrong"}).status_code == 400
        assert client.post("/login", data={"username": "ann", "password": "secret"}).status_code == 200
        assert client.post("/gradio_api/upload", files={"files": ("a.jpg", b"x")}).status_code == 200
        assert client.get("/health").status_code == 200


def test_uploads_are_deleted_by_age(let_in: httpx.Client) -> None:
    path = Path(upload(let_in, CAT.read_bytes() + b"old", "old.jpg"))
    assert path.exists()
    until = time.monotonic() + 20
    while path.exists() and time.monotonic() < until:
        time.sleep(0.2)
    assert not path.exists()
    kind, _ = asked(let_in, file(str(path)), "", "", "")
    assert kind in ("error", "refused")


def test_whoever_comes_when_the_queue_is_full_is_told_and_ctrl_c_deletes_what_was_uploaded(
    closed: Server, let_in: httpx.Client
) -> None:
    path = upload(let_in, CAT.read_bytes())

    def begin(number: int) -> Any:
        return let_in.post("/gradio_api/call/explain", json={"data": [file(path), str(number), "score-cam", ""]})

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(begin, range(WAITING + 12)))
    full = [answer for answer in answers if answer.status_code != 200]
    assert len(answers) > len(full) >= 8
    assert all("full" in answer.text.lower() for answer in full)
    assert let_in.get("/health").status_code == 200
    late = Path(upload(let_in, CAT.read_bytes() + b"late", "late.jpg"))
    assert late.exists()
    assert stop(closed) in (0, 130)
    assert not list(closed.temporary.glob("sightline-app-*")), "what was uploaded is deleted at the end"


# The last of all, as it ends the server of those at the top.
def test_a_server_that_is_told_to_end_in_the_middle_of_a_long_question_deletes_what_was_uploaded(
    server: Server, visitor: httpx.Client
) -> None:
    path = upload(visitor, CAT.read_bytes())
    visitor.post("/gradio_api/call/explain", json={"data": [file(path), "", "is-cam", ""]})
    time.sleep(0.5)
    assert list(server.temporary.glob("sightline-app-*/*/*")), "the upload is there"
    server.process.terminate()
    server.process.wait(timeout=20)
    assert server.process.stdout is not None
    server.process.stdout.close()
    assert not list(server.temporary.glob("sightline-app-*"))
