"""What a report costs: writing it, its size, and opening it from the disk in a real browser; prints a table for docs/report.md.

python benchmarks/report.py RUN [--rounds 7]

RUN is a run of sightline batch over photographs, whose rows are repeated to make larger ones.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from sightline.batch.results import Run, open_run
from sightline.batch.shards import columns_of, shard_name, write_rows

_SHARD = 1000
_WRITE = """
import resource, sys, time
from sightline.audit.report import write_report
begun = time.perf_counter()
print(write_report(sys.argv[1], sys.argv[2]), time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
# The moment by the page's own clock at which every card on the screen is drawn, or every line of a list is there.
_WATCH = """
(() => {
  const seen = () => [...document.querySelectorAll('.card, .row')].filter((one) => one.getBoundingClientRect().top < innerHeight);
  const all = () => seen().length && seen().every((one) => one.matches('.row') || one.dataset.drawn);
  const watcher = new MutationObserver(() => {
    if (!all()) return;
    window.shownAt = performance.now();
    watcher.disconnect();
  });
  watcher.observe(document, { subtree: true, childList: true, attributes: true, attributeFilter: ['data-drawn'] });
})();
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    print("| pictures | written in | peak | size | opens in |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as place:
        for count in (500, 2000, 20_000, 100_000):
            run = repeated(open_run(given.run), Path(place) / str(count), count)
            command = [sys.executable, "-c", _WRITE, str(run), str(Path(place) / f"{count}.html")]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
            file, seconds, memory = Path(said[0]), float(said[1]), int(said[2]) / 1e3
            size = f"{file.stat().st_size / 1e6:.1f} MB{' (its index.html)' if file.name == 'index.html' else ''}"
            opened = opening(file, given.rounds)
            print(f"| {count:,} | {seconds:.1f} s | {memory:.0f} MB | {size} | {opened:.2f} s |", flush=True)
            shutil.rmtree(run)


def repeated(run: Run, folder: Path, count: int) -> Path:
    """A run of so many pictures with the rows of another, again and again."""
    rows = run.arrow().to_pylist()
    plan = {**run.plan, "shard": _SHARD, "pictures": {"count": count, "digest": ""}}
    (folder / "shards").mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"schema": "sightline.batch/1", "plan": plan}))
    import pyarrow as pa

    columns, endless = columns_of(plan), itertools.cycle(rows)
    for start in range(0, count, _SHARD):
        part = [{**next(endless), "id": f"{at:07}.jpg"} for at in range(start, min(start + _SHARD, count))]
        write_rows(folder / "shards" / shard_name(start // _SHARD), pa.Table.from_pylist(part, columns))
    return folder


def opening(file: Path, rounds: int) -> float:
    """Seconds until what fits on the screen is drawn; the median of the rounds, the first of which is not counted."""
    from playwright.sync_api import sync_playwright

    found = []
    with sync_playwright() as running:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser: Any = running.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        for _ in range(rounds + 1):
            page = browser.new_context(viewport={"width": 1280, "height": 1000}).new_page()
            page.add_init_script(_WATCH)
            page.goto(file.as_uri())
            page.wait_for_function("() => window.shownAt", timeout=60_000)
            found.append(page.evaluate("() => window.shownAt") / 1000)
            page.context.close()
        browser.close()
    return statistics.median(found[1:])


if __name__ == "__main__":
    main()
