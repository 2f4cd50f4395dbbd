"""The zip writer beside Python's own."""

import io
import zipfile

import pytest

from service.imaging import archive
from service.imaging.archive import stored_zip

TIME = (1980, 1, 1, 0, 0, 0)


def by_zipfile(files) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as written:
        for name, data in files:
            written.writestr(zipfile.ZipInfo(name, TIME), data)
    return out.getvalue()


@pytest.mark.parametrize(
    "files",
    [[], [("a", b"")], [("seed-1.png", b"x" * 1000), ("images.json", b"{}")], [(f"{n}", b"y") for n in range(400)]],
)
def test_it_writes_what_zipfile_writes(files):
    written = stored_zip(files)
    assert written == by_zipfile(files)
    with zipfile.ZipFile(io.BytesIO(written)) as read:
        assert read.testzip() is None
        assert [(info.filename, read.read(info)) for info in read.infolist()] == files


def test_what_would_not_fit_is_refused(monkeypatch):
    with pytest.raises(ValueError):
        stored_zip((f"{n}", b"") for n in range(0x10000))
    monkeypatch.setattr(archive, "MOST_BYTES", 100)
    with pytest.raises(ValueError):
        stored_zip([("a", b"x" * 101)])
