"""One model shared by many threads, and ten thousand calls; each in a process of its own, so that a crash is a failure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).resolve().parents[1]


def _in_a_process(program: str, *arguments: str, **environment: str) -> dict[str, Any]:
    """What the program prints as JSON; warnings are errors there, too."""
    path = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(TESTS)])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program), *arguments],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"the process ended with {done.returncode}:\n{done.stderr[-3000:]}"
    return json.loads(done.stdout.splitlines()[-1])


THREADS = """
    import json, sys, threading, traceback

    import torch
    from conftest import MODELS, images, seeded, trace
    import sightline

    torch.set_num_threads(1)
    sys.setswitchinterval(1e-4)  # many more chances to meet
    methods, targets = [m for m, one in sorted(sightline.list_methods().items()) if one.needs == "gradients" and m != "eigengrad-cam"], [0, 1, 2, 3, 4, None, sightline.margin(1, 3)]
    model = seeded(MODELS[sys.argv[1]])
    model.train(sys.argv[2] == "train")
    x = images(6)
    layers = [model.layer, {"residual": "block1", "regularised": "conv1", "dense": "stem"}[sys.argv[1]]]

    def call(n):
        method, target = methods[n % len(methods)], targets[n % len(targets)]
        first, batch, layer = n % 5, 1 + n % 2, layers[n // 7 % 2]
        inputs = x[first : first + batch]
        if n % 11 == 0:  # some fail on purpose, which must not disturb the others
            try:
                sightline.attribute(inputs, model, method=method, layer="nowhere")
            except sightline.SightlineError:
                pass
        if n % 13 == 0:
            capture = sightline.capture(inputs, model, layer=layer)
            return sightline.attribute(capture, model, method=method, target=target)
        return sightline.attribute(inputs, model, method=method, layer=layer, target=target)

    STEPS = int(sys.argv[3])
    expected = [call(n) for n in range(7 * 17 + STEPS)]  # every answer is known beforehand
    before = {key: value for key, value in trace(model, x).items() if "process" not in key}
    wrong, errors, done = [], [], []
    start = threading.Barrier(8)

    def work(thread):
        start.wait()
        for step in range(STEPS):
            n = thread * 17 + step
            try:
                found, wanted = call(n), expected[n]
                good = found.shape == wanted.shape
                good = good and float((found - wanted).abs().max()) <= 1e-6 * max(1e-9, float(wanted.abs().max()))
                done.append(n)
                if not good:
                    wrong.append(n)
            except BaseException:
                errors.append(traceback.format_exc())

    workers = [threading.Thread(target=work, args=(thread,)) for thread in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    after = {key: value for key, value in trace(model, x).items() if "process" not in key}
    changed = [key for key in before if before[key] != after.get(key)]
    print(json.dumps({
        "done": len(done),
        "wrong": len(wrong),
        "errors": errors[:3],
        "changed": changed,
        "different": len({tuple(one.flatten().tolist()) for one in expected}),
    }))
"""


# Every method, target, layer and batch size has had its turn after 70 calls of each thread; many more need their time.
@pytest.mark.parametrize("steps", [70, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("model", "mode"), [("residual", "eval"), ("regularised", "train")])
def test_eight_threads_on_one_model_get_the_maps_that_one_thread_gets(model: str, mode: str, steps: int) -> None:
    """Mixed methods, targets, layers and batch sizes."""
    found = _in_a_process(THREADS, model, mode, str(steps))
    assert found["errors"] == []
    assert (found["done"], found["wrong"]) == (8 * steps, 0)
    assert found["changed"] == []
    assert found["different"] > 100, "too many of the expected maps are one and the same, which would prove little"


MEMORY = """
    import ctypes, gc, json, sys

    import torch
    from conftest import Regularised, images, live_tensors, seeded
    import sightline

    torch.set_num_threads(1)
    calls, windows = int(sys.argv[1]), 5
    methods, targets = [m for m, one in sorted(sightline.list_methods().items()) if one.needs == "gradients" and m != "eigengrad-cam"], [0, 1, 2, 3, 4, None, sightline.margin(1, 3)]
    model, x = seeded(Regularised).train(), images(2)

    def call(n):
        method, target = methods[n % len(methods)], targets[n % len(targets)]
        if n % 10 == 0:
            try:
                sightline.attribute(x, model, method=method, layer="relu2", target=99)
            except sightline.SightlineError:
                pass
        elif n % 10 == 1:
            capture = sightline.capture(x, model, layer="relu2")
            sightline.attribute(capture, model, method=method, target=target)
            sightline.attribute(capture, model, method=method, target=1)
        else:
            sightline.attribute(x, model, method=method, layer="relu2", target=target)

    class Statistics(ctypes.Structure):
        names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
        _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

    # With PYTHONMALLOC=malloc everything, Python's objects and tensors' numbers, comes from malloc, which counts bytes.
    count = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if count is not None:
        count.restype = Statistics

        def in_use():
            found = count()
            return found.uordblks + found.hblkhd
    else:  # not glibc: at least what Python allocates, and the number of tensors
        import tracemalloc

        tracemalloc.start(1)

        def in_use():
            return tracemalloc.get_traced_memory()[0]

    leak = []
    def measure():
        gc.collect()
        return in_use(), live_tensors()

    for n in range(calls // 10):  # fills every cache
        call(n)
    measured = [measure()]
    for window in range(windows):
        for n in range(calls // windows):
            call(n)
            if len(sys.argv) > 2:
                leak.append(bytes(int(sys.argv[2])))  # what the check must see
        measured.append(measure())
    print(json.dumps({
        "exact": count is not None,
        "slope": (measured[-1][0] - measured[0][0]) / (calls // windows * windows),
        "bytes": [used for used, _ in measured],
        "tensors": [number for _, number in measured],
    }))
"""


@pytest.mark.slow
def test_ten_thousand_calls_keep_less_than_twenty_bytes_each_and_no_tensor() -> None:
    found = _in_a_process(MEMORY, "10000", PYTHONMALLOC="malloc")
    assert found["slope"] < 20, found
    assert len(set(found["tensors"])) == 1, found


@pytest.mark.slow
def test_the_check_of_memory_sees_a_leak_of_forty_bytes_a_call() -> None:
    """A test of the test: an object of 8 bytes kept at each call takes some 40."""
    found = _in_a_process(MEMORY, "1000", "8", PYTHONMALLOC="malloc")
    if not found["exact"]:
        pytest.skip("only glibc counts the bytes in use exactly")
    assert found["slope"] > 20, found
