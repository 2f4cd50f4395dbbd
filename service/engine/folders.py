"""The models' folder as it lies there, unread: `<root>/<name>/<version>/`."""

import re
from dataclasses import dataclass
from pathlib import Path

from service.errors import FileInvalid, UnknownModel
from service.manifest import NAME_PATTERN

LATEST = "latest"
"""`name@latest` is `name`: the newest version that serves."""

Fingerprint = tuple[tuple[str, int, int], ...]
_VERSION = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True)
class Found:
    """A version's folder as it lies there, unread. `fingerprint`: names, sizes and times of its files."""

    name: str
    version: int
    folder: Path
    fingerprint: Fingerprint

    @property
    def ref(self) -> str:
        """`name@version`."""
        return f"{self.name}@{self.version}"

    @property
    def graph_bytes(self) -> int:
        """What its graphs take on the disk: about what one session of each takes in memory."""
        return sum(size for name, size, _ in self.fingerprint if name.endswith(".onnx"))


def scan(root: Path) -> tuple[list[Found], dict[str, str]]:
    """The versions' folders under root, and the folders that cannot be one, with the reason.

    Files beside the folders and names that begin with `.` or `_` or end in `.tmp` are passed over: those are still
    being written, or not ours.

    Raises:
        FileInvalid: root is not a folder.
    """
    if not root.is_dir():
        raise FileInvalid("is not a folder", model=str(root))
    found: list[Found] = []
    faults: dict[str, str] = {}
    for model in _folders(root):
        if not re.match(NAME_PATTERN, model.name):
            faults[model.name] = "a model's folder is named in lower-case letters, digits and hyphens"
            continue
        for folder in _folders(model):
            if _VERSION.fullmatch(folder.name):
                found.append(Found(model.name, int(folder.name), folder, _fingerprint(folder)))
            else:
                faults[f"{model.name}/{folder.name}"] = "a version's folder is named by a whole number from 1"
    return sorted(found, key=lambda one: (one.name, -one.version)), faults


def named(name: str, version: int | None) -> tuple[str, int | None]:
    """A name and a version, however they were given; `name@latest` names no version.

    Raises:
        UnknownModel: what stands after the `@` is no version, or not the one that was given.
    """
    name, pinned, own = name.partition("@")
    if not pinned:
        return name, version
    if name and own == LATEST and version is None:
        return name, None
    if not name or not _VERSION.fullmatch(own) or version not in (None, int(own)):
        raise UnknownModel(f"model: {name}@{own} is no version of a model, such as {name or 'name'}@1", field="model")
    return name, int(own)


def lies_there(root: Path, ref: str) -> bool:
    """Whether `name` or `name@version` has a folder, whatever is in it."""
    name, _, version = ref.partition("@")
    if not re.match(NAME_PATTERN, name):
        return False
    return (root / name / version if _VERSION.fullmatch(version) else root / name).is_dir()


def _folders(parent: Path) -> list[Path]:
    try:
        entries = sorted(parent.iterdir())
    except OSError:  # gone since it was listed
        return []
    return [
        path for path in entries if not path.name.startswith((".", "_")) and path.suffix != ".tmp" and path.is_dir()
    ]


def _fingerprint(folder: Path) -> Fingerprint:
    try:
        stats = [(path.name, path.stat()) for path in sorted(folder.iterdir())]
    except OSError:  # changes while we look: the next look differs
        return ()
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)
