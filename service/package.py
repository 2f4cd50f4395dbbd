"""Writes and checks a model's folder: `models/<name>/<version>/`.

The training export and the importer both write through `write_package`; the engine checks through `verify_package`.
A folder is written under a hidden name, flushed to disk and renamed into place last, so nobody ever sees half a model.
"""

import errno
import hashlib
import io
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.errors import FileInvalid, GraphMismatch, HashMismatch, ManifestInvalid, VersionExists
from service.manifest import (
    ARRAYS_FILE,
    CARD_FILE,
    GOLDEN_FILE,
    MANIFEST_FILE,
    SAMPLES_FILE,
    Evaluation,
    FileSpec,
    GenerateSpec,
    GraphSpec,
    Manifest,
    Name,
    Provenance,
    Task,
    TensorSpec,
    TranslateSpec,
    UpscaleSpec,
    resolve_dimension,
)
from service.onnxfile import read_contents

Arrays = Mapping[str, npt.NDArray[Any]]

MANIFEST_MAX_BYTES = 1 << 20
"""A manifest is a few kB; StyleGAN's with a thousand labels is below 50 kB."""
NPZ_MAX_BYTES = 1 << 28
"""256 MiB unpacked bounds what a hostile file can make us allocate; a golden batch of 8 images at 1024 px is 24 MiB."""
NPZ_MAX_MEMBERS = 1024
GRAPH_MAX_BYTES = 2**31 - 1
"""Protocol Buffers' own limit on one message, and so on one .onnx file without external data."""

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest date that a zip can hold: the same arrays give the same bytes on any day
_PNG = b"\x89PNG\r\n\x1a\n"
_NUMPY = {"uint8": np.uint8, "float32": np.float32, "int64": np.int64}


class GraphDraft(BaseModel):
    """A graph before it is written: `GraphSpec` without the file's name and hash, which `write_package` fills in."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class ManifestDraft(BaseModel):
    """What the exporter knows of a manifest; `write_package` adds the version, the files' names and their hashes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    family: str
    tasks: tuple[Task, ...]
    graphs: dict[Name, GraphDraft] = Field(min_length=1)
    generate: GenerateSpec | None = None
    translate: TranslateSpec | None = None
    upscale: UpscaleSpec | None = None
    provenance: Provenance
    evaluation: tuple[Evaluation, ...] = ()
    license: str
    paper: str


