"""Lists the files of a folder or a zip, without writing anything to the disk."""

import os
import stat
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from training.datasets.decode import Refused
from training.datasets.errors import BrokenSet
from training.datasets.report import DataReport

MAX_FILE_BYTES = 512 << 20
CLUTTER = ("__MACOSX", "Thumbs.db", "desktop.ini")  # what operating systems leave lying about


@dataclass(frozen=True)
class Item:
    """One file: its path inside the source, with `/`, and a way to read it, which may raise Refused."""

    name: str
    read: Callable[[], bytes]


@contextmanager
def items(source: Path, report: DataReport) -> Iterator[list[Item]]:
    """Yield the files of a folder or zip, sorted by name; hidden files and system clutter are passed over.

    Raises:
        BrokenSet: the zip itself cannot be read.
    """
    if source.is_dir():
        yield sorted(_in_folder(source), key=lambda item: item.name)
        return
    try:
        archive = zipfile.ZipFile(source)
    except (zipfile.BadZipFile, OSError) as problem:
        raise BrokenSet(
            f"{source}: must be a folder, a zip or an IDX file; not readable as a zip ({problem})"
        ) from problem
    with archive:
        yield sorted(_in_zip(archive, report), key=lambda item: item.name)


def _is_clutter(name: str) -> bool:
    return any(part.startswith(".") or part in CLUTTER for part in PurePosixPath(name).parts)


def _in_folder(source: Path) -> Iterator[Item]:
    for folder, subfolders, names in os.walk(source):
        subfolders[:] = [name for name in subfolders if not _is_clutter(name)]
        for name in names:
            path = Path(folder, name)
            if not _is_clutter(name):
                yield Item(path.relative_to(source).as_posix(), partial(_read_file, path))


def _read_file(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise Refused("bomb")
        if not path.is_file():
            raise Refused("unreadable")  # a pipe or a device: reading it might never end
        return path.read_bytes()
    except OSError:
        raise Refused("unreadable") from None


def _in_zip(archive: zipfile.ZipFile, report: DataReport) -> Iterator[Item]:
    for entry in archive.infolist():
        if entry.is_dir():
            continue
        name = entry.orig_filename.split("\0")[0]
        parts = PurePosixPath(name.replace("\\", "/")).parts
        link = stat.S_ISLNK(entry.external_attr >> 16)
        if link or not parts or parts[0] == "/" or ".." in parts or ":" in parts[0]:
            report.leave_out("unsafe-path", name)
        elif not _is_clutter(name):
            yield Item("/".join(parts), partial(_read_entry, archive, entry))


def _read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    if entry.file_size > MAX_FILE_BYTES:
        raise Refused("bomb")
    try:
        return archive.read(entry)
    except Exception:  # zlib, CRC, encryption, unknown methods: each raises its own; the entry is lost all the same
        raise Refused("unreadable") from None
