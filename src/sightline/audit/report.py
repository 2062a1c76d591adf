"""A run as pages that open from the disk: every picture with its heat, what can be filtered and sorted, and the audit's findings.

Up to `MOST` pictures are one file. More are a folder: the list of all of them and the audit in index.html, the pictures themselves on pages beside it.
"""

from __future__ import annotations

import base64
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from sightline.audit.report_findings import findings, read_audit, sought
from sightline.audit.report_rows import STATES, Survey, entry, picture, plan_facts, sentence, survey, text
from sightline.batch.results import Row, Run, open_run, read_json
from sightline.bundle import whole_folder, write_manifest, writing
from sightline.errors import OutputError
from sightline.metrics.statistics import wilson
from sightline.render.viewer import colours, in_script, script, style_sheet
from sightline.train.film import EVEN_BORDER

if TYPE_CHECKING:
    from jinja2 import Template

SCHEMA = "sightline.report/1"
MOST = 2000  # pictures in one file
A_PAGE = 500  # pictures on a page of a folder
INDEX = "index.html"
_MOST_LISTED = 250_000  # lines that a browser still filters while one types
_BEGINS = f"<!DOCTYPE html>\n<!-- {SCHEMA} -->\n".encode()
_MOST_ERRORS = 100  # that are listed at once
_HERE = Path(__file__).parent
Watch = Callable[[int, int], None]


def write_report(
    run: str | os.PathLike[str] | Run,
    output: str | os.PathLike[str],
    *,
    audit: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    force: bool = False,
    watch: Watch = lambda done, of: None,
) -> Path:
    """A run of `sightline batch` as a page for people: pictures with their heat, filters, sorting, search, and the audit's findings.

    It needs no server and no network, runs nothing that stands in the run, and is there whole or not at all. Up to 2,000 pictures are one HTML
    file; more are a folder, NAME-pages instead of NAME.html, with index.html and
    pages.

    Args:
        run: the folder of a run, complete or not, or a run that is open.
        output: the HTML file.
        audit: the folder of an audit of this run, or what it says.
        force: replace an earlier report.
        watch: told, now and then, how many pictures of how many are written.

    Returns:
        The file to open.

    Raises:
        OutputError: it is no run, a shard or the audit is damaged, something else stands at the output, or it can't be written.
        MissingExtraError: pyarrow isn't installed (the extra `batch`).
    """
    opened = run if isinstance(run, Run) else open_run(run)
    found = None if audit is None else read_audit(audit if isinstance(audit, Mapping) else Path(audit))
    count, output = len(opened), Path(output)
    if count > _MOST_LISTED:
        raise OutputError(
            f"{opened.folder} has {count:,} pictures; a report lists at most {_MOST_LISTED:,}. Make a run of fewer with --limit, or "
            "read it with DuckDB or polars"
        )
    whole = count <= MOST
    if not whole and output.suffix.lower() in (".html", ".htm"):
        output = output.with_name(f"{output.stem}-pages")
    _check(opened, output, whole, force)
    try:
        with tempfile.TemporaryFile("w+", encoding="utf-8") as lines:
            seen = survey(opened, sought(found) if found else (), lines)
            about = _about(opened, seen, found, (lambda number: "") if whole else _page_name)
            if whole:
                with writing(output) as file:
                    _write(file, _pages(opened, seen, about, lines, watch))
                return output
            with whole_folder(output, force) as place:
                _write_pages(place, opened, seen, about, lines, watch)
            return output / INDEX
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(
            f"{output} can't be written: {error.strerror or error}. Choose another place with -o"
        ) from error


def _check(run: Run, output: Path, whole: bool, force: bool) -> None:
    """Refuses a place inside the run, and one where something stands, but for an earlier report with `force`."""
    if "\0" in str(output):
        raise OutputError("the name of a file can't hold a zero byte; choose another place with -o")
    if output.resolve().is_relative_to(run.folder.resolve()):
        raise OutputError(
            f"{output} lies in the run {run.folder}, where nothing else is written; choose another place with -o"
        )
    if not (output.exists() or output.is_symlink()):
        return
    what = "a page" if whole else f"a folder, as {len(run):,} pictures need it"
    if not force:
        raise OutputError(f"{output} exists; --force replaces it (in Python force=True), -o chooses another place")
    if not (_is_page(output) if whole else _is_folder(output)):
        raise OutputError(
            f"{output} is no report of sightline ({what}) and is not replaced, not even with --force; choose another place with -o"
        )


def _is_page(file: Path) -> bool:
    if file.is_symlink() or not file.is_file():
        return False
    try:
        with open(file, "rb") as opened:
            return opened.read(len(_BEGINS)) == _BEGINS
    except OSError:
        return False


def _is_folder(folder: Path) -> bool:
    try:
        return not folder.is_symlink() and read_json(folder / "manifest.json")["schema"] == SCHEMA
    except (OutputError, OSError, LookupError, TypeError):
        return False


# ------------------------------------------------------------------------------------------------------------------- pages


def _pages(run: Run, seen: Survey, about: Mapping[str, Any], lines: IO[str], watch: Watch) -> Iterator[str]:
    """The one page of everything, piece by piece."""
    blocks = (_block(number, row, seen) for number, row in _counted(run, seen, watch))
    return _page(kind="whole", first=0, entries=_lines(lines), blocks=blocks, **about)


