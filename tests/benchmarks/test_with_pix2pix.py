"""The driver of the authors' Pix2Pix and CycleGAN, over a stand-in for their code: pairs stay pairs; it answers."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

DRIVER = Path(__file__).resolve().parents[2] / "benchmarks/peers/with_pix2pix.py"
OPTIONS = """
import argparse, torchvision.transforms
class TrainOptions:
    def parse(self):
        parser = argparse.ArgumentParser()
        for name in ("--dataroot", "--model", "--gpu_ids", "--checkpoints_dir", "--netG"):
            parser.add_argument(name)
        return parser.parse_args()
"""
MODELS = """
import torch
class Model:
    def __init__(self):
        self.netG = self.netG_A = self.netG_B = torch.nn.Conv2d(3, 3, 1)
        self.optimizers = [torch.optim.SGD(self.netG.parameters(), lr=0.1)]
    def setup(self, options):
        assert options.netG == "theirs"
    def set_input(self, given):
        self.a, self.b = given["A"], given["B"]
        assert self.a.shape == self.b.shape == (1, 3, 8, 8) and self.a.abs().max() <= 1
        assert torch.allclose(self.a, -self.b, atol=1e-5), "a pair was torn apart"
    def optimize_parameters(self):
        loss = (self.netG(self.a) - self.b).square().mean()
        self.optimizers[0].zero_grad()
        loss.backward()
        self.optimizers[0].step()
def create_model(options):
    return Model()
"""


@pytest.mark.parametrize("kind", ["pix2pix", "cycle_gan"])
def test_trains_theirs_and_answers(tmp_path, kind):
    for name, text in (("options/train_options", OPTIONS), ("models/__init__", MODELS)):
        file = tmp_path / "peer" / f"{name}.py"
        file.parent.mkdir(parents=True)
        file.write_text(text)
    random = np.random.default_rng(0)
    shape = (1 if kind == "cycle_gan" else 16, 8, 8, 3)  # unpaired images are drawn apart: with one, they are a pair
    a, test = random.integers(0, 256, shape, np.uint8), random.integers(0, 256, (5, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "in.npz", a=a, b=255 - a, test_a=test, test_b=255 - test)
    subprocess.run(
        [sys.executable, str(DRIVER), kind, "in.npz", "out.npz", "2", "--netG=theirs"], cwd=tmp_path,
        check=True, env={**os.environ, "PYTHONPATH": str(tmp_path / "peer")}, timeout=120,
    )  # fmt: skip
    found = np.load(tmp_path / "out.npz")
    assert found["shown"] > 20 and found["b"].shape == test.shape and found["b"].dtype == np.uint8
    far = np.abs(found["b"].astype(int) - (255 - test)).mean()
    assert far < 40, f"nothing was learnt: the answers are {far:.0f} levels off"
    assert ("back_a" in found.files) == (kind == "cycle_gan")
