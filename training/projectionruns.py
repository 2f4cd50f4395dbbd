"""The commands about projection: `encoder` learns one beside a StyleGAN run, `project` refines a latent by gradient."""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from service.engine.latents import latents_from_seeds
from training import export as exporting
from training.arguments import count
from training.datasets import DataError, ImageSet
from training.datasets.decode import Refused, decode
from training.datasets.resize import fit
from training.layers import from_pixels, to_pixels
from training.projection import (
    BATCH,
    PASSES,
    STEPS,
    encode,
    psnr_db,
    read_encoder,
    refine,
    save_encoder,
    space_of,
    train_encoder,
)
from training.runlog import save_png, write_atomically

DataOf = Callable[[exporting.TrainedRun, argparse.Namespace], ImageSet]

JUDGED = 256
"""Held-out images, at most, that say how near an encoder comes."""


def encoder_run(argv: Sequence[str], data_of: DataOf) -> int:
    """`python -m training encoder`.

    Args:
        data_of: reads the run's data set.
    """
    parser = argparse.ArgumentParser(prog="python -m training encoder")
    parser.add_argument("--run", required=True, help="the run's directory")
    parser.add_argument("--checkpoint", default="last", choices=("last", "best"), help="the one that will be exported")
    parser.add_argument("--steps", type=count(1), default=STEPS, help=f"of {BATCH} images (default: {STEPS})")
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--data", help="the data set, where it is not the one that the run was trained on")
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--threads", type=count(1), default=torch.get_num_threads())
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    run = exporting.read_run(Path(args.run), args.checkpoint)
    space, started = space_of(run.nets["generator"]), time.monotonic()
    data = data_of(run, args)
    encoder = train_encoder(
        run.nets["generator"], run.recipe, data.train, steps=args.steps, batch=args.batch, seed=run.facts["seed"],
        say=print,
    )  # fmt: skip
    judged = from_pixels(torch.from_numpy(data.test[:JUDGED]))
    facts: dict[str, float] = {"steps": args.steps, "seconds": time.monotonic() - started, "images": len(judged)}
    for passes in (1, PASSES, 2 * PASSES):
        with torch.no_grad():
            parts = [space.draw(encode(space, encoder, part, passes)).clamp(-1, 1) for part in judged.split(32)]
            errors = (torch.cat(parts) - judged).square().mean(dim=(1, 2, 3))
        facts[f"psnr_db_{passes}"] = float(psnr_db(errors).mean())
        print(f"held-out images after {passes} passes: {facts[f'psnr_db_{passes}']:.2f} dB")
    save_encoder(run.directory, encoder, run.digest, facts)
    print(f"{run.directory / 'encoder.pt'}: `export` takes it along")
    return 0


def project_run(argv: Sequence[str]) -> int:
    """`python -m training project`.

    Raises:
        DataError: the picture cannot be read.
    """
    parser = argparse.ArgumentParser(prog="python -m training project")
    parser.add_argument("--run", required=True, help="the run's directory")
    parser.add_argument("--image", required=True, help="the picture; cropped about its centre to the model's shape")
    parser.add_argument("--out", required=True, help="a folder for latents.npy, target.png and reconstruction.png")
    parser.add_argument("--checkpoint", default="last", choices=("last", "best"))
    parser.add_argument(
        "--steps", type=count(0), default=300, help="of gradient descent; 0 leaves what the encoder finds"
    )
    parser.add_argument("--passes", type=count(1), default=2 * PASSES, help="of the encoder, where the run has one")
    parser.add_argument("--threads", type=count(1), default=torch.get_num_threads())
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    run = exporting.read_run(Path(args.run), args.checkpoint)
    space = space_of(run.nets["generator"])
    picture = read_picture(Path(args.image), run.recipe.size, run.recipe.channels)
    target = from_pixels(torch.from_numpy(picture[None]))
    encoder = read_encoder(run.directory, run.digest, run.recipe, space.layers)
    if encoder is None:
        print("the run has no encoder for these weights: beginning at the best of 256 seeds")
        start = _nearest_seed(run, target)
    else:
        start = encode(space, encoder, target, args.passes)
    styles = refine(space, target, start, steps=args.steps, say=print)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    np.save(out / "latents.npy", styles.numpy())
    with torch.no_grad():
        drawn = to_pixels(space.draw(styles).clamp(-1, 1)).numpy()[0]
    save_png(out / "target.png", picture)
    save_png(out / "reconstruction.png", drawn)
    error = float(np.mean(np.square(drawn.astype(float) - picture.astype(float))))
    decibels = 99.0 if error == 0 else 10 * float(np.log10(255**2 / error))
    told = {"checkpoint": run.digest, "steps": args.steps, "psnr_db": decibels, "space": "w+"}
    write_atomically(out / "projection.json", json.dumps(told, indent=1).encode() + b"\n")
    print(f"{out}: {decibels:.2f} dB; latents.npy goes to POST /generate with space=w+")
    return 0


def read_picture(path: Path, size: int, channels: int) -> np.ndarray:
    """A picture as a model draws: upright, on white, cropped about its centre; [size, size, channels] uint8.

    Raises:
        DataError: missing, or no picture.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        return fit(decode(raw).image, size, channels).copy()
    except Refused as refused:
        raise DataError(f"{path}: cannot be read as a picture ({refused.kind})") from None


@torch.no_grad()
def _nearest_seed(run: exporting.TrainedRun, target: torch.Tensor) -> torch.Tensor:
    """Styles [1, layers, D] of the seed, of 256, whose picture is nearest."""
    space = space_of(run.nets["generator"])
    w = space.generator.mapping(torch.from_numpy(latents_from_seeds(range(256), run.recipe.latent_dim)))
    styles = (space.mean + 0.7 * (w - space.mean))[:, None].expand(-1, space.layers, -1)
    errors = [(space.draw(part).clamp(-1, 1) - target).square().mean(dim=(1, 2, 3)) for part in styles.split(32)]
    nearest = int(torch.cat(errors).argmin())
    found: torch.Tensor = styles[nearest : nearest + 1].clone()
    return found
