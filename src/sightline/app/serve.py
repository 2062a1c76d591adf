"""The server: the page in an application of our own, closed where Gradio's defaults are open."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from sightline.app.answers import Offer
from sightline.errors import ModelError, SightlineError
from sightline.models.adapter import Adapter

LIMIT_MB = 20
LOOPBACK = ("127.0.0.1", "localhost")


def application(
    offer: Offer,
    *,
    hosts: Sequence[str] = LOOPBACK,
    auth: tuple[str, str] | None = None,
    examples: Sequence[Path] = (),
    root_path: str | None = None,
) -> Any:
    """The page with its security settings, as an ASGI application.

    Args:
        offer: the models.
        hosts: names under which it may be called; other Host headers and foreign origins are refused.
        auth: user and password.
        examples: pictures to choose from.
        root_path: where it stands behind a reverse proxy.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    import gradio as gr
    from fastapi import FastAPI
    from fastapi.middleware.cors import CORSMiddleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from sightline import __version__
    from sightline.app.page import build, head
    from sightline.app.visitors import Visitors

    app = FastAPI(title="sightline", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Answers also while the model is at work."""
        return {"status": "ok", "version": __version__, "models": list(offer.models)}

    page = build(offer, examples)
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        auth=auth,
        show_error=False,
        max_file_size=LIMIT_MB * 2**20,
        allowed_paths=[],
        enable_monitoring=False,
        run_history=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=_has_mcp(),
        footer_links=["api"],
        head=head(),
        root_path=root_path,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
    )
    app.add_middleware(Visitors, folder=Path(page.GRADIO_CACHE), limit=LIMIT_MB * 2**20)
    app.add_middleware(CORSMiddleware, allow_origins=[], allow_methods=["GET", "POST"])
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*hosts], www_redirect=False)
    return app


def run(
    models: Sequence[str],
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    auth: str | None = None,
    examples: Path | None = None,
    names: Sequence[str] = (),
    root_path: str | None = None,
    random_weights: bool = False,
    open_to_all: bool = False,
    prompts: Sequence[str] = (),
    question: str | None = None,
    said: Callable[[str], None],
) -> None:
    """Loads the models, prints the address, and serves until Ctrl-C or SIGTERM; all that was uploaded is deleted then.

    Args:
        models: names for `load_model`; the bundled one for none.
        host: an address of this machine; other than the loopback only with `auth`.
        port: 0 for any free one.
        auth: USER:PASS.
        examples: a folder of pictures.
        names: further names under which it is called, as behind a reverse proxy.
        root_path: where it stands behind a reverse proxy, such as /sightline.
        random_weights: of the models other than the bundled one, to try things out; every map says so.
        open_to_all: lets anybody in without a password, as a public demonstration wants it.
        prompts: texts for those of the models that read some; visitors can give others.
        question: for those that answer in words.
        said: called with the address.
    """
    import signal
    import socket

    user = _user(auth)
    if host not in LOOPBACK and user is None and not open_to_all:
        raise SightlineError(f"{host} can be reached by others; give --auth USER:PASS, or leave --host out")
    pictures = _examples(examples)
    os.umask(0o077)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was uploaded is deleted then, too
    folder = Path(tempfile.mkdtemp(prefix="sightline-app-"))
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listening:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listening.bind((host, port))
            except OSError as error:
                raise SightlineError(
                    f"{host}:{port} can't be listened on: {error.strerror or error}; choose another --port"
                ) from error
            hosts = (*LOOPBACK, *names) if host in LOOPBACK else (*names,) or ("*",)
            listening.listen(128)  # from now on nobody is turned away, though the first ones wait
            offer = load(models, random_weights, prompts, question)
            try:
                _serve(
                    listening,
                    application(offer, hosts=hosts, auth=user, examples=pictures, root_path=root_path),
                    host,
                    said,
                )
            finally:
                offer.closing.set()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def load(
    models: Sequence[str], random_weights: bool = False, prompts: Sequence[str] = (), question: str | None = None
) -> Offer:
    """The models by name, each loaded once; those that read texts with prompts or the question."""
    from sightline.models.load import load_model

    def one(name: str) -> tuple[Adapter, dict[str, Any]]:
        drawn: dict[str, Any] = {"random_weights": True} if random_weights and name != "bundled" else {}
        texts: list[dict[str, Any]] = [{"prompts": list(prompts)}] if prompts else []
        texts += [{"question": question}] if question is not None else []
        for said in texts:
            with suppress(ModelError):  # it takes the other kind of text, or none, as is found next
                return load_model(name, **drawn, **said), {**drawn, **said}
        try:
            return load_model(name, **drawn), drawn
        except ModelError:
            if not texts:
                raise
        return load_model(name, **drawn, **texts[0]), {}  # what was wrong with the texts is said

    found = {name: one(name) for name in models or ("bundled",)}
    if films := [name for name, (model, _) in found.items() if model.frames is not None]:
        raise ModelError(f"{films[0]} takes films, and the app shows photographs: sightline explain --film")
    return Offer(
        {name: model for name, (model, _) in found.items()}, {name: given for name, (_, given) in found.items()}
    )


def _serve(listening: Any, app: Any, host: str, said: Callable[[str], None]) -> None:
    import uvicorn

    port = listening.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3))
    shown = f"[{host}]" if ":" in host else host
    said(f"http://{shown}:{port}")
    server.run(sockets=[listening])


def _user(auth: str | None) -> tuple[str, str] | None:
    if auth is None:
        return None
    user, colon, word = auth.partition(":")
    if not (user and colon and word):
        raise SightlineError("--auth is USER:PASS, with something on both sides of the colon")
    return user, word


def _examples(folder: Path | None) -> list[Path]:
    from sightline.data.images import SUFFIXES

    if folder is None:
        return sorted((Path(__file__).parents[1] / "data" / "demo").glob("*.jpg"))
    if not folder.is_dir():
        raise SightlineError(f"{folder} is no folder; --examples takes a folder of pictures")
    found = sorted(one for one in folder.iterdir() if one.is_file() and one.suffix.lower() in SUFFIXES)[:24]
    if not found:
        raise SightlineError(
            f"there is no picture in {folder}; expected files that end in {', '.join(sorted(SUFFIXES))}"
        )
    return found


def _has_mcp() -> bool:
    from importlib.util import find_spec

    return find_spec("mcp") is not None
