"""Makes the notebooks of docs/learn from their sources, executed: python docs/notebooks.py [NAME ...].

They run with the shipped pictures alone, on one core and as if there were no network, so that every machine gives the same.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
LEARN = ROOT / "docs" / "learn"
WIDEST = 900  # pixels of a picture
NOT_NOTEBOOKS = {"pictures"}
# Nothing listens there: whatever asks for a network is refused at once.
NOWHERE = "http://127.0.0.1:9"


def sources() -> list[Path]:
    """The notebooks' sources."""
    return sorted(one for one in LEARN.glob("*.py") if one.stem not in NOT_NOTEBOOKS)


def executed(source: Path, photos: str = "") -> Any:
    """The notebook of a source, run from top to bottom in the source's folder; an error of a cell is raised.

    Args:
        source: a script in jupytext's percent format.
        photos: a folder of photographs; the shipped ones alone when empty.
    """
    notebook = jupytext.read(source)
    with tempfile.TemporaryDirectory() as empty:
        NotebookClient(
            notebook,
            timeout=600,
            kernel_name="python3",
            record_timing=False,
            resources={"metadata": {"path": os.fspath(source.parent)}},
        ).execute(env=_surroundings(photos, empty))
    return tidied(notebook)


def _surroundings(photos: str, empty: str) -> dict[str, str]:
    """What the kernel finds: these sources, no settings and no weights of whoever runs it, no network."""
    path = os.pathsep.join(one for one in (os.fspath(ROOT / "src"), os.environ.get("PYTHONPATH", "")) if one)
    return {
        **os.environ,
        "PYTHONPATH": path,
        "SIGHTLINE_PHOTOS": photos,
        "IPYTHONDIR": empty,
        "TORCH_HOME": empty,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore:IProgress not found",  # tqdm's advice to install widgets
        **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), NOWHERE),
    }


def tidied(notebook: Any) -> Any:
    """The same with cells named after what they hold, small pictures, and nothing of the machine."""
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    seen: dict[str, int] = {}
    for cell in notebook.cells:
        name = hashlib.sha256(cell.source.encode()).hexdigest()[:12]
        seen[name] = seen.get(name, 0) + 1
        cell.id = name if seen[name] == 1 else f"{name}-{seen[name]}"
        cell.metadata = nbformat.from_dict({})
        if cell.cell_type == "code":
            cell.outputs = _joined([_small(one) for one in cell.outputs])
    return notebook


def _joined(outputs: list[Any]) -> list[Any]:
    """What is printed arrives in pieces of chance; here one after the other becomes one."""
    found: list[Any] = []
    for one in outputs:
        if one.output_type == "stream" and found and found[-1].get("name") == one.name:
            found[-1].text += one.text
        else:
            found.append(one)
    return found


def _small(output: Any) -> Any:
    data = output.get("data", {})
    if "image/png" in data:
        data.pop("image/jpeg", None)
        kind, picture = smallest(base64.b64decode(data.pop("image/png")))
        data[kind] = base64.b64encode(picture).decode()
        output.metadata = nbformat.from_dict({})
    return output


def smallest(picture: bytes) -> tuple[str, bytes]:
    """A picture no wider than `WIDEST`, as JPEG or as PNG of 256 colours, whichever takes less."""
    image = Image.open(io.BytesIO(picture)).convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if image.width > WIDEST:
        image = image.resize((WIDEST, round(image.height * WIDEST / image.width)), Image.Resampling.LANCZOS)
    jpeg, png = io.BytesIO(), io.BytesIO()
    image.save(jpeg, "JPEG", quality=76, optimize=True, progressive=True)
    image.quantize(256, dither=Image.Dither.NONE).save(png, "PNG", optimize=True)
    return min(("image/jpeg", jpeg.getvalue()), ("image/png", png.getvalue()), key=lambda one: len(one[1]))


def main() -> None:
    """Writes NAME.ipynb beside each source, or beside those that were named."""
    known = {one.stem: one for one in sources()}
    for name in sys.argv[1:] or known:
        if name not in known:
            sys.exit(f"no notebook {name!r} in docs/learn; expected {', '.join(known)}")
        target = known[name].with_suffix(".ipynb")
        nbformat.write(executed(known[name]), target)
        print(f"{target.name}: {target.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
