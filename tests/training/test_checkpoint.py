"""Checkpoints: whole or not at all, plain data or nothing, random states to the bit."""

import hashlib
import pickle
import random

import numpy as np
import pytest
import torch

from training import checkpoint
from training.checkpoint import CheckpointError


class Pickled:
    """Runs code when unpickled, as a hostile file would."""

    ran = False

    def __reduce__(self):
        return _run, ()


def _run():
    Pickled.ran = True
    return {}


def test_round_trip(tmp_path):
    state = {"a": torch.arange(4), "b": {"c": [1, 2.5, float("inf"), "text", None, True]}}
    checkpoint.save(tmp_path / "deep" / "last.pt", state)
    found = checkpoint.load(tmp_path / "deep" / "last.pt")
    assert torch.equal(found.pop("a"), state["a"])
    assert found == {"format": checkpoint.FORMAT, "b": state["b"]}


@pytest.mark.parametrize("stage", ["write", "flush", "rename"])
def test_a_failing_write_leaves_the_old_file(tmp_path, monkeypatch, stage):
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"step": 1})
    before = path.read_bytes()

    def fail(*arguments, **named):
        raise OSError(28, "No space left on device")

    def half(state, file):
        file.write(b"half")
        fail()

    with monkeypatch.context() as patch:
        patch.setattr(*{
            "write": (torch, "save", half), "flush": (checkpoint.os, "fsync", fail),
            "rename": (type(path), "replace", fail),
        }[stage])  # fmt: skip
        with pytest.raises(OSError, match="No space"):
            checkpoint.save(path, {"step": 2})
    assert path.read_bytes() == before and checkpoint.load(path)["step"] == 1
    assert [each.name for each in tmp_path.iterdir()] == ["last.pt"]


def test_pickled_code_is_refused_and_not_run(tmp_path):
    torch.save({"format": checkpoint.FORMAT, "evil": Pickled()}, tmp_path / "evil.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Pickled(), protocol=2))
    for name in ("evil.pt", "raw.pt"):
        with pytest.raises(CheckpointError, match=f"{name}: unreadable"):
            checkpoint.load(tmp_path / name)
    assert not Pickled.ran


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        checkpoint.load(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(CheckpointError, match="unreadable"):
        checkpoint.load(tmp_path / "text.pt")
    checkpoint.save(tmp_path / "cut.pt", {"a": torch.zeros(1000)})
    (tmp_path / "cut.pt").write_bytes((tmp_path / "cut.pt").read_bytes()[:2000])
    with pytest.raises(CheckpointError, match="unreadable"):
        checkpoint.load(tmp_path / "cut.pt")
    for foreign in ({"format": 99}, {"weights": torch.zeros(1)}, [1, 2]):
        torch.save(foreign, tmp_path / "foreign.pt")
        with pytest.raises(CheckpointError, match="not a checkpoint of format 1"):
            checkpoint.load(tmp_path / "foreign.pt")


def test_digest_is_sha256(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    assert checkpoint.digest(tmp_path / "file") == hashlib.sha256(b"abc").hexdigest()


def test_random_states_come_back_through_a_file(tmp_path):
    def draw():
        return [random.random(), random.gauss(0, 1), *np.random.randn(3), *torch.randn(3).tolist()]

    draw()  # leaves half a gaussian pair in Python's and in NumPy's generator
    checkpoint.save(tmp_path / "random.pt", checkpoint.random_state())
    expected = draw()
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    assert draw() != expected
    state = checkpoint.load(tmp_path / "random.pt")
    checkpoint.restore_random_state(state)
    assert draw() == expected
