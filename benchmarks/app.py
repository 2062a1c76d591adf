"""The web app's times on this machine, in a real browser; prints a table for docs/app.md.

python benchmarks/app.py [--rounds 7]
"""

from __future__ import annotations

import argparse
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

DEMO = Path(__file__).parents[1] / "src" / "sightline" / "data" / "demo"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    begun = time.perf_counter()
    server = subprocess.Popen(
        [sys.executable, "-m", "sightline", "app", "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    assert server.stdout is not None
    address = re.search(r"http://\S+", server.stdout.readline())
    assert address is not None
    rows = [("start, until the address is printed", f"{time.perf_counter() - begun:.1f} s")]
    try:
        rows += library(rounds) + browser(address.group(0), rounds) + visitors(address.group(0))
    finally:
        server.send_signal(signal.SIGINT)
        server.wait()
    print("| what | time |\n|---|---|")
    for row in rows:
        print("| " + " | ".join(row) + " |")


def timed(run: Callable[[], object]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def shown(times: list[float]) -> str:
    return f"{statistics.median(times) * 1000:.0f} ms ({min(times) * 1000:.0f}-{max(times) * 1000:.0f})"


def library(rounds: int) -> list[tuple[str, str]]:
    """What the library itself needs, in this process, while the server waits."""
    import sightline

    model = sightline.load_model("bundled")
    whole = [timed(lambda: sightline.explain(DEMO / "cat.jpg", model)) for _ in range(rounds + 1)][1:]
    seen = sightline.look(DEMO / "cat.jpg", model)
    again = [timed(lambda index=index: sightline.explain(seen, target=index)) for index in range(rounds + 1)][1:]
    return [("library: picture to map", shown(whole)), ("library: another class of the same picture", shown(again))]


def browser(url: str, rounds: int) -> list[tuple[str, str]]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as running:
        chromium = running.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        page = chromium.new_page(viewport={"width": 1250, "height": 1000})
        page.goto(url)
        page.wait_for_selector("#picture input[type=file]", state="attached")
        # Times are taken inside the page, between the event and the drawn map.
        page.evaluate(
            """() => {
                window.drawnAt = 0;
                new MutationObserver(() => { window.drawnAt = performance.now(); }).observe(
                    document.body, { subtree: true, attributes: true, attributeFilter: ['data-drawn'] });
            }"""
        )

        def until_drawn(act: Callable[[], object]) -> float:
            start = page.evaluate("() => performance.now()")
            act()
            page.wait_for_function("start => window.drawnAt > start", arg=start, timeout=60000)
            return float(page.evaluate("() => window.drawnAt") - start) / 1000

        first, click, known = [], [], []
        for number in range(rounds):
            picture = DEMO / ("cat.jpg" if number % 2 else "coffee.jpg")
            copy = {"name": f"{number}.jpg", "mimeType": "image/jpeg", "buffer": picture.read_bytes() + bytes(number)}
            if page.locator("#picture button[aria-label*='lear'], #picture button[aria-label*='emove']").count():
                page.locator("#picture button[aria-label*='lear'], #picture button[aria-label*='emove']").first.click()
                page.wait_for_timeout(700)
            first.append(until_drawn(lambda copy=copy: page.set_input_files("#picture input[type=file]", copy)))
            page.wait_for_timeout(700)
            click.append(until_drawn(lambda: page.locator("#says button").nth(3).click()))
            page.wait_for_timeout(700)
            page.locator("#says button").nth(4).click()
            page.wait_for_timeout(900)
            known.append(until_drawn(lambda: page.locator("#says button").nth(3).click()))
            page.wait_for_timeout(700)
        page.locator("#beside input").fill("goldfish")
        page.keyboard.press("Enter")
        page.wait_for_function("document.querySelectorAll('#answer canvas[tabindex]').length == 2")
        page.wait_for_timeout(500)
        redraws = []
        for style in ("heat", "grey-photo", "contours", "spotlight", "flat"):
            page.locator("#answer select").first.select_option(style)
            milliseconds = page.evaluate(
                """() => {
                    const slider = document.querySelector('#answer input[type=range]');
                    const start = performance.now();
                    for (let i = 0; i < 40; i++) { slider.value = 40 + i; slider.dispatchEvent(new Event('input')); }
                    return (performance.now() - start) / 40;
                }"""
            )
            redraws.append(f"{style} {milliseconds:.1f} ms")
        chromium.close()
    return [
        ("browser: picture chosen to first map drawn", shown(first)),
        ("browser: click on a class to its map drawn", shown(click)),
        ("browser: the same class again", shown(known)),
        ("browser: one control of the viewer, two panes", ", ".join(redraws)),
    ]


def visitors(url: str, count: int = 20) -> list[tuple[str, str]]:
    import httpx

    def visit(number: int) -> float:
        with httpx.Client(base_url=url, timeout=120, trust_env=False) as client:
            client.get("/")
            content = (DEMO / ("cat.jpg" if number % 2 else "coffee.jpg")).read_bytes() + bytes(number)
            begun = time.perf_counter()
            (path,) = client.post("/gradio_api/upload", files={"files": (f"{number}.jpg", content)}).json()
            data: list[Any] = [{"path": path, "meta": {"_type": "gradio.FileData"}}, str(number), "grad-cam", ""]
            event = client.post("/gradio_api/call/explain", json={"data": data}).json()["event_id"]
            answer = client.get(f"/gradio_api/call/explain/{event}").text
            assert "event: complete" in answer, answer[:300]
            return time.perf_counter() - begun

    waits = []
    with httpx.Client(base_url=url, timeout=30, trust_env=False) as client, ThreadPoolExecutor(count) as pool:
        jobs = [pool.submit(visit, number) for number in range(count)]
        while not all(job.done() for job in jobs):
            waits.append(timed(lambda: client.get("/health")))
            time.sleep(0.05)
        times = [job.result() for job in jobs]
    return [
        (f"{count} visitors at once: each answered after", shown(times)),
        ("health page meanwhile", shown(waits)),
    ]


if __name__ == "__main__":
    main()
