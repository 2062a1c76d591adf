"""What an audit costs: 20,000 maps without trials, and trials beside the model's own batched forwards.

python benchmarks/audit.py [--maps 20000]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

_CLASSES = 20
_CODE = """
import json, resource, sys, time
from sightline.audit.run import audit_run
start = time.perf_counter()
found = audit_run(sys.argv[1], output=sys.argv[2])
print(json.dumps([time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, len(found.heats)]))
"""


def maps_alone(count: int) -> None:
    """An audit of so many maps of 7 x 7 in 20 classes, in a process of its own."""
    from made_runs import make_run

    random = np.random.default_rng(0)

    def change(row: dict) -> None:
        name = f"class {int(row['id'][:2])}"
        row |= {
            "label": name,
            "thumbnail": None,
            "predictions": [{"index": int(row["id"][:2]), "label": name, "probability": 0.9}],
        }
        one = row["maps"][0]
        y, x = np.mgrid[:7, :7]
        at = random.normal(3, 1.2, 2)
        heat = np.exp(-((y - at[0]) ** 2 + (x - at[1]) ** 2) / 3)
        row["maps"] = [one | {"label": name, "height": 7, "width": 7, "heat": heat.ravel().astype(np.float16)}]

    with tempfile.TemporaryDirectory() as folder:
        names = sorted(f"{at % _CLASSES:02}/{at:06}.jpg" for at in range(count))
        run = make_run(Path(folder) / "run", names, shard=1000, failed=(), change=change)
        done = subprocess.run(
            [sys.executable, "-c", _CODE, str(run), f"{folder}/audit"], capture_output=True, text=True, check=True
        )
        seconds, peak_mb, maps = json.loads(done.stdout.splitlines()[-1])
    print(f"{maps:,} maps in {_CLASSES} classes: {seconds:.1f} s, peak {peak_mb:.0f} MB")


def trials(model: str = "resnet50", batch: int = 8) -> None:
    """Trials of every kind on 64 pictures of 224 x 224, against as many forwards alone, in turns."""
    from torchvision import models

    import sightline
    from sightline.audit.regions import REGION, WHOLE, Candidate
    from sightline.audit.trials import Pool, asked, planned, run_trials

    torch.manual_seed(0)
    adapter = sightline.adapt(getattr(models, model)(num_classes=2), layers=["layer4"], labels=["one", "other"])
    x = torch.rand(64, 3, 224, 224)
    pool = Pool({at: at for at in range(64)}, x, np.array(["one", "other"] * 32), None)
    members = np.arange(0, 64, 2)
    shares = []
    for what in (REGION, *WHOLE):
        one = Candidate("one", what, members, (0.0, 0.0, 0.3, 0.3) if what == REGION else None)
        plan = planned([one], pool)[:2]
        count = sum(arms.forwards for arms in plan)
        best = []
        for _ in range(2):
            start = time.perf_counter()
            for _ in range(count // 64):
                list(asked(adapter, x, batch))
            middle = time.perf_counter()
            run_trials([one], plan, pool, adapter, batch=batch)
            best.append((middle - start) / (time.perf_counter() - middle))
        shares.append(max(best))
        print(f"{what}: {count} pictures, {max(best):.2f} of the forwards' throughput")
    print(f"all: {np.mean(shares):.2f}; peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f} MB")


if __name__ == "__main__":
    given = argparse.ArgumentParser()
    given.add_argument("--maps", type=int, default=20_000)
    maps_alone(given.parse_args().maps)
    trials()