def write_package(
    root: Path,
    draft: ManifestDraft,
    *,
    graphs: Mapping[str, bytes | Path],
    golden: Arrays,
    card: str,
    samples_png: bytes,
    arrays: Arrays | None = None,
    version: int | None = None,
) -> Path:
    """Write one version of a model and rename it into place.

    Args:
        root: the models' folder; made where it is missing.
        draft: everything that the files themselves do not say.
        graphs: graph name -> serialised ONNX, or the path of one. The names equal the draft's.
        golden: `graph/tensor` -> a few rows, for every input and output of every graph.
        card: the model card, Markdown.
        samples_png: a grid of samples.
        arrays: model-wide arrays (mean w, directions), or None.
        version: None takes the next free one, starting at 1.

    Returns:
        The folder, `root/<name>/<version>`.

    Raises:
        VersionExists: the asked version is there already; nothing is ever overwritten.
        PackageError: the parts do not fit together; nothing is left behind.
    """
    if set(graphs) != set(draft.graphs):
        detail = f"graphs {sorted(graphs)} given, the draft names {sorted(draft.graphs)}"
        raise ManifestInvalid(detail, model=draft.name)
    if not samples_png.startswith(_PNG):
        raise FileInvalid(f"{SAMPLES_FILE} is not a PNG", model=draft.name)
    parent = root / draft.name
    parent.mkdir(parents=True, exist_ok=True)
    if version is not None and (parent / str(version)).exists():
        raise VersionExists(f"version {version} exists; versions are never overwritten", model=draft.name)
    staging = Path(tempfile.mkdtemp(prefix=".writing-", suffix=".tmp", dir=parent))
    try:
        staging.chmod(0o755)  # mkdtemp makes it private; the server may run as another user
        hashes = {f"{name}.onnx": _write(staging / f"{name}.onnx", source) for name, source in graphs.items()}
        hashes[GOLDEN_FILE] = _write(staging / GOLDEN_FILE, npz_bytes(golden))
        if arrays:
            hashes[ARRAYS_FILE] = _write(staging / ARRAYS_FILE, npz_bytes(arrays))
        _write(staging / CARD_FILE, card.encode())
        _write(staging / SAMPLES_FILE, samples_png)
        return _rename_into_place(staging, draft, hashes, version)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def read_package(folder: Path) -> Manifest:
    """Read a folder's manifest and hold its name and version against the folder's: cheap, no hashing.

    Raises:
        ManifestInvalid: malformed, of another schema, or in a folder of another name.
        FileInvalid: missing or larger than 1 MiB.
    """
    ref = f"{folder.parent.name}@{folder.name}"
    text = _read(folder / MANIFEST_FILE, MANIFEST_MAX_BYTES, ref)
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise ManifestInvalid(f"{MANIFEST_FILE} is not JSON: {error}", model=ref) from None
    if isinstance(fields, dict) and fields.get("schema") != 1:
        raise ManifestInvalid(f"schema {fields.get('schema')!r}; this version reads schema 1", model=ref)
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        raise ManifestInvalid(_first_faults(error), model=ref) from None
    if manifest.ref != ref:
        raise ManifestInvalid(
            f"the manifest says {manifest.ref}, its folder {folder.parent.name}/{folder.name}", model=ref
        )
    return manifest


def verify_package(folder: Path) -> Manifest:
    """Read the manifest, then hold every file that it names against its hash and the golden against the graphs.

    Raises:
        PackageError: the first thing that is wrong; see `errors.py` for the kinds.
    """
    manifest = read_package(folder)
    for graph in manifest.graphs.values():
        _check_hash(folder / graph.file, graph.sha256, GRAPH_MAX_BYTES, manifest.ref)
        _check_operators(folder / graph.file, graph.opset, manifest.ref)
    for spec in (manifest.golden, manifest.arrays):
        if spec is not None:
            _check_hash(folder / spec.file, spec.sha256, NPZ_MAX_BYTES, manifest.ref)
            read_npz(folder / spec.file, model=manifest.ref)
    _check_arrays(folder, manifest)
    read_golden(folder, manifest)
    return manifest


def read_golden(folder: Path, manifest: Manifest) -> dict[str, dict[str, npt.NDArray[Any]]]:
    """The recorded rows: graph -> tensor -> array, every input and output of every graph.

    Raises:
        FileInvalid: unreadable, a tensor is missing or unknown, or its dtype or shape is not the manifest's.
    """
    stored = read_npz(folder / manifest.golden.file, model=manifest.ref)
    _check_golden(manifest, stored)
    golden: dict[str, dict[str, npt.NDArray[Any]]] = {name: {} for name in manifest.graphs}
    for key, array in stored.items():
        graph, _, tensor = key.partition("/")
        golden[graph][tensor] = array
    return golden


def npz_bytes(arrays: Arrays) -> bytes:
    """An `.npz` whose bytes depend on the arrays alone: sorted names, a fixed date, nothing compressed, no pickles."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(arrays):
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(arrays[name]), version=(1, 0), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", date_time=_EPOCH)
            info.create_system = 3  # else the bytes would tell Windows from Unix
            info.external_attr = 0o644 << 16
            archive.writestr(info, member.getvalue())
    return buffer.getvalue()


def read_npz(path: Path, *, model: str) -> dict[str, npt.NDArray[Any]]:
    """The arrays of an `.npz`, without pickles and within NPZ_MAX_BYTES.

    Raises:
        FileInvalid: missing, not an npz, too large, or holding something else than plain arrays.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if len(members) > NPZ_MAX_MEMBERS or sum(member.file_size for member in members) > NPZ_MAX_BYTES:
                raise FileInvalid(f"{path.name} unpacks to more than {NPZ_MAX_BYTES >> 20} MiB", model=model)
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile, NotImplementedError) as error:
        raise FileInvalid(f"{path.name} cannot be read: {error}", model=model) from None


