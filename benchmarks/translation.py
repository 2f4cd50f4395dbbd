"""Our Pix2Pix or CycleGAN beside the authors' own PyTorch code: the same images, the same CPU time, one thread each.

    python benchmarks/translation.py pix2pix --peer CHECKOUT --minutes 6 [--append benchmarks/RESULTS.md]

Pix2Pix colours sketches of drawn faces, CycleGAN turns flat emoji into shaded ones and back. CHECKOUT is a copy of
junyanz/pytorch-CycleGAN-and-pix2pix (a fork will do whose `models` and `options` are those); `--python` an interpreter
that has torch and numpy, if not this one. The figures are those of `python -m training evaluate`, on held-out images
that neither has seen.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.race import table
from benchmarks.server import write_down
from training.datasets import PairOptions, load_pairs
from training.datasets.pairs import Pairs, examples
from training.evaluation.pairwise import TITLES, compare_all
from training.evaluation.psnr import psnr
from training.export import read_run
from training.pairruns import find_weights
from training.trainer import translate

ROOT = Path(__file__).resolve().parents[1]
SHOWN = 20_000
"""Pairs that are made for the peer; more than it gets through."""
SIZE = 64
JOBS = {
    "pix2pix": ["--family", "pix2pix", "--recipe", "sketch", "--data", "faces"],
    "cycle_gan": [
        "--family", "cyclegan", "--data", "emoji-flat,emoji", "--set", "generator_width=16",
        "--set", "discriminator_width=24", "--set", "residual_blocks=4", "--set", "output=shade",
        "--set", "condition_noise=0.05", "--set", "cycle_weight=5", "--set", "identity_weight=1",
    ],
}  # fmt: skip
PEER = ["--netG", "resnet_6blocks", "--loadSize", str(SIZE), "--fineSize", str(SIZE)]
"""Theirs for images of 64 px; everything else is at its defaults."""


def main(argv: list[str] | None = None) -> int:
    """Train both, one after the other, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("--peer", required=True, type=Path)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--minutes", type=float, default=6.0, help="of CPU time, each")
    parser.add_argument("--samples", type=int, default=160)
    parser.add_argument("--keep", type=Path, help="where runs and answers stay")
    parser.add_argument("--append", type=Path)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        rows = _race(args, folder)
    text = f"{args.minutes:g} minutes of CPU time and one thread each; {args.samples} held-out images.\n\n{rows}"
    write_down(f"Translation, our {args.job} beside the authors' code", text, args.append)
    return 0


def _race(args: argparse.Namespace, folder: Path) -> str:
    _train(args, folder, JOBS[args.job])
    ours = read_run(folder / "ours")
    find_weights("data")
    options = PairOptions(degradation=ours.recipe.degradation, size=SIZE, mirror=True)
    data = load_pairs(ours.facts["data"]["source"], options, ours.family.pairing, root=Path("data"))
    test_a, test_b = examples(data.test, min(args.samples, len(data.test)))
    _peer(args, folder, data.train, test_a, test_b)
    theirs = np.load(folder / "theirs.npz")
    names = {
        "Ganymede": f"{ours.images_seen / 1000:.1f} kimg",
        "the authors'": f"{int(theirs['shown']) / 1000:.1f} kimg",
    }
    multiple, generator = 2**ours.recipe.downsamplings, ours.nets["generator"]
    if args.job == "pix2pix":
        answers = {"Ganymede": translate(generator, test_a, multiple), "the authors'": theirs["b"], "the input": test_a}
        found = compare_all(answers, dict.fromkeys(answers, test_b))
        return _rows({row.name: {TITLES[key]: value for key, value in row.metrics.items()} for row in found}, names)
    there = translate(generator.a2b, test_a, multiple), translate(generator.b2a, test_b, multiple)
    back = translate(generator.b2a, there[0], multiple), translate(generator.a2b, there[1], multiple)
    judged = {"Ganymede": (*there, *back), "the authors'": tuple(theirs[key] for key in ("b", "a", "back_a", "back_b"))}
    ways: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # each answer, and the set that it is to look like
    for name, (b, a, *_) in [*judged.items(), ("the input", (test_a, test_b))]:
        ways |= {f"{name} there": (b, test_b), f"{name} back": (a, test_a)}
    answers, targets = ({way: pair[side] for way, pair in ways.items()} for side in (0, 1))
    kernel = {row.name: row.metrics["kid_lite0"] for row in compare_all(answers, targets, paired=False)}
    figures = {
        name: {f"KID-lite0 {way}": kernel[f"{name} {way}"] for way in ("there", "back")}
        for name in [*judged, "the input"]
    }
    for name, (_, _, back_a, back_b) in judged.items():
        # Of all pixels together: images that come back exactly would make a mean of decibels infinite.
        came, went = (
            np.concatenate(pair)[None].reshape(1, -1, SIZE, 3) for pair in ((back_a, back_b), (test_a, test_b))
        )
        figures[name]["cycle PSNR, dB"] = float(psnr(came, went)[0])
    return _rows(figures, names)


def _train(args: argparse.Namespace, folder: Path, command: list[str]) -> None:
    subprocess.run(
        [sys.executable, "-m", "training", "train", *command, "--size", str(SIZE), "--run", str(folder / "ours"),
         "--threads", "1", "--clock", "cpu", "--within", str(args.minutes), "--evaluate-kimg", "0"],
        check=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def _peer(args: argparse.Namespace, folder: Path, pairs: Pairs, test_a: np.ndarray, test_b: np.ndarray) -> None:
    count = min(SHOWN, len(pairs))
    a, b = pairs.draw(np.arange(count), np.zeros(count, np.int64))
    np.savez(folder / "given.npz", a=a, b=b, test_a=test_a, test_b=test_b)
    subprocess.run(
        [args.python, str(ROOT / "benchmarks/peers/with_pix2pix.py"), args.job, str((folder / "given.npz").absolute()),
         str((folder / "theirs.npz").absolute()), str(args.minutes * 60), *PEER],
        check=True, cwd=args.peer,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(args.peer.absolute())},
    )  # fmt: skip


def _rows(figures: dict[str, dict[str, float]], names: dict[str, str]) -> str:
    columns = list(next(iter(figures.values())))
    return table(
        ["", "shown", *columns],
        [
            [name, names.get(name, ""), *(f"{row[key]:.4g}" if key in row else "" for key in columns)]
            for name, row in figures.items()
        ],
    )


if __name__ == "__main__":
    sys.exit(main())
