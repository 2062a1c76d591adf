"""Pictures read in processes of their own: while the model computes, and so that a file that hangs or kills a decoder costs one picture.

A process gets names and words, and hands back numbers: nothing that it says is run.
"""

from __future__ import annotations

import ctypes
import dataclasses
import io
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import prod
from multiprocessing import ProcessError
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sightline.data.images import read_image
from sightline.data.sets import fetch
from sightline.errors import ImageError, OutputError, SightlineError
from sightline.models.preprocess import Preprocess, enough, prepared, specification, standard
from sightline.models.view import View

TIMEOUT_S = 60.0
THUMBNAIL = 96
_AHEAD = 3  # batches that are read while one is computed
_LONGEST = 1_000_000_000
_MOST_HELD = 1_000_000_000  # bytes of pictures up to which more than what is waited for is read
_LONG_S = 300.0
_STARTS = 3  # processes in a row that may end before they read anything
_DEATH_OF_PARENT = 1  # PR_SET_PDEATHSIG


@dataclass(frozen=True, eq=False)
class Picture:
    """One picture, ready for the model.

    Attributes:
        x: (C, H, W).
        view: how the photograph became that.
        notes: what was done to it while it was read.
        thumbnail: a small JPEG of it.
    """

    x: Tensor
    view: View
    notes: tuple[str, ...]
    thumbnail: bytes


@dataclass(frozen=True)
class Failure:
    """Why there is no result for a picture: at which stage, what kind of error, and its message."""

    stage: str
    error: str
    message: str


@dataclass(frozen=True)
class Task:
    """Where one picture's bytes are; see `data.sets.fetch`."""

    file: str
    at: int
    size: int
    problem: str | None = None


def read_picture(
    kind: str, root: str, task: Task, preprocess: Preprocess | None
) -> tuple[Any, View | None, Any, bytes]:
    """The input, the view, what is known of the picture and its thumbnail; without `preprocess` the pixels (H, W, 3) themselves.

    Raises:
        SightlineError: it can't be read, or not be prepared.
    """
    if task.problem:
        raise ImageError(f"{task.file} {task.problem}")
    source = fetch(kind, root, task.file, task.at, task.size)
    need = None if preprocess is None else partial(enough, preprocess)
    photo, meta = read_image(source, enough=need)
    small = photo.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    if preprocess is None:
        return np.asarray(photo), None, meta, buffer.getvalue()
    x, view = prepared(preprocess, photo, meta["size"])
    return x, view, meta, buffer.getvalue()


