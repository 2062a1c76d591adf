"""Writes docs/verification.md from what the marked tests say when they run: python docs/verification.py.

A test says with a marker what it shows (pyproject.toml lists the markers); its own name is the sentence on the page.
`python docs/verification.py --check` runs no test: it compares the page with the markers, and a test does the same.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import re
import runpy
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sightline import list_methods, list_metrics

HERE = Path(__file__).resolve().parent
ROOT, PAGE = HERE.parent, HERE / "verification.md"
BEGIN, END = "<!-- table: python docs/verification.py -->\n", "<!-- end of table -->\n"
ADVICE = "run: python docs/verification.py"
FILE_NAME = runpy.run_path(str(HERE / "method_pages.py"))["file_name"]
HEADINGS = {"proves": "Exact", "agrees": "Agrees with", "differs": "Differs from"}
# What a test's name can't hold. Names of methods, metrics and peers get their hyphens from the registries and markers.
WORDS = {
    "callers": "caller's",
    "classes probabilities": "classes' probabilities",
    "gap and linear": "a global average and a linear layer",
    "margins": "margin's",
    "no grad": "no_grad",
    "oracles": "oracle's",
    "pca": "PCA",
    "probabilitys": "probability's",
    "resnet18": "ResNet-18",
    "timms": "timm's",
}
ORACLE = "equals its slow float64 oracle"


@dataclass(frozen=True)
class Published:
    """A figure that others published, and the methods and metrics that would be checked by it."""

    what: str
    data: str
    figure: str
    source: str
    of: tuple[str, ...] = ()
    here: str = "not run here"


GAME, CENTRE = (
    "pointing game of grad-cam, all / difficult images",
    "pointing game of the centre, all / difficult images",
)
GAME_OF, RISE = (
    ("grad-cam", "pointing-game"),
    ("ResNet-50, 10,000 validation images of ImageNet", "RISE's own notebook"),
)
PUBLISHED = (
    Published(GAME, "VGG-16, VOC07", "86.6 / 74.0", "TorchRay", GAME_OF),
    Published(GAME, "ResNet-50, VOC07", "90.4 / 82.3", "TorchRay", GAME_OF),
    Published(GAME, "VGG-16, COCO14", "54.2 / 49.0", "TorchRay", GAME_OF),
    Published(GAME, "ResNet-50, COCO14", "57.3 / 52.3", "TorchRay", GAME_OF),
    Published(CENTRE, "VOC07", "69.6 / 42.4", "TorchRay", GAME_OF[1:]),
    Published(CENTRE, "COCO14", "27.8 / 19.5", "TorchRay", GAME_OF[1:]),
    Published("deletion", RISE[0], "0.1048", RISE[1], ("deletion",)),
    Published("insertion", RISE[0], "0.7719", RISE[1], ("insertion",)),
    Published("CSDC / PC / DC of input x gradient", "ResNet-50, FunnyBirds", "0.7353 / 0.602 / 0.532", "FunnyBirds"),
)


@dataclass(frozen=True)
class Claim:
    """One line of the page: what the tests of one name show about one method or metric."""

    kind: str
    name: str
    peer: str
    sentence: str
    note: str


@dataclass(eq=False)
class Seen:
    """What pytest told: the claims of every test, how each test ended, and what couldn't be collected."""

    claims: dict[str, list[Claim]] = field(default_factory=dict)
    ends: dict[str, str] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.outcome != "passed":
            self.broken.append(f"{report.nodeid}: {reason(report)}")

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        for item in session.items:
            try:
                self.claims[item.nodeid] = list(claims_of(item))
            except (ValueError, LookupError, AttributeError) as error:
                self.broken.append(f"{item.nodeid}: a marker that can't be read: {error}")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.ends[report.nodeid] = "failed here"
        elif report.skipped:
            self.ends[report.nodeid] = f"skipped here: {reason(report)}"
        elif report.when == "call":
            self.ends[report.nodeid] = ""

    def states(self) -> dict[Claim, str]:
        """Every claim with how its tests ended, "" where all passed, in the order of the tests."""
        ends: dict[Claim, list[str]] = defaultdict(list)
        for test, claims in self.claims.items():
            for claim in claims:
                ends[claim].append(self.ends.get(test, "not run here"))
        return {claim: together(each) for claim, each in ends.items()}


def reason(report: pytest.CollectReport | pytest.TestReport) -> str:
    """Why something was skipped, or what pytest says of its failure, in one line."""
    said = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return " ".join(said.strip().rpartition("\n")[2].removeprefix("Skipped: ").split())


def together(ends: list[str]) -> str:
    """How a parametrised test ended: as its worst case did."""
    worst = min(filter(None, ends), default="")  # "failed" comes before "not run" and "skipped"
    whole = not worst or worst.startswith("failed") or all(ends)
    return worst if whole else f"partly {worst}"