def _write_pages(place: Path, run: Run, seen: Survey, about: Mapping[str, Any], lines: IO[str], watch: Watch) -> None:
    shown = {**about, "audit": None, "failed": [], "pages": -(-seen.pictures // A_PAGE)}
    rows = _counted(run, seen, watch)
    for page in range(shown["pages"]):
        part = list(islice(rows, A_PAGE))
        entries = (in_script(entry(seen, row)) for _, row in part)
        blocks = (_block(number, row, seen) for number, row in part)
        with open(place / _page_name(page * A_PAGE), "xb") as file:
            _write(
                file, _page(kind="page", first=page * A_PAGE, entries=entries, blocks=blocks, **{**shown, "page": page})
            )
    with open(place / INDEX, "xb") as file:
        _write(file, _page(kind="index", first=0, entries=_lines(lines), blocks=(), **{**shown, **about}))
    write_manifest(
        place, {"schema": SCHEMA, "run": text(run.folder.name), "pictures": seen.pictures, "pages": shown["pages"]}
    )


def _page_name(number: int) -> str:
    """The page on which a picture is."""
    return f"page-{number // A_PAGE + 1:04}.html"


def _counted(run: Run, seen: Survey, watch: Watch) -> Iterator[tuple[int, Row]]:
    for number, row in enumerate(run):
        if number % 50 == 0:
            watch(number, seen.pictures)
        yield number, row
    watch(seen.pictures, seen.pictures)


def _block(number: int, row: Row, seen: Survey) -> tuple[int, str]:
    return number, in_script(picture(row, seen.kinds))


def _lines(lines: IO[str]) -> Iterator[str]:
    lines.seek(0)
    return (line.rstrip("\n") for line in lines)


def _write(file: IO[bytes], pieces: Iterable[str]) -> None:
    file.write(_BEGINS)
    for piece in pieces:
        file.write(piece.encode())


def _page(*, kind: str, entries: Iterable[str], blocks: Iterable[tuple[int, str]], **parts: Any) -> Iterator[str]:
    """A page, piece by piece, so that no more than a picture is ever held. Every text in it is escaped."""
    from markupsafe import Markup

    css = style_sheet() + (_HERE / "report.css").read_text(encoding="utf-8")
    own = script() + (_HERE / "report.js").read_text(encoding="utf-8")
    settings = {**parts["settings"], "kind": kind, "first": parts["first"], "perPage": A_PAGE}
    listed = chain.from_iterable(([",\n"] if at else []) + [one] for at, one in enumerate(entries))
    return _template().generate(
        **parts,
        kind=kind,
        css=Markup(css),
        script=Markup(own),
        policy=_policy(css, own),
        data=Markup(in_script(settings)),
        entries=(Markup(one) for one in listed),
        blocks=((number, Markup(one)) for number, one in blocks),
    )


def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["count"] = lambda number: f"{number:,}"
    return environment.from_string((_HERE / "report.html").read_text(encoding="utf-8"))


def _policy(css: str, own: str) -> str:
    """Only this script and this style sheet, only pictures that the page itself holds, and no text that becomes a script."""
    digests = (base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in (own, css))
    return (
        "default-src 'none'; img-src data:; script-src 'sha256-{}'; style-src 'sha256-{}'; base-uri 'none'; form-action 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ).format(*digests)


# ------------------------------------------------------------------------------------------------------- what the page says


def _about(run: Run, seen: Survey, audit: Mapping[str, Any] | None, page_of: Callable[[int], str]) -> dict[str, Any]:
    """What stands on every page, and what its script is told."""

    def address(name: str) -> str:
        number = seen.found.get(name)
        return "" if number is None else f"{page_of(number)}#p{number}"

    shown = None if audit is None else findings(audit, address)
    means = [one["mean"] for part in ("classes", "clusters") for one in shown[part]] if shown else []
    model = text(run.plan["model"].get("name") or "")
    return {
        "name": text(run.folder.resolve().name),
        "model": model,
        "methods": [text(one) for one in run.plan["methods"]],
        "planned": run.pictures,
        "missing": len(run.missing),
        "seen": seen,
        "accuracy": _accuracy(seen),
        "notices": [(notice, many) for notice, many in seen.notices.most_common(12)],
        "notes": [sentence(one) for one in _list(run.plan["model"].get("notes"))],
        "facts": plan_facts(run.plan),
        "failed": _failed(run, seen, page_of),
        "audit": shown,
        "pages": 0,
        "page": 0,
        "per_page": A_PAGE,
        "settings": {
            **colours(),
            "names": list(seen.names),
            "predicted": [seen.predicted[at] for at in range(len(seen.names))],
            "labelled": [seen.labelled[at] for at in range(len(seen.names))],
            "states": STATES,
            "judged": seen.judged,
            "kinds": [
                {"name": name, "scale": scale, "signed": name in seen.signed} for name, scale in seen.kinds.items()
            ],
            "even": EVEN_BORDER,
            "means": means,
        },
    }


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _accuracy(seen: Survey) -> dict[str, Any] | None:
    right, count = seen.states["right"], seen.states["right"] + seen.states["wrong"]
    if not count or not seen.judged:
        return None
    low, high = wilson(right, count)
    return {
        "right": right,
        "count": count,
        "share": f"{100 * right / count:.1f}",
        "low": f"{100 * low:.1f}",
        "high": f"{100 * high:.1f}",
    }


def _failed(run: Run, seen: Survey, page_of: Callable[[int], str]) -> list[dict[str, str]]:
    """The first pictures that failed, with why."""
    if not seen.states["error"]:
        return []
    found: list[dict[str, str]] = []
    number = 0
    for batch in run.batches(["id", "stage", "error", "message"]):
        for one in batch.to_pylist():
            if one["error"] is not None:
                said = {name: sentence(one[name] or "") for name in ("stage", "error", "message")}
                found.append({"id": text(one["id"]), "href": f"{page_of(number)}#p{number}", **said})
                if len(found) == _MOST_ERRORS:
                    return found
            number += 1
    return found
