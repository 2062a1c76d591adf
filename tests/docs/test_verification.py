"""docs/verification.md says what the marked tests show, all of it and nothing else."""

from __future__ import annotations

import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import sightline

DOCS = Path(__file__).parents[2] / "docs"
MADE = runpy.run_path(str(DOCS / "verification.py"))
PAGE = (DOCS / "verification.md").read_text(encoding="utf-8")
TESTS = """
import pytest

@pytest.mark.proves("cam")
def test_hires_cams_map_is_right(): pass

@pytest.mark.proves(param="name")
@pytest.mark.parametrize("name", ["cam", "grad-cam++"])
def test_one_of_two_fails(name): assert name == "cam"

@pytest.mark.agrees("torch-cam", "cam", note="up to the sign")
def test_grad_cam_plus_plus_is_the_peers(): pytest.skip("no such package")

@pytest.mark.differs("torch-cam", "cam")
@pytest.mark.parametrize("case", [1, 2])
def test_what_torchcam_does(case): case == 1 or pytest.skip("not here")
"""


def claim(
    kind: str = "proves", name: str = "cam", peer: str = "", sentence: str = "a map is right", note: str = ""
) -> Any:
    return MADE["Claim"](kind, name, peer, sentence, note)


def read(*marks: pytest.MarkDecorator, **parameters: str) -> list[Any]:
    """The claims of a test with these markers and parameters."""

    def iter_markers(kind: str) -> Iterator[pytest.Mark]:
        return (one.mark for one in marks if one.name == kind)

    item = SimpleNamespace(
        nodeid="test",
        originalname="test_a_map_is_right",
        iter_markers=iter_markers,
        callspec=SimpleNamespace(params=parameters),
    )
    return list(MADE["claims_of"](item))


def test_the_page_lists_exactly_the_marked_tests_and_all_that_is_registered_has_an_exact_property() -> None:
    done = subprocess.run(
        [sys.executable, DOCS / "verification.py", "--check"], capture_output=True, text=True, check=False
    )
    if done.returncode == 3:
        pytest.skip(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_method_has_a_section_and_nothing_failed() -> None:
    assert [line.rpartition(">")[2].removeprefix("### ") for line in PAGE.splitlines() if line.startswith("### ")] == [
        name for group in MADE["registered"]().values() for name in group
    ]
    assert set(MADE["registered"]()["Methods"]) == set(sightline.list_methods())
    _, inside, _ = MADE["split"](PAGE)
    assert "failed here" not in inside


def test_every_published_figure_is_on_the_page_with_what_was_done_here() -> None:
    for one in MADE["PUBLISHED"]:
        assert f"| {one.figure} | {one.source} | {one.here} |" in PAGE
    assert MADE["published"]("grad-cam") == "[not run here](#published-figures)"
    assert MADE["published"]("hires-cam") == "none listed"


def test_what_fails_or_is_skipped_is_written_as_such(tmp_path: Path) -> None:
    (tmp_path / "test_made.py").write_text(TESTS)
    script = f"""if True:
        import contextlib, io, runpy
        made = runpy.run_path({str(DOCS / "verification.py")!r})
        with contextlib.redirect_stdout(io.StringIO()):
            states = made["ask"]([{str(tmp_path / "test_made.py")!r}]).states()
        print(made["table"](states))"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    wanted = {
        "- hires-cam's map is right",
        "- one of two fails",
        "- one of two fails — failed here",
        "- grad-cam++ is torch-cam's (up to the sign) — skipped here: no such package",
        "- what torch-cam does — partly skipped here: not here",
        "| [cam](#cam) | 2 | torch-cam (skipped here) | torch-cam (partly skipped here) | none listed |",
        '| <a href="#grad-cam-plus-plus">grad-cam++</a> | 0 of 1 | – | – | none listed |',
    }
    assert wanted <= set(done.stdout.splitlines()), done.stdout


def test_what_was_collected_and_not_run_is_not_taken_for_passed() -> None:
    seen = MADE["Seen"](claims={"one": [claim()], "other": [claim()]}, ends={"one": ""})
    assert seen.states() == {claim(): "partly not run here"}


def test_the_page_is_compared_without_running_by_the_states_that_it_gives() -> None:
    states = {claim(): "", claim(sentence="another"): "skipped here: why — so", claim("agrees", peer="captum"): ""}
    assert MADE["as_written"](states, MADE["table"](states)) == states
    assert MADE["as_written"]([claim(sentence="a third")], MADE["table"](states)) == {claim(sentence="a third"): ""}


def test_a_marker_names_methods_itself_or_by_a_parameter() -> None:
    mark = pytest.mark
    assert read(mark.proves("cam", "fem")) == [claim(), claim(name="fem")]
    assert read(mark.proves(param="method"), method="fem") == [claim(name="fem")]
    assert read(mark.agrees("captum", "cam", note="nearly")) == [claim("agrees", peer="captum", note="nearly")]
    assert read(mark.differs("captum", param="one", says="it turns"), one="cam") == [
        claim("differs", peer="captum", sentence="it turns")
    ]


@pytest.mark.parametrize(
    "wrong", [{"names": ()}, {"names": ("cam",), "param": "nowhere"}, {"names": ("cam",), "notes": "misspelt"}]
)
def test_a_marker_that_names_nothing_or_has_a_wrong_word_is_refused(wrong: dict[str, Any]) -> None:
    names = wrong.pop("names")
    with pytest.raises((ValueError, LookupError)):
        read(pytest.mark.proves(*names, **wrong))


def test_a_method_without_an_exact_property_and_a_name_of_none_are_told() -> None:
    names = [name for group in MADE["registered"]().values() for name in group]
    told = MADE["complaints"](
        [claim(name=name) for name in names if name != "fem"] + [claim("agrees", "fem", "captum")]
    )
    assert told == ["no test marked `proves` names fem"]
    told = MADE["complaints"](claim(name=name) for name in [*names, "gradcam"])
    assert told == ["a marker names gradcam, which is neither a method nor a metric"]
