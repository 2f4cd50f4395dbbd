"""A run's directory: rows that stay JSON, grids, and progress for people."""

import io
import json

import numpy as np
import pytest
from pngreader import read_png

from training.runlog import Event, RunLog, grid, save_png, write_atomically


class Terminal(io.StringIO):
    def isatty(self):
        return True


def log_of(directory, out=None):
    return RunLog(directory, tensorboard=False, out=out or io.StringIO())


def rows(directory):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    lines = (directory / "stats.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def test_rows(tmp_path):
    log = log_of(tmp_path)
    log.stats(0.0641, {"loss": np.float32(0.5), "steps": 3})
    log.stats(1, {"kid": float("nan"), "fd": float("-inf")}, kind="evaluation")
    log.event(2, Event("collapse", "warning", "all alike", {"spread": 0.1}))
    assert rows(tmp_path) == [
        {"kimg": 0.064, "kind": "train", "loss": 0.5, "steps": 3.0},
        {"kimg": 1, "kind": "evaluation", "kid": None, "fd": None},
        {"kimg": 2, "kind": "event", "monitor": "collapse", "severity": "warning", "message": "all alike",
         "evidence": {"spread": 0.1}},
    ]  # fmt: skip
    assert log.out.getvalue() == "warning: collapse: all alike\n"


def test_resume_drops_what_came_after_the_checkpoint(tmp_path):
    log = log_of(tmp_path)
    for kimg in (0.5, 1.0, 1.5):
        log.stats(kimg, {"loss": kimg})
        log.event(kimg, Event("m", "info", "x", {}))
    with (tmp_path / "stats.jsonl").open("a") as file:
        file.write('{"kimg": 0.7, "los')  # killed while writing
    log_of(tmp_path).resume(1.0)
    assert [(row["kimg"], row["kind"]) for row in rows(tmp_path)] == [
        (0.5, "train"), (0.5, "event"), (1.0, "train"), (1.0, "event"),
    ]  # fmt: skip


def test_resume_of_a_run_without_rows(tmp_path):
    log_of(tmp_path).resume(3.0)
    assert not (tmp_path / "stats.jsonl").exists()


def test_recipe_json(tmp_path):
    log_of(tmp_path).recipe({"family": "gan", "recipe": {"size": 28}})
    assert json.loads((tmp_path / "recipe.json").read_text()) == {"family": "gan", "recipe": {"size": 28}}


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_puts_each_image_in_its_place(channels):
    images = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1) + np.zeros((5, 4, 3, channels), np.uint8)
    sheet = grid(images, columns=2, gap=1)
    assert sheet.shape == (3 * 5 + 1, 2 * 4 + 1, channels) and sheet.dtype == np.uint8
    for index in range(5):
        y, x = 1 + index // 2 * 5, 1 + index % 2 * 4
        assert (sheet[y : y + 4, x : x + 3] == index).all()
        sheet[y : y + 4, x : x + 3] = 255
    assert (sheet == 255).all()  # gaps and the place left over are white


@pytest.mark.parametrize("channels", [1, 3])
def test_png(tmp_path, channels):
    image = np.random.default_rng(0).integers(0, 256, (3, 5, channels), dtype=np.uint8)
    save_png(tmp_path / "image.png", image, zoom=2)
    found, _ = read_png((tmp_path / "image.png").read_bytes())
    np.testing.assert_array_equal(found, image.repeat(2, axis=0).repeat(2, axis=1))


def test_samples_are_named_by_kimg(tmp_path):
    log_of(tmp_path).samples(12.345, np.zeros((3, 4, 4, 1), np.uint8))
    assert [path.name for path in (tmp_path / "samples").iterdir()] == ["0000012.3.png"]


def test_writes_are_atomic(tmp_path, monkeypatch):
    path = tmp_path / "recipe.json"
    write_atomically(path, b"old")

    def fail(self, data):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(type(path), "write_bytes", fail)
        with pytest.raises(OSError, match="disk full"):
            write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


def test_a_file_gets_a_line_each_a_terminal_one_that_is_rewritten(tmp_path):
    plain, terminal = io.StringIO(), Terminal()
    for out in (plain, terminal):
        log = log_of(tmp_path, out)
        log.progress(1.0, 10.0, {"loss": 0.5})
        log.progress(2.0, 10.0, {"loss": 0.25})
        log.say("done")
    assert [line.split() for line in plain.getvalue().splitlines()][1][:2] == ["2.0/10", "kimg"]
    assert "loss 0.25" in plain.getvalue() and plain.getvalue().count("\n") == 3
    assert terminal.getvalue().count("\n") == 1 and terminal.getvalue().count("\r\x1b[2K") == 3


def test_a_line_tells_what_is_left_of_images_or_of_time(tmp_path):
    out = io.StringIO()
    log = log_of(tmp_path, out)
    log.progress(0.1, 0.04, {})
    log.progress(1.0, None, {}, 90.0)
    over, timed = out.getvalue().splitlines()
    assert "0.1/0.0 kimg" in over and "0:00:00 left" in over
    assert "1.0 kimg" in timed and "/" not in timed.split("img/s")[0] and "0:01:30 left" in timed


def test_tensorboard_events(tmp_path):
    log = RunLog(tmp_path, out=io.StringIO())
    log.stats(1.0, {"loss": 0.5})
    log.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"train/loss" in events.read_bytes()
