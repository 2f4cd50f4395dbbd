"""An app over the fake engine."""

import pytest
from apiclient import client_of
from fakeengine import LABELS, FakeEngine, manifest, upscaler


@pytest.fixture
def engine(tmp_path) -> FakeEngine:
    (tmp_path / "samples.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return FakeEngine(tmp_path, manifest("clothes", labels=LABELS, channels=1), manifest("faces"), upscaler("photo-x2"))


@pytest.fixture
async def client(engine):
    async with client_of(engine) as client:
        yield client