def claims_of(item: pytest.Function) -> Iterator[Claim]:
    """What the markers of one test say it shows.

    Raises:
        ValueError: a marker that names nothing, or has a keyword that isn't known.
        LookupError: a marker without a peer, or of a parameter that the test doesn't have.
    """
    words = item.originalname.removeprefix("test_").replace("_", " ")
    for kind in HEADINGS:
        for mark in item.iter_markers(kind):
            peer, of = ("", mark.args) if kind == "proves" else (mark.args[0], mark.args[1:])
            if "param" in mark.kwargs:
                of = (*of, item.callspec.params[mark.kwargs["param"]])
            if not of or not set(mark.kwargs) <= {"param", "says", "note"}:
                raise ValueError(f"{kind} names no method or metric, or has an unknown keyword")
            for name in of:
                yield Claim(kind, name, peer, mark.kwargs.get("says", words), mark.kwargs.get("note", ""))


def marked_files() -> list[str]:
    """Files of tests that use one of the markers."""
    uses = re.compile(rf"\bmark\.({'|'.join(HEADINGS)})\b")
    return sorted(str(file) for file in (ROOT / "tests").rglob("test_*.py") if uses.search(file.read_text("utf-8")))


def ask(files: Iterable[str], *flags: str) -> Seen:
    """Runs, or only collects, the marked tests in these files."""
    seen = Seen()
    settings = ["-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), "-p", "no:cacheprovider", "-q"]
    code = pytest.main([*settings, "-m", " or ".join(HEADINGS), *flags, *files], plugins=[seen])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) and not seen.broken:
        seen.broken.append(f"pytest ended with {code!r}")
    return seen


def registered() -> dict[str, list[str]]:
    """All that gets a section, by heading."""
    return {"Methods": list(list_methods()), "Metrics": list(list_metrics())}


def names() -> list[str]:
    return [name for group in registered().values() for name in group]


def unproven(claims: Iterable[Claim]) -> list[str]:
    """What is registered and has no exact property."""
    proven = {claim.name for claim in claims if claim.kind == "proves"}
    return [name for name in names() if name not in proven]


def unknown(claims: Iterable[Claim]) -> list[str]:
    """What markers name and no registry has."""
    return sorted({claim.name for claim in claims} - set(names()))


# ------------------------------------------------------------------------------------------------------------- the page


def speller(claims: Iterable[Claim]) -> dict[str, str]:
    """How words of a test's name are written: `grad cam plus plus` is grad-cam++, `torchcams` is torch-cam's."""
    spelled = {name.replace("++", " plus plus").replace("-", " "): name for name in names() if "-" in name}
    for peer in {claim.peer for claim in claims} - {""}:
        spelled |= {peer.replace("-", ""): peer, peer.replace("-", " "): peer}
    return WORDS | spelled | {f"{words}s": f"{name}'s" for words, name in spelled.items()}


def line(claim: Claim, spelled: dict[str, str]) -> str:
    """The sentence as a reader sees it; it says which peer it is about."""
    if claim.peer:
        spelled = spelled | {"the peer": claim.peer, "the peers": f"{claim.peer}'s"}
    longest = sorted(spelled, key=len, reverse=True)
    words = re.compile(rf"\b({'|'.join(map(re.escape, longest))})\b")
    sentence = words.sub(lambda found: spelled[found[0]], claim.sentence)
    of = "" if claim.peer in sentence else f"{claim.peer}: "
    return of + sentence + f" ({claim.note})" * bool(claim.note)


def page_of(name: str) -> str | None:
    """The page that defines it, relative to docs."""
    found = (f"{folder}/{FILE_NAME(name)}" for folder in ("methods", "metrics"))
    return next((page for page in found if (HERE / page).exists()), None)


def peers(states: dict[Claim, str], kind: str) -> str:
    """The peers of one kind of claim; those of which nothing passed say so."""
    found: dict[str, list[str]] = defaultdict(list)
    for claim, state in states.items():
        if claim.kind == kind:
            found[claim.peer].append(state.partition(":")[0])
    return ", ".join(f"{one} ({ends[0]})" if all(ends) else one for one, ends in sorted(found.items())) or "–"


def published(name: str) -> str:
    found = dict.fromkeys(one.here for one in PUBLISHED if name in one.of)
    return ", ".join(f"[{here}](#published-figures)" for here in found) or "none listed"


def summary(heading: str, group: dict[str, dict[Claim, str]]) -> list[str]:
    """The table of one registry: a row a name."""
    first = heading.lower().removesuffix("s")
    rows = [f"| {first} | exact properties | agrees with | differs from | published figure |", "|---|---|---|---|---|"]
    for name, states in group.items():
        exact = [state for claim, state in states.items() if claim.kind == "proves"]
        count = f"{exact.count('')} of {len(exact)}" if any(exact) else str(len(exact))
        place = anchor(name)
        # A place that Markdown knows nothing of is linked to as HTML, which a checker of links lets be.
        link = f"[{name}](#{name})" if place == name else f'<a href="#{place}">{name}</a>'
        beside = [peers(states, kind) for kind in ("agrees", "differs")]
        rows.append(f"| {' | '.join([link, count, *beside, published(name)])} |")
    return rows