def _rename_into_place(staging: Path, draft: ManifestDraft, hashes: Mapping[str, str], version: int | None) -> Path:
    """Write the manifest and rename; where the version is ours to choose, another writer's taking it means one more."""
    parent = staging.parent
    while True:
        number = version or _next_version(parent)
        manifest = _manifest(draft, hashes, number)
        (staging / MANIFEST_FILE).unlink(missing_ok=True)
        _write(staging / MANIFEST_FILE, manifest.model_dump_json(indent=1).encode() + b"\n")
        for graph in manifest.graphs.values():
            _check_operators(staging / graph.file, graph.opset, manifest.ref)
        _check_arrays(staging, manifest)
        read_golden(staging, manifest)
        _flush(staging)
        target = parent / str(number)
        try:
            os.rename(staging, target)  # fails where a version stands: its folder is never empty
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY) and not target.exists():
                raise
            if version is not None:
                detail = f"version {version} exists; versions are never overwritten"
                raise VersionExists(detail, model=draft.name) from None
            continue
        _flush(parent)
        return target


def _manifest(draft: ManifestDraft, hashes: Mapping[str, str], version: int) -> Manifest:
    ref = f"{draft.name}@{version}"
    try:
        graphs = {
            name: GraphSpec(file=f"{name}.onnx", sha256=hashes[f"{name}.onnx"], **dict(graph))
            for name, graph in draft.graphs.items()
        }
        arrays = FileSpec(file=ARRAYS_FILE, sha256=hashes[ARRAYS_FILE]) if ARRAYS_FILE in hashes else None
        golden = FileSpec(file=GOLDEN_FILE, sha256=hashes[GOLDEN_FILE])
        return Manifest(**{**dict(draft), "graphs": graphs}, version=version, golden=golden, arrays=arrays)
    except ValidationError as error:
        raise ManifestInvalid(_first_faults(error), model=ref) from None


def _next_version(parent: Path) -> int:
    taken = [int(path.name) for path in parent.iterdir() if path.name.isdecimal()]
    return max(taken, default=0) + 1


def _check_golden(manifest: Manifest, stored: Arrays) -> None:
    """Every tensor of every graph once, in its dtype and shape, with one size for each symbol of a graph."""

    def fault(detail: str) -> FileInvalid:
        return FileInvalid(f"{manifest.golden.file}: {detail}", model=manifest.ref)

    expected = {
        f"{name}/{tensor.name}" for name, graph in manifest.graphs.items() for tensor in graph.inputs + graph.outputs
    }
    if missing := sorted(expected - set(stored)):
        raise fault(f"lacks {', '.join(missing)}")
    if unknown := sorted(set(stored) - expected):
        raise fault(f"holds {', '.join(unknown)}, which the manifest does not name")
    for name, graph in manifest.graphs.items():
        symbols: dict[str, int] = {}
        for tensor in graph.inputs + graph.outputs:
            array = stored[f"{name}/{tensor.name}"]
            if array.dtype != _NUMPY[tensor.dtype]:
                raise fault(f"{name}/{tensor.name} is {array.dtype}, must be {tensor.dtype}")
            if len(array.shape) != len(tensor.shape) or not len(array):
                raise fault(f"{name}/{tensor.name} has shape {list(array.shape)}, must be {list(tensor.shape)}")
            for dimension, size in zip(tensor.shape, array.shape, strict=True):
                if isinstance(dimension, str) and "*" not in dimension:
                    symbols.setdefault(dimension, size)
            try:
                right = array.shape == tuple(resolve_dimension(dimension, symbols) for dimension in tensor.shape)
            except KeyError as error:
                raise fault(f"{name}/{tensor.name}: nothing says what {error} is") from None
            if not right:
                raise fault(f"{name}/{tensor.name} has shape {list(array.shape)}, must be {list(tensor.shape)}")
            if not np.isfinite(array).all():
                raise fault(f"{name}/{tensor.name} holds numbers that are not finite")


