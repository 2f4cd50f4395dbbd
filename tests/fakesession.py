"""A session and a lane that tests hold in their hands; both implement the real seams."""

import asyncio

import numpy as np

from service.errors import RunFailed
from service.manifest import GraphSpec, TensorSpec

SPEC = GraphSpec(
    file="fake.onnx",
    sha256="0" * 64,
    opset=20,
    inputs=(TensorSpec(name="x", kind="latent", dtype="float32", shape=("batch", "width")),),
    outputs=(TensorSpec(name="y", kind="latent", dtype="float32", shape=("batch", "width")),),
)

POISONS = ("raises", "nan", "short", "long", "shape", "dtype", "missing", "bug")
"""Ways in which a row's first number, -1 - index, makes the whole run go wrong."""


def rows(values, *, poison=None, width=2):
    """One request's rows: the numbers `values`, and where asked a poisoned last row."""
    x = np.repeat(np.asarray(values, np.float32)[:, None], width, axis=1)
    if poison is not None:
        x[-1] = -1 - POISONS.index(poison)
    return {"x": x}


def answers(inputs):
    """What an unpoisoned run answers, row by row."""
    return {"y": inputs["x"] * 2 + 1}


class FakeSession:
    """Doubles and adds one. Keeps the batches that it was given; fails once for every `hiccups`."""

    def __init__(self, spec=SPEC):
        self.spec = spec
        self.max_rows = None
        self.batches = []
        self.hiccups = 0

    def run(self, inputs, watch=None):
        self.batches.append(inputs["x"][:, 0].tolist())
        if self.hiccups:
            self.hiccups -= 1
            raise RunFailed("a hiccup")
        outputs = answers(inputs)
        for first in inputs["x"][:, 0]:
            if first < 0:
                outputs = self._poison(outputs, POISONS[int(-1 - first)])
        return outputs

    def _poison(self, outputs, kind):
        y = outputs.get("y", np.zeros((1, 2), np.float32))
        if kind == "raises":
            raise RunFailed("poisoned")
        if kind == "bug":
            raise ZeroDivisionError("a bug in a session")
        changed = {"nan": y * np.nan, "short": y[1:], "long": np.concatenate([y, y]), "shape": y[:, :1]}
        changed["dtype"] = y.astype(np.float64)
        return {} if kind == "missing" else {"y": changed[kind]}


class HeldLane:
    """Runs its job when told to, on the caller's thread."""

    def __init__(self, name):
        self.job = None
        self.closed = False

    def start(self, job):
        assert self.job is None and not self.closed, "a lane was given a job while it was busy or closed"
        self.job = job

    def finish(self):
        job, self.job = self.job, None
        job()

    def close(self, timeout_s):
        self.closed = True
        return self.job is None


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock stands still until the test moves it."""

    now_s = 1000.0

    def time(self):
        return self.now_s


async def settle(turns=8):
    """Let everything that can happen now happen."""
    for _ in range(turns):
        await asyncio.sleep(0)
