"""`python -m training directions`: a new version of an exported model, with directions named for attributes."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from service.manifest import Manifest
from service.package import read_npz, read_package
from training.arguments import count
from training.attributes import STRENGTH, AttributesError, Direction, Drawer, attribute_values, learn, read_attributes
from training.datasets import imageset
from training.features import Lite0Features
from training.repackaging import repackaged

HEADING = "## Directions"
LEAST = 0.3
"""Correlation below which a direction would change anything but its attribute."""


def directions_run(argv: Sequence[str]) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m training directions", description=__doc__)
    parser.add_argument("--model", required=True, help="the folder of an exported version: models/faces-32/6")
    parser.add_argument("--data", required=True, help="a prepared set with attributes.jsonl: faces")
    parser.add_argument(
        "--attribute", action="append", required=True, metavar="NAME=FIELD[=PATTERN]",
        help="such as glasses=glasses.id, light_hair=hair.color or smile=mouth.id=smile*; again for each",
    )  # fmt: skip
    parser.add_argument("--images", type=int, default=4000, help="real ones, and seeds, to learn from")
    parser.add_argument("--version", type=count(1), help="of what is written (default: the next free one)")
    parser.add_argument("--data-root", default="data")
    args = parser.parse_args(argv)
    asked = dict(_parts(text) for text in args.attribute)
    folder = Path(args.model)
    manifest = read_package(folder)
    arrays = {} if manifest.arrays is None else dict(read_npz(folder / manifest.arrays.file, model=manifest.ref))
    drawer = Drawer(folder, manifest)
    image = next(t for graph in manifest.graphs.values() for t in graph.outputs if t.kind == "image")
    lines = read_attributes(Path(args.data_root) / args.data)[: args.images]
    values = {name: attribute_values(lines, field) for name, field in asked.items()}
    data = imageset.load(args.data, size=int(image.shape[1]), channels=int(image.shape[3]), root=Path(args.data_root))
    features = Lite0Features()
    real = features(data.train[: len(lines)])
    print(f"{len(lines)} real images are read")
    found = [one for one in learn(drawer, real, values, features, count=args.images, say=print) if _trusted(one)]
    if not found:
        raise AttributesError("no attribute can be told from these images and guessed from latents: nothing is written")
    written = write_with(folder, manifest, arrays, found, args.data, args.version)
    print(written)
    return 0


def _trusted(one: Direction) -> bool:
    if min(one.told, one.linear) >= LEAST:
        return True
    print(f"{one.name} is left out: told {one.told:.2f}, linear {one.linear:.2f}, must both be at least {LEAST:g}")
    return False


def _parts(text: str) -> tuple[str, str]:
    name, mark, field = text.partition("=")
    if not (name and mark and field):
        raise AttributesError(f"--attribute is {text!r}, must be NAME=FIELD or NAME=FIELD=PATTERN")
    return name, field


def write_with(
    folder: Path, manifest: Manifest, arrays: dict[str, Any], found: Sequence[Direction], data: str, version: int | None
) -> Path:
    """The same model with these directions after those that it has; those of the same name are replaced.

    Returns:
        The new version's folder.
    """
    spec = manifest.generate
    assert spec is not None  # the drawer refused others
    names = {one.name: one.vector for one in found}
    rows: Mapping[str, Any] = dict(zip(spec.directions, arrays.get("directions", ()), strict=True)) | names
    arrays = arrays | {"directions": np.stack(list(rows.values())).astype(np.float32)}
    card = (folder / "CARD.md").read_text().partition(HEADING)[0].rstrip()
    return repackaged(
        folder, manifest, card=f"{card}\n\n{described(found, data, manifest)}", arrays=arrays, version=version,
        generate=spec.model_copy(update={"directions": tuple(rows)}),
    )  # fmt: skip


def described(found: Sequence[Direction], data: str, manifest: Manifest) -> str:
    """The card's section."""
    space = "z" if manifest.generate is None or manifest.generate.style_layers is None else "w"
    lines = [
        HEADING,
        "",
        f"Steps in {space}, learnt from what is known of the images of `{data}` on the weights of version "
        f"{manifest.version}: how well the attribute is told on held-out real images and guessed from latents "
        f"(correlations), and what strengths of -{STRENGTH:g} and {STRENGTH:g} do (in the attribute's deviations).",
        "",
        "| direction | told | linear | less | more |",
        "|---|---:|---:|---:|---:|",
    ]
    lines += [f"| `{d.name}` | {d.told:.2f} | {d.linear:.2f} | {d.less:+.2f} | {d.more:+.2f} |" for d in found]
    return "\n".join(lines) + "\n"
