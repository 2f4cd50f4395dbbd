"""A new version of an exported model that keeps what is not given anew."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from service.manifest import Manifest
from service.package import Arrays, GraphDraft, ManifestDraft, read_npz, write_package


def repackaged(
    folder: Path, manifest: Manifest, *, card: str, arrays: Arrays | None = None,
    graphs: Mapping[str, bytes] | None = None, golden: Arrays | None = None, version: int | None = None, **changes: Any,
) -> Path:  # fmt: skip
    """Write the next version of a model, beside it.

    Args:
        folder: the version that is kept to; manifest: its.
        card: Markdown.
        arrays: all of them; None takes over what there is.
        graphs: serialised, of the same inputs and outputs; those that are not here are taken over.
        golden: all of it; None takes over what there is.
        version: the next free one unless given.
        changes: fields of the manifest.

    Returns:
        The new folder.

    Raises:
        PackageError: a file is missing or broken, or the parts do not fit together.
    """
    if arrays is None and manifest.arrays is not None:
        arrays = read_npz(folder / manifest.arrays.file, model=manifest.ref)
    draft = ManifestDraft(
        **{name: getattr(manifest, name) for name in ManifestDraft.model_fields if name not in ("graphs", *changes)},
        graphs={
            name: GraphDraft(opset=graph.opset, inputs=graph.inputs, outputs=graph.outputs)
            for name, graph in manifest.graphs.items()
        },
        **changes,
    )
    files = {name: folder / graph.file for name, graph in manifest.graphs.items()}
    return write_package(
        folder.parents[1], draft, graphs={**files, **(graphs or {})}, arrays=arrays, version=version, card=card,
        golden=read_npz(folder / manifest.golden.file, model=manifest.ref) if golden is None else golden,
        samples_png=(folder / "samples.png").read_bytes(),
    )  # fmt: skip
