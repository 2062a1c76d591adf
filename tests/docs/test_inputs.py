"""What docs/inputs.md says to type runs, on what its pictures are drawn from."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

import sightline
from sightline.cli import main

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "inputs.md").read_text(encoding="utf-8")


def test_commands_and_python_of_the_page_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    made = runpy.run_path(str(DOCS / "input_figures.py"))
    np.save("scene.npy", made["scene"]())
    np.save("scan.npy", made["scan"]())
    frames = made["film"]()
    frames[0].save("film.gif", save_all=True, append_images=frames[1:])
    for name, picture in zip(("before.png", "after.png"), made["changed"](), strict=True):
        picture.save(name)
    made["large"]().resize((480, 360)).save("large.png")
    known = {
        "sightline": sightline,
        "network": made["Growth"](),
        "differ": made["Change"](),
        "network_of_films": made["Ball"](),
        "network_of_volumes": made["Body"](),
    }
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.S):
        exec(compile(block, "docs/inputs.md", "exec"), known)  # noqa: S102
    assert {"bands.png", "strip.png", "why.gif", "slices.png", "tiles.png"} <= {one.name for one in tmp_path.iterdir()}
    for line in "".join(re.findall(r"```bash\n(.*?)```", PAGE, re.S)).splitlines():
        monkeypatch.setattr(sys, "argv", shlex.split(line.partition("#")[0]))
        with pytest.raises(SystemExit) as end:
            main()
        assert not end.value.code, capsys.readouterr().err
    assert (tmp_path / "sightline-out" / "large" / "panel.png").exists()


def test_the_pictures_of_the_page_are_those_that_the_generator_draws() -> None:
    named = set(re.findall(r"images/(inputs-[a-z]+\.jpg)", PAGE))
    drawn = set(re.findall(r'"(inputs-[a-z]+\.jpg)"', (DOCS / "input_figures.py").read_text(encoding="utf-8")))
    assert named == drawn == {one.name for one in (DOCS / "images").glob("inputs-*.jpg")}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--overlap", "0.5"], "--overlap belongs to --tiles"),
        (["--tiles", "--trust"], "leave one of them out"),
        (["--tiles", "--overlap", "1.5"], "from 0 to below 1"),
    ],
)
def test_what_doesnt_go_with_tiles_is_refused(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    photo = Path(sightline.__file__).parent / "data" / "demo" / "cat.jpg"
    monkeypatch.setattr(sys, "argv", ["sightline", "explain", str(photo), *words])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code
    assert says in capsys.readouterr().err.replace("\n", " ")
