"""`python -m training rewrite`: an exported model again, its graphs in the forms that today's export writes them in.

The same pictures, but for a level that is rounded the other way here and there, in less time. Only a new version is
written: what an older one draws from a seed never changes.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import onnx

from service.manifest import GraphSpec
from service.package import read_npz, read_package
from training.arguments import count
from training.export import Arrays, ExportError, held_against, one_threaded
from training.graphforms import reformed
from training.repackaging import repackaged

HEADING = "## Rewritten"


def rewrite_run(argv: Sequence[str]) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m training rewrite", description=__doc__)
    parser.add_argument("--model", required=True, help="the folder of an exported version: models/faces-32/6")
    parser.add_argument("--version", type=count(1), help="of what is written (default: the next free one)")
    args = parser.parse_args(argv)
    print(rewritten(Path(args.model), args.version))
    return 0


def rewritten(folder: Path, version: int | None = None) -> Path:
    """Write the new version; its folder.

    Raises:
        PackageError: no package, or not a whole one.
        ExportError: there is nothing to rewrite, or the new graphs answer otherwise.
    """
    manifest = read_package(folder)
    classes = len(manifest.generate.labels or ()) if manifest.generate is not None else 0
    golden = dict(read_npz(folder / manifest.golden.file, model=manifest.ref))
    graphs: dict[str, bytes] = {}
    for name, spec in manifest.graphs.items():
        model = onnx.load(folder / spec.file)
        if not reformed(model):
            continue
        graphs[name] = model.SerializeToString()
        rows = _held_against_itself(folder, spec, graphs[name], max(classes, 1))
        golden |= {f"{name}/{key}": value for part in rows for key, value in part.items()}
    if not graphs:
        raise ExportError(f"{folder}: its graphs are as today's export would write them")
    card = (folder / "CARD.md").read_text().partition(HEADING)[0].rstrip()
    note = (
        f"{HEADING}\n\nVersion {manifest.version} with its graphs written for less computation: pictures are the same"
        " but for a level that is rounded the other way here and there. The figures above are those of that version."
    )
    return repackaged(folder, manifest, card=f"{card}\n\n{note}\n", graphs=graphs, golden=golden, version=version)


def _held_against_itself(folder: Path, spec: GraphSpec, data: bytes, classes: int) -> tuple[Arrays, Arrays]:
    before = one_threaded((folder / spec.file).read_bytes())
    names = [tensor.name for tensor in spec.outputs]
    return held_against(
        lambda inputs: before.run(names, inputs), "the version before", data, spec.inputs, spec.outputs, classes
    )