class Decoders:
    """Processes that read pictures ahead of whoever computes with them; leave with `close`, or use it in `with`."""

    def __init__(
        self, kind: str, root: str, preprocess: Preprocess, *, workers: int = 0, timeout_s: float = TIMEOUT_S
    ) -> None:
        """
        Args:
            kind: of the source.
            root: of the source.
            preprocess: of the model. What `standard` made runs in the processes, any other function in this one.
            workers: how many processes; 0 for one a core.
            timeout_s: after which a picture that is still being read is given up.
        """
        spec = specification(preprocess)
        self._own = preprocess
        self._told = {"kind": kind, "root": root, "standard": spec, "timeout_s": timeout_s}
        self._timeout_s = timeout_s
        self._count = workers or os.cpu_count() or 1
        self._workers: list[_Worker] = []
        self._waiting: deque[tuple[int, Task]] = deque()
        self._done: dict[int, Picture | Failure | _Pixels] = {}
        self._held = 0  # bytes in it
        self._wanted = 0  # the pictures before this one are waited for
        self._changed = threading.Condition()
        self._ended = False
        self._failed: BaseException | None = None
        self._lost_at_start = 0.0
        self._wake, self._woken = _pair()
        self._thread = threading.Thread(target=self._pump, name="sightline decoders", daemon=True)
        self._thread.start()

    def __enter__(self) -> Decoders:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the processes."""
        with self._changed:
            self._ended = True
        self._call()
        self._thread.join()
        self._wake.close()

    def batches(self, groups: Iterable[Sequence[Task]]) -> Iterator[list[Picture | Failure]]:
        """The pictures of each group, in order, while those of the next ones are being read."""
        number = 0
        asked: deque[range] = deque()
        for group in groups:
            with self._changed:
                self._waiting.extend(enumerate(group, number))
            self._call()
            asked.append(range(number, number + len(group)))
            number += len(group)
            if len(asked) > _AHEAD:
                yield self._taken(asked.popleft())
        while asked:
            yield self._taken(asked.popleft())

    def _call(self) -> None:
        with suppress(OSError):  # the thread has ended, and why will be raised where its pictures are waited for
            self._wake.send_bytes(b"")

    def _taken(self, numbers: range) -> list[Picture | Failure]:
        with self._changed:
            self._wanted = numbers.stop
        self._call()
        with self._changed:
            while self._failed is None and not all(number in self._done for number in numbers):
                self._changed.wait(1.0)  # with a limit, so that Ctrl-C is heard
            if self._failed is not None:
                raise self._failed
            found = [self._done.pop(number) for number in numbers]
            self._held -= sum(map(_bytes_of, found))
        return [self._finished(one) if isinstance(one, _Pixels) else one for one in found]

    def _finished(self, one: _Pixels) -> Picture | Failure:
        """A picture prepared here, by a function that no other process can be told of."""
        try:
            x, view = self._own(Image.fromarray(one.pixels))
        except Exception as error:  # it is the user's own
            return Failure("prepare", type(error).__name__, str(error))
        return Picture(x, view, one.notes, one.thumbnail)

    def _pump(self) -> None:
        """The thread that hands out tasks and takes in pictures."""
        try:
            while True:
                with self._changed:
                    if self._ended:
                        return
                    wanted = min(self._count, len(self._waiting) + sum(one.busy for one in self._workers))
                while len(self._workers) < wanted:
                    self._workers.append(_Worker(self._told, self._timeout_s))
                for one in self._workers:
                    with self._changed:
                        while one.ready and len(one.tasks) < 2 and self._may_give() and one.give(*self._waiting[0]):
                            self._waiting.popleft()
                now = time.monotonic()
                soon = min((one.ends(self._timeout_s) for one in self._workers), default=now + _LONG_S)
                links = [self._woken, *(one.link for one in self._workers)]
                ready = wait(links, min(_LONG_S, max(0.0, soon - now)))
                if self._woken in ready:
                    self._woken.recv_bytes()
                for one in list(self._workers):
                    if one.link in ready:
                        self._hear(one)
                    elif one.ends(self._timeout_s) <= time.monotonic():
                        what = f"still not read after {self._timeout_s:g} s"
                        self._lost(one, Failure("read", "Timeout", f"the picture is {what}; it may be broken"))
        except BaseException as error:
            if isinstance(error, OSError) and not isinstance(error, OutputError):
                error = OutputError(f"the processes that read pictures can't be started: {error.strerror or error}")
            with self._changed:
                self._failed = error
                self._changed.notify_all()
        finally:
            for one in self._workers:
                one.end()
            self._woken.close()

    def _may_give(self) -> bool:
        """Whether there is a picture to be read, and room for it or somebody who waits for it."""
        return bool(self._waiting) and (self._held < _MOST_HELD or self._waiting[0][0] < self._wanted)

    def _hear(self, one: _Worker) -> None:
        try:
            number, found = one.hear()
        except BlockingIOError:
            self._lost(
                one, Failure("read", "Timeout", f"half of the picture came, and no more for {self._timeout_s:g} s")
            )
            return
        except (EOFError, OSError, ValueError, KeyError, TypeError, MemoryError, ProcessError):
            self._lost(
                one, Failure("read", "Crash", f"the picture ended the process that read it ({one.how_it_ended()})")
            )
            return
        if number is None:
            self._lost_at_start = 0.0
            return
        with self._changed:
            self._done[number] = found
            self._held += _bytes_of(found)
            self._changed.notify_all()

    def _lost(self, one: _Worker, why: Failure) -> None:
        """A process is gone or is given up: the picture it was at is lost, what it had not begun is for another."""
        said = "" if one.ready else one.said()
        killed = not one.ready and one.how_it_ended().startswith("SIG")
        one.end()
        self._workers.remove(one)
        if not one.ready:
            # One that was killed may have been in the way of something else, which says less of those that come.
            self._lost_at_start += 0.1 if killed else 1
            if self._lost_at_start >= _STARTS:
                raise OutputError(f"the processes that read pictures can't be started: {said}")
        with self._changed:
            if one.tasks:
                number, _ = one.tasks.popleft()
                self._done[number] = why
            self._waiting.extendleft(reversed(one.tasks))
            self._changed.notify_all()


@dataclass(frozen=True, eq=False)
class _Pixels:
    pixels: np.ndarray[Any, Any]
    notes: tuple[str, ...]
    thumbnail: bytes


def _bytes_of(found: Picture | Failure | _Pixels) -> int:
    if isinstance(found, Failure):
        return 0
    return found.x.nbytes if isinstance(found, Picture) else found.pixels.nbytes


class _Worker:
    """One process, the link to it, and the pictures that it was given and has not answered."""

    def __init__(self, told: Mapping[str, Any], patience_s: float) -> None:
        self.link, theirs = _pair(patience_s)
        self.tasks: deque[tuple[int, Task]] = deque()
        self.ready = False
        self._since = time.monotonic()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                # -P: where the user happens to stand, there may be files of anybody, and no module is taken from there.
                [sys.executable, "-P", "-m", "sightline.batch.decode", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                start_new_session=True,  # Ctrl-C is for the one that computes
            )
        except BaseException:
            self.link.close()
            self._errors.close()
            raise
        finally:
            theirs.close()
        with suppress(OSError):  # it is gone already, which is found out where it is listened to
            self.link.send_bytes(json.dumps(told).encode())

    @property
    def busy(self) -> int:
        return len(self.tasks)

    def give(self, number: int, task: Task) -> bool:
        """Whether it could be given: a process that is gone takes nothing, and is found out where it is listened to."""
        try:
            self.link.send_bytes(json.dumps(dataclasses.astuple(task)).encode("utf-8", "surrogatepass"))
        except OSError:
            return False
        if not self.tasks:
            self._since = time.monotonic()
        self.tasks.append((number, task))
        return True

    def ends(self, timeout_s: float) -> float:
        """When it is given up, if nothing is heard from it."""
        if not self.ready:
            return self._since + _LONG_S
        return self._since + timeout_s if self.tasks else time.monotonic() + _LONG_S

    def hear(self) -> tuple[int | None, Any]:
        """The number of a picture and what came of it; no number where it has only begun to listen.

        Raises:
            EOFError: it is gone.
            BlockingIOError: it fell silent in the middle.
        """
        said = json.loads(self.link.recv_bytes(_LONGEST))
        if said == "ready":
            self.ready = True
            return None, None
        found: Any
        if "failure" in said:
            found = Failure(*(str(one)[:2000] for one in said["failure"]))
        else:
            shape = [int(side) for side in said["shape"]]
            if not 0 < prod(shape) < _LONGEST:
                raise EOFError  # nonsense
            values = np.empty(shape, np.float32 if said["view"] else np.uint8)
            self.link.recv_bytes_into(values.reshape(-1).view(np.uint8))
            thumbnail = self.link.recv_bytes(_LONGEST)
            notes = tuple(str(one) for one in said["notes"])
            found = (
                Picture(torch.from_numpy(values), View(*map(tuple, said["view"])), notes, thumbnail)
                if said["view"]
                else _Pixels(values, notes, thumbnail)
            )
        number, _ = self.tasks.popleft()
        self._since = time.monotonic()
        return number, found

    def how_it_ended(self) -> str:
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            return "it answers nonsense"
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def said(self) -> str:
        self._errors.seek(0)
        return self._errors.read().decode("utf-8", "replace").strip()[-500:] or self.how_it_ended()

    def end(self) -> None:
        self.link.close()
        self._process.kill()
        self._process.wait()
        self._errors.close()


def _pair(patience_s: float = 0) -> tuple[Connection, Connection]:
    """Two ends; the first waits no longer than that for the rest of what the other began to say, 0 is for ever."""
    one, other = socket.socketpair()
    seconds = min(patience_s, _LONGEST)
    wait_for = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
    for which in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        one.setsockopt(socket.SOL_SOCKET, which, wait_for)
    return Connection(one.detach()), Connection(other.detach())


def _serve(link: Connection) -> None:
    """A process that reads pictures until whoever asks for them is gone."""
    torch.set_num_threads(1)
    os.nice(10)
    if sys.platform == "linux":  # elsewhere one that hangs outlives by its alarm whoever was killed
        ctypes.CDLL(None).prctl(_DEATH_OF_PARENT, signal.SIGKILL)
    told = json.loads(link.recv_bytes())
    spec = told["standard"]
    preprocess = None if spec is None else standard(**{key: _tuples(value) for key, value in spec.items()})
    link.send_bytes(b'"ready"')
    while True:
        try:
            asked = link.recv_bytes()
        except EOFError:
            return
        # Its own end, should nobody be left to end it; a decoder that hangs hears no Python.
        signal.alarm(int(min(told["timeout_s"], _LONGEST)) + 30)
        answers = _answers(told["kind"], told["root"], Task(*json.loads(asked)), preprocess)
        signal.alarm(0)
        try:
            for part in answers:
                link.send_bytes(part)
        except OSError:
            return


def _answers(kind: str, root: str, task: Task, preprocess: Preprocess | None) -> list[Any]:
    try:
        x, view, meta, thumbnail = read_picture(kind, root, task, preprocess)
    except SightlineError as error:
        return [_json({"failure": ["read", type(error).__name__, str(error)]})]
    except MemoryError:
        return [_json({"failure": ["read", "MemoryError", "the picture needs more memory than there is"]})]
    except Exception as error:  # of Pillow, about a size that it can't scale to
        return [_json({"failure": ["prepare", type(error).__name__, str(error)]})]
    values = np.ascontiguousarray(x)
    said = {
        "shape": values.shape,
        "view": None if view is None else dataclasses.astuple(view),
        "notes": meta["notes"],
    }
    return [_json(said), values.reshape(-1).view(np.uint8).data, thumbnail]


def _json(content: Any) -> bytes:
    return json.dumps(content).encode()


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))
