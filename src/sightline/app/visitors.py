"""Who may read what: an uploaded picture belongs to the visitor who sent it."""

from __future__ import annotations

import json
import secrets
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COOKIE = "sightline_visit"
MOST = 20_000  # files whose owner is remembered
QUESTION_KB = 512  # the longest JSON that a page or client may send

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Refused(Exception):
    """A request that is not passed on, with its status and reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Visitors:
    """ASGI middleware. What was there before the first visitor came (examples) is for all; what is uploaded, for its sender.

    Clients that keep no cookies share no secret with us; what they upload can be read by those who know its name, which holds a
    hash of the content.
    """

    def __init__(self, app: Any, *, folder: Path, limit: int) -> None:
        self.app = app
        self.folder = folder.resolve()
        self.limit = limit
        self.public = frozenset(self.folder.rglob("*"))
        self.owners: OrderedDict[Path, set[str]] = OrderedDict()
        self.lock = threading.Lock()

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        visit = _visit(headers.get("cookie", ""))
        path = unquote(scope["path"])
        uploading = scope["method"] == "POST" and path.endswith("/upload")
        try:
            origin = headers.get("origin", "")
            if origin and urlsplit(origin).netloc != headers.get("host"):
                raise Refused(403, "requests of other pages are refused")
            if "/dev/" in path:
                raise Refused(404, "no such page")
            if "/file=" in path or "/file/" in path:
                self._check_readable(path.partition("/file")[2][1:], visit)
            if uploading:
                if int(headers.get("content-length") or 0) > self.limit + 2**20:
                    raise Refused(413, self._too_large())
            elif scope["method"] not in ("GET", "HEAD", "OPTIONS"):
                # Whatever its type says: what reads it behind us may take it for JSON.
                body = await _whole(receive, QUESTION_KB * 1024)
                if body and not path.endswith("/login"):
                    body = self._without_strangers_files(body, visit)
                receive = _again(body)
                scope = {**scope, "headers": [one for one in scope["headers"] if one[0].lower() != b"content-length"]}
        except Refused as error:
            await _refuse(send, error)
            return
        if uploading:
            await self._counted(scope, receive, self._watched(send, visit, uploading))
        else:
            await self.app(scope, receive, self._watched(send, visit, uploading))

    async def _counted(self, scope: Any, receive: Receive, send: Send) -> None:
        """Hands an upload on until it is too large, whether or not it said before how large it is."""
        got, answered = 0, False

        async def counting() -> Message:
            nonlocal got
            message = await receive()
            got += len(message.get("body", b""))
            return {"type": "http.disconnect"} if got > self.limit + 2**20 else message

        async def sending(message: Message) -> None:
            nonlocal answered
            if answered or got <= self.limit + 2**20:  # else it is the 500 of whoever was cut off in the middle
                answered = True
                await send(message)

        try:
            await self.app(scope, counting, sending)
        except Exception:
            if got <= self.limit + 2**20 or answered:
                raise
        if not answered:
            await _refuse(send, Refused(413, self._too_large()))

    def _too_large(self) -> str:
        return f"the picture is larger than {self.limit >> 20} MB"

    def _watched(self, send: Send, visit: str, uploading: bool) -> Send:
        """Sends on, hands out the cookie, and notes whose an uploaded file is."""
        fresh = visit or secrets.token_hex(16)
        answer = bytearray()

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (b"x-content-type-options", b"nosniff")]}
            if message["type"] == "http.response.start" and not visit:
                page = any(
                    name.lower() == b"content-type" and value.startswith(b"text/html")
                    for name, value in message["headers"]
                )
                if page:
                    cookie = f"{COOKIE}={fresh}; Path=/; HttpOnly; SameSite=Strict".encode()
                    message = {**message, "headers": [*message["headers"], (b"set-cookie", cookie)]}
            if message["type"] == "http.response.body" and uploading:
                answer.extend(message.get("body", b""))
                if not message.get("more_body"):
                    self._note(bytes(answer), visit)
            await send(message)

        return watched

    def _note(self, answer: bytes, visit: str) -> None:
        try:
            names = json.loads(answer)
        except ValueError:
            return
        with self.lock:
            for name in names if isinstance(names, list) else []:
                self.owners.setdefault(Path(name).resolve(), set()).add(
                    visit
                )  # the same picture may be several people's
                self.owners.move_to_end(Path(name).resolve())
            while len(self.owners) > MOST:
                self.owners.popitem(last=False)

    def _check_readable(self, name: str, visit: str) -> None:
        try:
            place = Path(name).resolve()
        except (OSError, ValueError) as error:
            raise Refused(404, "no such file") from error
        with self.lock:
            owners = self.owners.get(place, set())
        if place not in self.public and visit not in owners:
            raise Refused(404, "no such file")

    def _without_strangers_files(self, body: bytes, visit: str) -> bytes:
        """The JSON with addresses taken out of files; a file that isn't the visitor's is refused."""
        try:
            content = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise Refused(400, "the request is no JSON") from error
        for one in _objects(content):
            if not ("path" in one or "url" in one):
                continue
            if one.get("path") is None and one.get("url") is not None:
                raise Refused(403, "pictures are uploaded, not fetched from addresses")
            one.pop("url", None)
            if one.get("path") is not None:
                self._check_readable(str(one["path"]), visit)
        return json.dumps(content).encode()


def _objects(content: Any) -> Iterator[dict[str, Any]]:
    """Every JSON object, at any depth."""
    waiting = [content]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield one
            waiting.extend(one.values())
        elif isinstance(one, list):
            waiting.extend(one)


def _visit(cookies: str) -> str:
    """By hand, because one cookie of another server on this computer that can't be read must not hide ours."""
    for one in cookies.split(";"):
        name, _, value = one.strip().partition("=")
        if name == COOKIE and value.isalnum():
            return value
    return ""


async def _whole(receive: Receive, limit: int) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        body.extend(message.get("body", b""))
        if len(body) > limit:
            raise Refused(413, f"the request is longer than {limit >> 10} kB")
        if not message.get("more_body"):
            return bytes(body)


def _again(body: bytes) -> Receive:
    """Receives a body that was read already, then waits: a client that goes away is found out when sending."""
    given = False

    async def receive() -> Message:
        nonlocal given
        if given:
            import asyncio

            await asyncio.Event().wait()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


async def _refuse(send: Send, error: Refused) -> None:
    body = json.dumps({"detail": str(error)}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
