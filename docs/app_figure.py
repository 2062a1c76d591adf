"""Makes docs/images/app.jpg, the app as a person meets it: python docs/app_figure.py (needs playwright and a chromium)."""

from __future__ import annotations

import io
import runpy
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

HERE = Path(__file__).parent
TARGET, BESIDE = "espresso", "tiger cat"


def shot(address: str, photograph: Path) -> bytes:
    """The page with two classes of one photograph, as a PNG."""
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as running:
        browser = running.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        page = browser.new_page(viewport={"width": 1250, "height": 1000})
        page.goto(address)
        page.wait_for_selector("#answer .sightline-empty", state="visible")
        page.wait_for_timeout(500)
        page.set_input_files("#picture input[type=file]", str(photograph))
        for control, name, panes in (("#target", TARGET, 1), ("#beside", BESIDE, 2)):
            page.wait_for_selector("#answer [data-drawn]", timeout=60000)
            page.locator(f"{control} input").fill(name)
            page.keyboard.press("Enter")
            page.wait_for_function(
                "(panes) => document.querySelectorAll('#answer canvas[tabindex]').length >= panes",
                arg=panes,
                timeout=60000,
            )
            page.wait_for_timeout(1500)
        found = page.screenshot()
        browser.close()
        return found


def main() -> None:
    command = [sys.executable, "-m", "sightline", "app", "--port", "0"]
    with tempfile.TemporaryDirectory() as place:
        photograph = Path(place) / "cat-and-espresso.png"
        runpy.run_path(str(HERE / "gallery.py"))["pair"]().save(photograph)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                address = next(
                    word for line in server.stdout for word in line.split() if word.startswith("http://127.0.0.1")
                )
                picture = shot(address, photograph)
            finally:
                server.terminate()
    with Image.open(io.BytesIO(picture)) as found:
        found.convert("RGB").save(HERE / "images" / "app.jpg", quality=85)


if __name__ == "__main__":
    main()
