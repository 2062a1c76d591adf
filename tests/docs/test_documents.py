"""Every command and snippet of the README and of the first page runs, and the generated tables are the registry's."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers as hugging

import sightline
from made_runs import make_run
from made_texts import clip, image_processor, llava, llava_processor, saved, tokenizer
from sightline.cli import _app, _spelled_out
from sightline.metrics import registry

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DEMO = ROOT / "src" / "sightline" / "data" / "demo"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place with the pictures that the README speaks of."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(DEMO / "cat.jpg", tmp_path)
    shutil.copy(DEMO / "cat.jpg", tmp_path / "my.jpg")
    for name in ("photos", "more"):
        (tmp_path / name).mkdir()
        shutil.copy(DEMO / "coffee.jpg", tmp_path / name / f"{name}.jpg")
    (tmp_path / "more" / "more.jpg").rename(tmp_path / "more" / "more.png")
    network = timm.create_model("mobilenetv3_small_050", num_classes=2)
    torch.save({"state_dict": {f"model.{name}": one for name, one in network.state_dict().items()}}, "my.ckpt")
    return tmp_path


@pytest.fixture
def pets(folder: Path, shared_data: Path) -> Path:
    """The same place with folders to train on."""
    for side, count in (("train", 3), ("val", 2)):
        for name in ("cat", "dog"):
            (folder / "pets" / side / name).mkdir(parents=True)
            for one in sorted((shared_data / "cats-vs-dogs" / side / name).iterdir())[:count]:
                shutil.copy(one, folder / "pets" / side / name)
    return folder


@pytest.mark.parametrize("number", range(len(re.findall(r"```python\n", README))))
def test_python_in_the_readme_runs(folder: Path, number: int) -> None:
    exec(compile(re.findall(r"```python\n(.*?)```", README, re.S)[number], "README.md", "exec"), {})  # noqa: S102
    if number == 0:
        assert (folder / "why.png").exists()


def commands() -> list[str]:
    """Those of the README and of the first page, each once."""
    pages = README + (ROOT / "docs" / "start.md").read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", pages, re.S))
    lines = [line.partition("#")[0].strip() for line in blocks.splitlines()]
    found = [part.strip() for line in lines for part in line.split(";") if part.strip().startswith("sightline")]
    return list(dict.fromkeys(one.replace(" --force", "") for one in found))


# One of them shows the model each of 1,280 channels without it, another 50 pictures forth and back and 85 forth: half of
# all their time. What they run is run for each method, and with three methods in one, in tests/cli/test_asking.py.
LONG = (
    "--method ablation-cam",
    "--method integrated-gradients --method occlusion",
    "--method kernel-shap",
    "train pets",  # tests/train trains
)


@pytest.mark.parametrize(
    "command",
    [pytest.param(one, marks=[pytest.mark.slow] if any(part in one for part in LONG) else []) for one in commands()],
)
def test_commands_in_the_readme_run(
    folder: Path,
    command: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    from sightline.cli import main

    if " pets" in command:
        request.getfixturevalue("pets")
    if command.endswith(" run") and "batch" not in command:
        make_run(folder / "run")
    monkeypatch.setenv("TORCH_HOME", os.fspath(folder / "cache"))
    monkeypatch.setattr(sys, "argv", shlex.split(command))
    code = 0
    try:
        main()
    except SystemExit as end:
        code = int(end.code or 0)
    shown = capsys.readouterr()
    if "torchvision:" in command:  # needs the hub: it works, or says how to do without
        assert code == 0 or (code == 2 and "--weights FILE" in shown.err)
    else:
        assert code == 0, shown.err
        assert shown.out


def test_the_pages_of_methods_are_the_registrys() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "method_pages.py"))
    advice = "run: python docs/method_pages.py"
    assert made["families"]() in README, advice
    assert made["table"]() in (ROOT / "docs" / "methods.md").read_text(encoding="utf-8"), advice
    folder = ROOT / "docs" / "methods"
    assert {one.name: one.read_text(encoding="utf-8") for one in folder.glob("*.md")} == made["pages"](), advice


def test_the_table_of_metrics_is_the_registrys() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "metric_pages.py"))
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert made["table"]() in page, "run: python docs/metric_pages.py"


def test_the_page_of_commands_is_what_they_say() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "command_pages.py"))
    page = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    assert made["page"]() == page, "run: python docs/command_pages.py"


def test_the_gallery_says_what_the_model_says() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "gallery.py"))
    page = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    assert made["page"](made["entries"](sightline.load_model("bundled"))) == page, "run: python docs/gallery.py"


def test_a_gallery_of_own_photographs_is_a_page(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = runpy.run_path(str(ROOT / "docs" / "gallery.py"))
    shutil.copy(DEMO / "coffee.jpg", folder / "photos" / "<b>.jpg")
    page = made["of_folder"](folder / "photos", folder / "gallery")
    text = page.read_text(encoding="utf-8")
    assert "&lt;b&gt;.jpg" in text
    assert "espresso (95%)" in text
    assert all((folder / "gallery" / f"{number}.jpg").exists() for number in (1, 2))
    assert "2 of 2" in capsys.readouterr().err


def test_every_public_name_is_in_the_reference() -> None:
    page = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    named = set(re.findall(r":: sightline\.(\w+)$", page, re.M))
    assert named == set(sightline.__all__) - {"SightlineError"} | {"train"}


@pytest.mark.parametrize(
    "page", ["start.md", "models.md", "metrics.md", "trust.md", "evaluation.md", "black-boxes.md", "tasks.md"]
)
def test_python_in_the_pages_runs(folder: Path, page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))  # a page may register a metric
    run_page(page)


@pytest.mark.filterwarnings("default")  # Lightning has advice for whoever reads it
def test_python_in_the_page_of_training_runs(pets: Path) -> None:
    run_page("training.md")
    assert (pets / "run" / "index.html").exists()
    assert (pets / "film" / "film.png").exists()


@pytest.mark.filterwarnings("default")  # transformers has advice for whoever reads it
def test_python_in_the_page_of_texts_runs(folder: Path) -> None:
    saved(folder / "my-clip", clip(), hugging.CLIPProcessor(image_processor(), tokenizer()))
    saved(folder / "my-llava", llava(), llava_processor())
    run_page("text.md")


def run_page(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    exec(compile("\n".join(re.findall(r"```python\n(.*?)```", text, re.S)), page, "exec"), {"__name__": page})  # noqa: S102


def test_every_command_of_every_page_has_the_options_that_it_is_given() -> None:
    """Those that need a hub, a cluster or a display can't be run here; that they are spelled right can be seen."""
    import typer

    whole: Any = typer.main.get_command(_app())
    checked = 0
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")):
        blocks = "\n".join(re.findall(r"^```(?:bash|sh)\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M))
        for line in blocks.replace("\\\n", " ").splitlines():
            for part in line.split("; "):
                if not part.strip().startswith("sightline "):
                    continue
                command, words = whole, _spelled_out(shlex.split(part, comments=True)[1:])
                while hasattr(command, "commands"):
                    assert words[0] in command.commands, f"{page.name}: {part}"
                    command, words = command.commands[words[0]], words[1:]
                try:
                    command.make_context("sightline", words)
                except Exception as error:
                    raise AssertionError(f"{page.name}: {part}: {error}") from error
                checked += 1
    assert checked > 100


def test_links_of_the_documents_lead_somewhere() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")):
        prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
        for target in re.findall(r"\]\(([^)#:]+)\)", prose):
            assert (page.parent / target).exists(), f"{page.name} -> {target}"


def test_no_file_names_a_registry_or_a_path_of_one_machine() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    addresses = ["pypi" + r"\.org", "pythonhosted" + r"\.", "download" + r"\.pytorch\.org", "npmjs" + r"\."]
    forbidden = re.compile("|".join([*addresses, r"/ro" + "ot/", r"/wo" + "rk/"]))
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.suffix in {".png", ".jpg"} or not path.exists():
            continue
        found = forbidden.search(path.read_text(encoding="utf-8"))
        assert not found, f"{name}: {found.group() if found else ''}"
