"""The commands that need torch, such as `train`, `evaluate`, `export`. They only join the parts."""

import argparse
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from service.errors import GanymedeError
from training import checkpoint
from training import export as exporting
from training.arguments import count, device, number
from training.datasets import DataError, ImageSet, PairSet, channels_of, load
from training.evaluationruns import evaluation_run
from training.exported import adopt, teach_grown
from training.families import FAMILIES
from training.family import Family
from training.features import FeaturesUnavailable
from training.losses import OBJECTIVES, with_objective
from training.monitors import watchers
from training.pairruns import find_weights, pair_trainer, say_report
from training.projectionruns import encoder_run, project_run
from training.recipe import Recipe, RecipeError
from training.runlog import RunLog, write_atomically
from training.trainer import CLOCKS, Trainer, TrainOptions, source_commit

EXPECTED = (
    RecipeError, DataError, GanymedeError, checkpoint.CheckpointError, exporting.ExportError, FeaturesUnavailable
)  # fmt: skip
"""Errors of input: shown as one line, without a traceback."""


def train(argv: Sequence[str]) -> int:
    """`python -m training train`: train a family on a data set into a run directory."""
    return _guarded("train", _train, argv)


def evaluate(argv: Sequence[str]) -> int:
    """`python -m training evaluate`: judge a run, or an exported model, on held-out images."""
    return _guarded("evaluate", lambda given: evaluation_run(given, _data_of), argv)


def recolour(argv: Sequence[str]) -> int:
    """`python -m training recolour`: fit the colours of a run's palette, into a run of its own."""
    return _guarded("recolour", _recolour, argv)


def export(argv: Sequence[str]) -> int:
    """`python -m training export`: write a run's generator into the models' folder."""
    return _guarded("export", _export, argv)


def encoder(argv: Sequence[str]) -> int:
    """`python -m training encoder`: learn an encoder beside a finished StyleGAN run."""
    return _guarded("encoder", lambda given: encoder_run(given, _data_of), argv)


def project(argv: Sequence[str]) -> int:
    """`python -m training project`: a picture to the latent that draws it, refined by gradient."""
    return _guarded("project", project_run, argv)


def rewrite(argv: Sequence[str]) -> int:
    """`python -m training rewrite`: a new version of an exported model whose graphs take less computation."""
    from training.rewriteruns import rewrite_run  # here: only it needs ONNX

    return _guarded("rewrite", rewrite_run, argv)


def directions(argv: Sequence[str]) -> int:
    """`python -m training directions`: directions of an exported model, learnt from attributes of real images."""
    from training.directionruns import directions_run  # here: only it needs ONNX Runtime

    return _guarded("directions", directions_run, argv)


def families(argv: Sequence[str]) -> int:
    """`python -m training families`: list what there is."""
    argparse.ArgumentParser(prog="python -m training families").parse_args(argv)
    for family in FAMILIES.values():
        needs = {"none": "needs labels" if family.conditional else "", "paired": "needs pairs, or makes them"}
        about = needs.get(family.pairing, "needs two sets")
        print(f"{family.name:<10} {family.paper}{f'  ({about})' if about else ''}")
        for name, recipe in family.recipes.items():
            label = f"{recipe.size} px, {recipe.objective}, {recipe.total_kimg:.0f} kimg, batch {recipe.batch_size}"
            print(f"    {name:<8} {label}")
    print("\nobjectives for each (--objective): " + ", ".join(OBJECTIVES))
    return 0