def anchor(name: str) -> str:
    """Where its section begins; a plus sign would be left out of an address."""
    return FILE_NAME(name).removesuffix(".md")


def section(name: str, states: dict[Claim, str], spelled: dict[str, str]) -> list[str]:
    """Everything about one name, kind by kind."""
    target = "" if anchor(name) == name else f'<a id="{anchor(name)}"></a>'
    lines = [f"### {target}{name}", ""]
    if page := page_of(name):
        lines += [f"[Definition]({page})", ""]
    if not states:
        lines += ["Nothing is shown here yet.", ""]
    for kind, heading in HEADINGS.items():
        found = {line(claim, spelled): state for claim, state in states.items() if claim.kind == kind}
        first = sorted(found, key=lambda text: not text.startswith(ORACLE))
        if found:
            lines += [f"{heading}:", "", *(f"- {text}{found[text] and f' — {found[text]}'}" for text in first), ""]
    return lines


def figures() -> list[str]:
    rows = ["| what | on | published | by | here |", "|---|---|---|---|---|"]
    return rows + [f"| {one.what} | {one.data} | {one.figure} | {one.source} | {one.here} |" for one in PUBLISHED]


def table(states: dict[Claim, str]) -> str:
    """All that stands between the markers of the page."""
    spelled = speller(states)
    lines: list[str] = []
    for heading, group in registered().items():
        of = {name: {claim: state for claim, state in states.items() if claim.name == name} for name in group}
        lines += [f"## {heading}", "", *summary(heading, of), ""]
        for name, claims in of.items():
            lines += section(name, claims, spelled)
    return "\n".join([*lines, "## Published figures", "", *figures()]) + "\n"


def split(text: str) -> tuple[str, str, str]:
    """The page before, between and behind the markers."""
    before, _, rest = text.partition(BEGIN)
    inside, _, behind = rest.partition(END)
    return before, inside, behind


def as_written(claims: Iterable[Claim], text: str) -> dict[Claim, str]:
    """The claims with the states that the page gives them."""
    claims, name = list(claims), ""
    spelled, found = speller(claims), {}
    for one in text.splitlines():
        if one.startswith("### "):
            name = one.rpartition(">")[2].removeprefix("### ")
        elif one.startswith("- "):
            sentence, _, state = one.removeprefix("- ").partition(" — ")
            found[name, sentence] = state
    return {claim: found.get((claim.name, line(claim, spelled)), "") for claim in claims}


# -------------------------------------------------------------------------------------------------------------- running


def check() -> int:
    """0 if the page says what the markers say; 3 if a package is missing that the marked tests need."""
    with contextlib.redirect_stdout(io.StringIO()):
        seen = ask(marked_files(), "--collect-only", "--assert=plain")  # what is not run needs no explaining
    if seen.broken:
        print("\n".join(seen.broken))
        return 3 if all("could not import" in one for one in seen.broken) else 1
    claims = list(seen.states())
    _, inside, _ = split(PAGE.read_text(encoding="utf-8"))
    wanted, faults = table(as_written(claims, inside)), complaints(claims)
    if inside != wanted:
        changes = difflib.unified_diff(inside.splitlines(), wanted.splitlines(), "the page", "the markers", lineterm="")
        faults += [ADVICE, *changes]
    print("\n".join(faults))
    return int(bool(faults))


def complaints(claims: Iterable[Claim]) -> list[str]:
    claims = list(claims)
    faults = [f"no test marked `proves` names {name}" for name in unproven(claims)]
    return faults + [f"a marker names {name}, which is neither a method nor a metric" for name in unknown(claims)]


def write() -> int:
    """Runs the marked tests and writes how they ended; 1 if one failed or something has no exact property."""
    seen = ask(marked_files())
    if seen.broken:
        print("nothing is written, as not all marked tests can be read:", *seen.broken, sep="\n")
        return 1
    states = seen.states()
    before, _, behind = split(PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(before + BEGIN + table(states) + END + behind, encoding="utf-8")
    failed = [f"failed, for {one.name}: {one.sentence}" for one, state in states.items() if state.startswith("failed")]
    faults = complaints(states) + failed
    print("\n".join(faults))
    return int(bool(faults))


if __name__ == "__main__":
    os.environ.pop("PYTEST_ADDOPTS", None)  # -x or -n would leave tests out
    sys.exit(check() if sys.argv[1:] == ["--check"] else write())
