"""Bulk generation, but for Ray itself: which shards there are, what is in them, and that each is whole or not there."""

import json
import tarfile
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from deploy.ray_bulk import AT_ONCE, Drawer, Shard, lean, missing, shards_of, write
from service.settings import Settings


@pytest.fixture
def drawer(tiny_models):
    own = Drawer(lean(Settings(models=tiny_models), cpus=1))
    yield own
    own.close()


def test_a_server_that_draws_few_at_once_is_no_bound_here(tiny_models):
    assert lean(Settings(models=tiny_models, max_images=4), cpus=1).max_images == AT_ONCE
    assert lean(Settings(models=tiny_models, max_images=99), cpus=1).max_images == 99


def test_shards_hold_every_seed_once():
    shards = shards_of("m@1", 5, 27, 10)
    assert [(shard.first, shard.end) for shard in shards] == [(5, 15), (15, 25), (25, 27)]
    assert len({shard.name for shard in shards}) == 3


@pytest.mark.parametrize("wrong", [(0, 0, 1), (-1, 5, 1), (0, 2**32 + 1, 1), (0, 5, 0)])
def test_wrong_ranges_are_refused(wrong):
    with pytest.raises(ValueError, match="no range of seeds"):
        shards_of("m@1", *wrong)


def test_a_shard_holds_each_picture_and_how_it_was_drawn(drawer, tmp_path):
    shard = Shard(drawer.ref("tiny-grey"), 30, 70)
    drawer.draw(shard, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [shard.name] == ["tiny-grey@1-0000000030-0000000070.tar"]
    with tarfile.open(tmp_path / shard.name) as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar}
    assert sorted(files) == sorted(f"{seed:010}.{kind}" for seed in range(30, 70) for kind in ("png", "json"))
    told = json.loads(files["0000000031.json"])
    assert (told["model"], told["seed"]) == ("tiny-grey@1", 31)
    picture = Image.open(BytesIO(files["0000000031.png"]))
    assert picture.size == (8, 8)
    assert b"trainedAlgorithmicMedia" in files["0000000031.png"]


def test_a_seed_is_the_same_picture_in_any_shard(drawer, tmp_path):
    found = []
    for shard in (Shard("tiny-rgb@1", 0, 40), Shard("tiny-rgb@1", 33, 34)):
        drawer.draw(shard, tmp_path)
        with tarfile.open(tmp_path / shard.name) as tar:
            found.append(np.asarray(Image.open(BytesIO(tar.extractfile("0000000033.png").read()))))
    assert np.array_equal(*found)


def test_drawn_again_a_shard_has_the_same_bytes(drawer, tmp_path):
    shard = Shard("tiny-rgb@1", 0, 3)
    drawer.draw(shard, tmp_path)
    before = (tmp_path / shard.name).read_bytes()
    drawer.draw(shard, tmp_path)
    assert (tmp_path / shard.name).read_bytes() == before


def test_only_what_is_missing_is_drawn(tmp_path):
    first, second = shards_of("m@1", 0, 20, 10)
    write([("a", b"1")], tmp_path / first.name)
    (tmp_path / f".{second.name}.part").write_bytes(b"half")
    assert missing([first, second], tmp_path) == [second]


def test_what_fails_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        write([("a", b"1"), ("b", None)], tmp_path / "shard.tar")
    assert not list(tmp_path.iterdir())