def _train(argv: Sequence[str]) -> int:
    args = _train_parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    directory = Path(args.run)
    last = directory / "last.pt"
    if directory.exists() and not directory.is_dir():
        raise RecipeError(f"--run is {args.run}, which is a file: name a directory")
    if last.exists() and not args.resume:
        raise RecipeError(f"{directory} already holds a run: add --resume to go on with it, or name another --run")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise RecipeError(f"--device is {args.device!r}, but torch sees no CUDA device here: use cpu")
    if args.device.startswith("cuda"):
        # Every step has the same shapes: the quickest convolutions are looked up once. TF32's 10 bits of mantissa are
        # enough for penalties too, which bf16's 7 are not.
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
    family = _family(args.family)
    recipe = _recipe(family, args)
    data: ImageSet | PairSet
    options = TrainOptions(
        seed=args.seed, evaluate_kimg=args.evaluate_kimg, evaluate_samples=args.evaluate_samples,
        snapshot_kimg=args.snapshot_kimg, stop_after_s=args.minutes * 60, within_s=args.within * 60,
        clock=args.clock, workers=args.workers, asked=tuple(Recipe.parse(args.set)),
    )  # fmt: skip
    if family.pairing == "none":
        recipe, data, trainer = _image_trainer(family, recipe, args, options)
    else:
        data, trainer = pair_trainer(family, recipe, args, options)
    log = trainer.log
    facts, resumed = _facts(family, recipe, data, args), last.exists()
    if resumed:
        _same_data(directory, facts)
        trainer.restore(checkpoint.load(last))
        log.say(f"resumed at {trainer.kimg:.1f} kimg")
        facts["started_from"] = _started_from(directory)
    elif args.resume:
        log.say(f"{directory} holds no checkpoint yet: beginning")
    if args.start_from and not resumed:
        facts["started_from"] = _begin_from(trainer, Path(args.start_from), log)
    ended = resumed and trainer.done >= 1
    if ended:  # what recipe.json says is what it was trained by
        log.say("this run has come to its end: a larger --kimg or --within goes on")
    else:
        log.recipe(facts)
    try:
        with _stopped_by_signals(trainer) as interrupted:
            trainer.train()
        if args.within and not ended:
            log.recipe({**facts, "recipe": trainer.recipe.to_json()})
    finally:
        log.close()
    if trainer.stopping and trainer.done < 1:
        log.say(f"stopped at {trainer.kimg:.1f} kimg; go on with --resume")
    return 130 if interrupted else 0


def _image_trainer(
    family: Family, recipe: Recipe, args: argparse.Namespace, options: TrainOptions
) -> tuple[Recipe, ImageSet, Trainer]:
    """The recipe with what the data decides, the data, and a trainer of a family that draws images from latents."""
    if "channels" not in Recipe.parse(args.set):
        own = channels_of(args.data, Path(args.data_root))
        if own != recipe.channels:
            print(f"{args.data} is {'grey' if own == 1 else 'in colour'}: channels={own}")
            recipe = recipe.replaced(channels=own)
    data = load(
        args.data, size=recipe.size, channels=recipe.channels, root=Path(args.data_root), strict=args.strict,
        report=say_report,
    )  # fmt: skip
    recipe = _fitted(recipe, family, data)
    if recipe.feature_weight:
        find_weights(args.data_root)
    log = RunLog(Path(args.run))
    trainer = Trainer(
        family, recipe, data.train, data.train_labels if recipe.classes else None, log, options,
        evaluate=_evaluator(data, options, log) if args.evaluate_kimg > 0 else None,
        monitors=watchers(), device=args.device,
    )  # fmt: skip
    return recipe, data, trainer


@contextmanager
def _stopped_by_signals(trainer: Trainer) -> Iterator[list[int]]:
    """SIGINT and SIGTERM end the run after the iteration in progress: half of one could not be resumed exactly.

    A second SIGINT ends at once. Yields the list of signals that came.
    """
    came: list[int] = []

    def stop(number: int, frame: object) -> None:
        came.append(number)
        trainer.stop()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    # Python lets only the main thread set them; a run in another one is its caller's to stop.
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield came
    finally:
        for number, action in before.items():
            signal.signal(number, action)


