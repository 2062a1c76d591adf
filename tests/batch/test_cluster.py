"""Runs on Ray: two workers on this machine, and one of them killed, give the table of a local run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("ray")

# A program of its own: Ray starts processes and threads that the tests' own process should not have.
DRIVER = """
import os, signal, sys, threading, time
import psutil, torch
from torch import nn
from sightline.batch import run, shards
from sightline import adapt
from sightline.models.preprocess import standard

def main(data, output, engine, kill):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 5, 2), nn.ReLU(), nn.Conv2d(8, 16, 5, 2), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    take = standard((64, 64), 72, mean=(0.5,) * 3, std=(0.5,) * 3)
    model = adapt(network, layers=["4"], preprocess=take, name="small")
    def kill_one():
        while True:
            time.sleep(0.02)
            done = len([one for one in os.listdir(os.path.join(output, "shards"))]) if os.path.isdir(os.path.join(output, "shards")) else 0
            if done < 2:
                continue
            for one in psutil.process_iter(["cmdline"]):
                if any("MapWorker" in word for word in one.info["cmdline"] or []):
                    one.kill()
                    print("killed", flush=True)
                    return
    if kill == "kill":
        threading.Thread(target=kill_one, daemon=True).start()
    found = run.explain_all(data, model, output=output, engine=engine, workers=2, methods=["grad-cam", "hires-cam"], targets="top3", shard_size=8, batch_size=4)
    print(len(found), found.verify())

if __name__ == "__main__":
    main(*sys.argv[1:])
"""


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(120):
        values = np.random.default_rng(number).integers(0, 256, (48 + number % 7, 64, 3), dtype=np.uint8)
        Image.fromarray(values).resize((96, 72)).save(folder / f"{number:03}.jpg")
    (folder / "050.jpg").write_bytes(b"no picture")
    return folder


def ran(tmp_path: Path, data: Path, output: Path, engine: str, kill: str = "") -> str:
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER, encoding="utf-8")
    places = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [sys.executable, str(driver), str(data), str(output), engine, kill],
        capture_output=True,
        text=True,
        timeout=280,
        env=places,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


@pytest.mark.slow
def test_two_workers_of_ray_and_a_killed_one_give_the_files_of_a_local_run(tmp_path: Path, pictures: Path) -> None:
    outputs = [tmp_path / name for name in ("local", "ray", "killed")]
    assert "120 []" in ran(tmp_path, pictures, outputs[0], "local")
    assert "120 []" in ran(tmp_path, pictures, outputs[1], "ray")
    said = ran(tmp_path, pictures, outputs[2], "ray", "kill")
    assert "killed" in said
    assert "120 []" in said
    tables = [json.loads((one / "summary.json").read_text(encoding="utf-8")) for one in outputs]
    assert tables[0] == tables[1] == tables[2]
    assert tables[0]["errors"] == 1
    assert tables[0]["done"] == 119