def _check_arrays(folder: Path, manifest: Manifest) -> None:
    """Where truncation is in w, the mean w is there; directions are as many as are named, and as long as what they are
    added to."""
    spec = manifest.generate
    if spec is None or manifest.arrays is None:
        return
    arrays = read_npz(folder / manifest.arrays.file, model=manifest.ref)
    wide = spec.latent_dim if spec.style_layers is None else manifest.style_dim
    if spec.style_layers is not None:
        _check_array(manifest, arrays, "mean_w", (wide,), f"{wide} finite numbers of float32")
    rows = arrays.get("directions")
    if rows is not None or spec.directions:
        count = len(spec.directions) or (0 if rows is None or not rows.ndim else len(rows))
        _check_array(manifest, arrays, "directions", (count, wide), f"float32 [{count}, {wide}], all finite")


def _check_array(manifest: Manifest, arrays: Arrays, name: str, shape: tuple[int | None, ...], wanted: str) -> None:
    array = arrays.get(name)
    if array is None or array.dtype != np.float32 or array.shape != shape or not np.isfinite(array).all():
        found = "is missing" if array is None else f"is {array.dtype} {list(array.shape)}"
        assert manifest.arrays is not None  # the caller has looked
        raise FileInvalid(f"{manifest.arrays.file}: {name} {found}, must be {wanted}", model=manifest.ref)


def _first_faults(error: ValidationError, limit: int = 3) -> str:
    faults = [f"{'.'.join(map(str, fault['loc'])) or 'manifest'}: {fault['msg']}" for fault in error.errors()[:limit]]
    more = error.error_count() - len(faults)
    return "; ".join(faults) + (f"; and {more} more" if more else "")


def _check_hash(path: Path, sha256: str, max_bytes: int, ref: str) -> None:
    try:
        if not path.is_file():
            raise FileInvalid(f"{path.name} is missing", model=ref)
        if (size := path.stat().st_size) > max_bytes:
            raise FileInvalid(f"{path.name} has {size} bytes, more than {max_bytes}", model=ref)
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise FileInvalid(f"{path.name} cannot be read: {error.strerror}", model=ref) from None
    if found != sha256:
        raise HashMismatch(f"{path.name} has sha256 {found[:12]}..., the manifest says {sha256[:12]}...", model=ref)


def _check_operators(path: Path, opset: int, ref: str) -> None:
    try:
        faults = read_contents(path).faults(opset)
    except (OSError, ValueError) as error:
        raise FileInvalid(f"{path.name} {error}", model=ref) from None
    if faults:
        raise GraphMismatch(f"{path.name} {'; '.join(faults)}", model=ref)


def _read(path: Path, max_bytes: int, ref: str) -> bytes:
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait for its writer for ever
            raise FileInvalid(f"{path.name} is no regular file", model=ref)
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except FileNotFoundError:
        raise FileInvalid(f"{path.name} is missing", model=ref) from None
    except OSError as error:
        raise FileInvalid(f"{path.name} cannot be read: {error.strerror}", model=ref) from None
    if len(content) > max_bytes:
        raise FileInvalid(f"{path.name} has more than {max_bytes} bytes", model=ref)
    return content


def _write(path: Path, content: bytes | Path) -> str:
    """Write a file through to the disk; returns its sha256."""
    if isinstance(content, Path):
        shutil.copyfile(content, path)
    else:
        path.write_bytes(content)
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(folder: Path) -> None:
    if os.name == "posix":  # Windows opens no folders
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