def _train_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training train")
    parser.add_argument("--family", required=True, help=f"one of {', '.join(FAMILIES)}")
    parser.add_argument("--recipe", default="modern", help="paper or modern")
    parser.add_argument("--data", required=True, help="a public set's name, or a folder, zip or IDX files")
    parser.add_argument("--run", required=True, help="the run's directory, e.g. runs/faces-32")
    parser.add_argument("--objective", help=f"one of {', '.join(OBJECTIVES)}; default: the recipe's")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="change a recipe field")
    parser.add_argument("--size", type=int, help="side of the images, px; default: the recipe's")
    parser.add_argument("--kimg", type=number, help="length of the run in thousands of images; default: the recipe's")
    parser.add_argument("--minutes", type=number, default=0, help="stop (resumably) after so long")
    parser.add_argument(
        "--within", type=number, default=0, metavar="MINUTES", help="a whole run in so long, not in kimg"
    )
    parser.add_argument(
        "--clock", choices=sorted(CLOCKS), default="wall", help="what --minutes and --within count: wall or CPU time"
    )
    parser.add_argument("--seed", type=count(0, 2**63 - 1), default=0)
    parser.add_argument("--threads", type=count(1), default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument(
        "--workers", type=count(0), default=0, help="processes that make pairs ahead of time, for a GPU"
    )
    parser.add_argument("--device", type=device, default="cpu", help="cpu or cuda")
    parser.add_argument("--evaluate-kimg", type=number, default=100, help="between evaluations; 0: never")
    parser.add_argument("--evaluate-samples", type=count(1), default=2000)
    parser.add_argument("--snapshot-kimg", type=number, default=50, help="between checkpoints and grids")
    parser.add_argument("--data-root", default="data", help="where prepared sets lie")
    parser.add_argument("--strict", action="store_true", help="a bad image file is an error")
    parser.add_argument(
        "--start-from",
        metavar="RUN",
        help="begin with another run's weights where they fit, or from an exported model",
    )
    parser.add_argument("--resume", action="store_true", help="go on from the run's last checkpoint")
    return parser


def _recolour(argv: Sequence[str]) -> int:
    from training.recolour import STEPS
    from training.recolour import recolour as fitted

    parser = argparse.ArgumentParser(prog="python -m training recolour")
    parser.add_argument("--run", required=True, help="the run's directory")
    parser.add_argument("--out", required=True, help="the new run's directory")
    parser.add_argument("--checkpoint", default="last", choices=("last", "best"))
    parser.add_argument("--steps", type=count(1), default=STEPS, help=f"of 256 images (default: {STEPS})")
    parser.add_argument("--data", help="the data set, where it is not the one that the run was trained on")
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--threads", type=count(1), default=torch.get_num_threads())
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    out = Path(args.out)
    if (out / "last.pt").exists():
        raise RecipeError(f"{out} already holds a run: name another --out")
    run = exporting.read_run(Path(args.run), args.checkpoint)
    if not run.recipe.palette:
        raise RecipeError("palette is 0: this generator has no palette whose colours could be fitted")
    if run.recipe.classes:
        raise RecipeError(f"classes is {run.recipe.classes}: colours are fitted to generators without classes alone")
    data, started = _data_of(run, args), time.monotonic()
    generator = fitted(
        run.nets["generator"], run.recipe.latent_dim, data.train, steps=args.steps, seed=run.facts["seed"], say=print
    )
    state = checkpoint.load(run.directory / f"{args.checkpoint}.pt")
    state |= {"ema": generator.state_dict(), "seconds": state["seconds"] + time.monotonic() - started}
    checkpoint.save(out / "last.pt", {name: value for name, value in state.items() if name != "format"})
    facts = {**run.facts, "recoloured": {"steps": args.steps}}
    write_atomically(out / "recipe.json", json.dumps(facts, indent=1).encode() + b"\n")
    return 0


def _data_of(run: exporting.TrainedRun, args: argparse.Namespace) -> ImageSet:
    """The run's data set, refusing another one of the same name."""
    recorded = run.facts["data"]
    data = load(
        args.data or recorded["source"], size=run.recipe.size, channels=run.recipe.channels, root=Path(args.data_root)
    )
    if args.data is None and data.fingerprint != recorded["fingerprint"]:
        raise DataError(
            f"{recorded['source']} has changed since the run was trained on it; name it with --data if meant"
        )
    return data


def _export(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m training export")
    parser.add_argument("--run", required=True, help="the run's directory")
    parser.add_argument("--name", required=True, help="the model's name, e.g. faces-32")
    parser.add_argument("--models", default="models", help="the models' folder; a running server notices")
    parser.add_argument("--version", type=count(1), help="default: the next free one")
    parser.add_argument("--checkpoint", default="last", choices=("last", "best"))
    args = parser.parse_args(argv)
    run = exporting.read_run(Path(args.run), args.checkpoint)
    for folder in exporting.export_run(run, Path(args.models), args.name, version=args.version):
        print(folder)
    return 0


def _family(name: str) -> Family:
    if name not in FAMILIES:
        raise RecipeError(f"--family is {name!r}, must be one of {', '.join(FAMILIES)}")
    return FAMILIES[name]


def _recipe(family: Family, args: argparse.Namespace) -> Recipe:
    if args.recipe not in family.recipes:
        raise RecipeError(f"--recipe is {args.recipe!r}, {family.name} has {', '.join(family.recipes)}")
    recipe = family.recipes[args.recipe]
    if args.objective:
        recipe = with_objective(recipe, args.objective)
    changes = Recipe.parse(args.set)
    if args.kimg is not None:
        changes["total_kimg"] = args.kimg
    if args.size is not None:
        changes["size"] = args.size
    recipe = recipe.replaced(**changes)
    if recipe.precision == "bf16" and "precision" not in changes and args.device == "cpu" and not _computes_bf16():
        print("this processor has no bfloat16 arithmetic, with which fp32 is many times as fast: precision=fp32")
        recipe = recipe.replaced(precision="fp32")
    return recipe


def _computes_bf16() -> bool:
    """Whether the processor multiplies in bfloat16 (AVX-512 or AMX on x86, Arm's extension); else torch imitates it."""
    able = torch.cpu.get_capabilities()
    return any(able.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))


def _fitted(recipe: Recipe, family: Family, data: ImageSet) -> Recipe:
    """The recipe with what the data set decides."""
    classes = len(data.classes) if family.conditional else 0
    if family.conditional and not classes:
        raise RecipeError(f"family {family.name} needs labelled images, {data.name} has no classes")
    return recipe.replaced(classes=classes)


def _evaluator(
    data: ImageSet, options: TrainOptions, log: RunLog
) -> Callable[[np.ndarray], Mapping[str, float]] | None:
    """Figures against training images: `best.pt` must not be chosen on the held-out ones that judge it later."""
    from training.evaluation.evaluator import NEIGHBOURS, Evaluator

    if (count := min(len(data.train), options.evaluate_samples)) <= NEIGHBOURS:
        log.say(f"{count} images are too few to evaluate: training without, and without best.pt")
        return None
    return Evaluator(data.train, samples=options.evaluate_samples, cache=log.directory / "features")


def _facts(family: Family, recipe: Recipe, data: ImageSet | PairSet, args: argparse.Namespace) -> dict[str, Any]:
    classes = list(data.classes) if isinstance(data, ImageSet) else []
    return {
        "family": family.name,
        "recipe": recipe.to_json(),
        "data": {"name": data.name, "source": args.data, "license": data.license, "fingerprint": data.fingerprint,
                 "classes": classes, "train": len(data.train), "test": len(data.test)},
        "seed": args.seed,
        "threads": args.threads,
        "clock": args.clock,
        "device": torch.cuda.get_device_name() if args.device.startswith("cuda") else args.device,
        "torch": torch.__version__,
        "commit": source_commit(),
    }  # fmt: skip


def _begin_from(trainer: Trainer, source: Path, log: RunLog) -> dict[str, Any]:
    """Take over the weights of a run or of an exported model; what they had seen before."""
    if (source / "manifest.json").is_file():
        nets = trainer.nets
        fresh, images = adopt(nets["generator"], trainer.family.name, trainer.recipe, source, say=log.say)
        trainer.ema.load_state_dict(nets["generator"].state_dict())
        before = {"images": images, "seconds": 0.0, "model": f"{source.parent.name}@{source.name}"}
    elif not (source / "last.pt").is_file():
        raise checkpoint.CheckpointError(
            f"{source} is neither a run (with last.pt) nor an exported version, such as models/faces-32/6"
        )
    else:
        state = checkpoint.load(source / "last.pt")
        fresh = trainer.start_from(state)
        if state["recipe"]["size"] * 2 == trainer.recipe.size:
            _teach_grown(trainer, source, fresh, log)
        earlier = _started_from(source) or {"images": 0, "seconds": 0.0}
        before = {
            **earlier,
            "images": earlier["images"] + state["sampler"]["shown"],
            "seconds": earlier["seconds"] + state["seconds"],
        }
    log.say(f"weights of {source}; {len(fresh)} tensors are new")
    return before


def _teach_grown(trainer: Trainer, source: Path, fresh: Sequence[str], log: RunLog) -> None:
    """A run goes on from one of half its side: where both draw from latents alone, it begins with that one's pictures.

    A ProGAN grows by itself, and draws at the small one's side at first.
    """
    recipe, generator = trainer.recipe, trainer.nets["generator"]
    if trainer.family.grow is not None or trainer.family.pairing != "none" or recipe.classes:
        return
    small = exporting.read_run(source)
    if small.recipe.latent_dim != recipe.latent_dim:
        return
    generator.load_state_dict(trainer.ema.state_dict())
    teach_grown(generator, small.nets["generator"], set(fresh), recipe, source.name, say=log.say)
    trainer.ema.load_state_dict(generator.state_dict())


def _same_data(directory: Path, facts: Mapping[str, Any]) -> None:
    """Refuse to go on with other images than a run was begun with: its card would name only the last.

    Raises:
        CheckpointError: they are others.
    """
    path = directory / "recipe.json"
    before = json.loads(path.read_text()).get("data", {}) if path.is_file() else {}
    now = facts["data"]
    if before.get("fingerprint", now["fingerprint"]) != now["fingerprint"]:
        raise checkpoint.CheckpointError(
            f"{directory} was trained on other images ({before.get('source')}, {before.get('train')} of them):"
            " --start-from begins a run of its own from its weights"
        )


def _started_from(directory: Path) -> dict[str, Any] | None:
    """What a run's weights had seen before it began, through all the runs before; None for a run from scratch."""
    path = directory / "recipe.json"
    found: dict[str, Any] | None = json.loads(path.read_text()).get("started_from") if path.is_file() else None
    return found


def _guarded(name: str, command: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    try:
        return command(argv)
    except EXPECTED as error:
        print(f"python -m training {name}: {error}", file=sys.stderr)
        return 1
