"""From a folder of images to pictures over HTTP: train, export, serve; then a better version while the app runs."""

import asyncio
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from apiclient import client_of
from PIL import Image
from tinytraining import shrunk, tiny_run

from training.__main__ import main
from training.export import TrainedRun, export_run, read_run
from training.layers import to_pixels

SIDE = 16


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Colour images in two classes, two sizes: crosses and frames."""
    random = np.random.default_rng(0)
    for name in ("cross", "frame"):
        (tmp_path / "shapes" / name).mkdir(parents=True)
        for index in range(12):
            side = SIDE if index % 2 else 20
            image = random.integers(0, 60, (side, side, 3), dtype=np.uint8)
            if name == "cross":
                image[side // 2 - 1 : side // 2 + 1] = image[:, side // 2 - 1 : side // 2 + 1] = 220
            else:
                image[[0, -1]] = image[:, [0, -1]] = 220
            Image.fromarray(image).save(tmp_path / "shapes" / name / f"{index}.png")
    return tmp_path / "shapes"


def train(folder: Path, run: Path, kimg: float, *more: str) -> None:
    small = ("generator_width=4", "discriminator_width=4", "max_channels=8", "batch_size=8", "latent_dim=8")
    fields = [f"--set={field}" for field in (*small, "channels=3", "learning_rate=0.01")]
    command = ["train", "--family", "cgan", "--data", str(folder), "--run", str(run), "--size", str(SIDE)]
    assert main([*command, "--kimg", str(kimg), "--evaluate-kimg", "0", "--threads", "1", *fields, *more]) == 0


def export(run: Path, models: Path) -> TrainedRun:
    assert main(["export", "--run", str(run), "--name", "shapes-16", "--models", str(models)]) == 0
    return read_run(run)


async def assert_drawn_by(client, run: TrainedRun, model: str, served: str) -> np.ndarray:
    """The served pictures are those of the torch generator, within one level."""
    for seed, label in ((7, "frame"), (8, 0)):
        reply = await client.post("/generate", json={"model": model, "seed": seed, "label": label})
        assert (reply.status_code, reply.headers["content-type"]) == (200, "image/png"), reply.text
        assert (reply.headers["x-model"], reply.headers["x-seed"]) == (served, str(seed))
        picture = Image.open(io.BytesIO(reply.content))
        assert (picture.size, picture.mode) == ((SIDE, SIDE), "RGB")
        index = run.classes.index(label) if isinstance(label, str) else label
        expected = run.sample([seed], np.array([index]))[0]
        assert np.abs(np.asarray(picture).astype(int) - expected.astype(int)).max() <= 1
    return expected


@pytest.mark.slow
async def test_train_export_serve_and_replace(folder, tmp_path, capfd):
    torch.set_num_threads(1)
    run, models = tmp_path / "run", tmp_path / "models"
    train(folder, run, kimg=0.04)
    capfd.readouterr()
    first = export(run, models)
    assert capfd.readouterr().out == f"{models / 'shapes-16' / '1'}\n"  # for scripts: the folder and nothing else
    async with client_of(None, models=models, poll_models_s=0.05, profile_s=0, lanes=1) as client:
        described = (await client.get("/models/shapes-16")).json()
        assert described["version"] == 1 and described["family"] == "cgan"
        old = await assert_drawn_by(client, first, "shapes-16", "shapes-16@1")
        unknown = await client.post("/generate", json={"model": "shapes-16", "seed": 7, "label": "circle"})
        assert unknown.status_code == 422 and unknown.json()["field"] == "label"

        def improve() -> TrainedRun:
            train(folder, run, 0.08, "--resume")
            return export(run, models)

        second = await asyncio.to_thread(improve)
        while (await client.get("/models/shapes-16")).json()["version"] == 1:  # noqa: ASYNC110  # as a client sees it
            await asyncio.sleep(0.05)
        new = await assert_drawn_by(client, second, "shapes-16", "shapes-16@2")
        assert np.abs(new.astype(int) - old.astype(int)).max() > 1
        await assert_drawn_by(client, first, "shapes-16@1", "shapes-16@1")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["lapgan", "progan", "stylegan", "vae"])
async def test_families_of_several_graphs_are_served_as_they_were_trained(tmp_path, family):
    run = read_run(tiny_run(tmp_path / "run", family, shrunk(family)))
    (folder,) = export_run(run, tmp_path / "models", "tiny")
    async with client_of(None, models=tmp_path / "models", profile_s=0, lanes=1) as client:
        for seed in (7, 8):
            reply = await client.post("/generate", json={"model": "tiny", "seed": seed})
            assert reply.status_code == 200, reply.text
            picture = np.asarray(Image.open(io.BytesIO(reply.content))).astype(int)
            assert np.abs(picture - run.sample([seed])[0].astype(int)).max() <= 1
        described = (await client.get("/models/tiny")).json()
        assert described["image"] == {"height": 8, "width": 8, "channels": 3} and described["latent_dim"] == 8
        if family == "stylegan":
            means = [
                (await client.post("/generate", json={"model": "tiny", "seed": seed, "truncation": 0})).content
                for seed in (1, 2)
            ]
            pictures = [np.asarray(Image.open(io.BytesIO(data))) for data in means]
            np.testing.assert_array_equal(*pictures)
            with np.load(folder / "arrays.npz") as arrays:
                styles = torch.from_numpy(arrays["mean_w"]).expand(1, run.nets["generator"].style_layers, -1)
            expected = to_pixels(run.nets["generator"].synthesis(styles))[0].numpy().astype(int)
            assert np.abs(pictures[0].astype(int) - expected).max() <= 1
        if family == "vae":
            picture = io.BytesIO()
            Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 12, 3), dtype=np.uint8)).save(picture, "PNG")
            headers = {"content-type": "image/png"}
            reply = await client.post("/translate?model=tiny", content=picture.getvalue(), headers=headers)
            assert reply.status_code == 200, reply.text
            assert Image.open(io.BytesIO(reply.content)).mode == "RGB"
