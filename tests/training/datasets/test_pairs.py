"""Pairs: crops that match, determinism, folders of pairs, unpaired sets, and what is refused."""

import numpy as np
import pytest
from PIL import Image
from tinyimages import png, rgb

from training.datasets import DataError, PairOptions, load_pairs
from training.datasets.degrade import DEGRADATIONS
from training.datasets.pairs import Cut, DegradedPairs, StoredPairs, UnpairedSets, examples
from training.datasets.resize import fit_pair

GREY, BICUBIC, HOLES = (DEGRADATIONS[name] for name in ("grey", "bicubic", "holes"))


def images(count: int = 6, side: int = 24, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def drawn(pairs, indices, turns):
    return pairs.draw(np.array(indices, np.int64), np.array(turns, np.int64))


def test_the_same_index_and_turn_give_the_same_pair_whatever_stands_beside_it():
    pairs = DegradedPairs(images(), HOLES, Cut(16, mirror=True), seed=1)
    sources, targets = drawn(pairs, [4, 2, 2], [10, 11, 12])
    alone = drawn(pairs, [2], [11])
    np.testing.assert_array_equal(alone[0][0], sources[1])
    np.testing.assert_array_equal(alone[1][0], targets[1])
    assert (sources[1] != sources[2]).any()  # another turn, another crop and damage
    other = DegradedPairs(images(), HOLES, Cut(16, mirror=True), seed=2)
    assert any((drawn(other, [2], [turn])[0] != drawn(pairs, [2], [turn])[0]).any() for turn in range(4))


def test_both_sides_are_cropped_and_mirrored_alike():
    pairs = DegradedPairs(images(), GREY, Cut(16, mirror=True))
    for turn in range(12):
        (source,), (target,) = drawn(pairs, [turn % 6], [turn])
        np.testing.assert_array_equal(source, GREY.apply(target, np.random.default_rng(0)))
    stored = StoredPairs(images(), 255 - images(), Cut(16, mirror=True))
    for turn in range(12):
        source, target = drawn(stored, [turn % 6], [turn])
        np.testing.assert_array_equal(source, 255 - target)


def test_quarter_turns_turn_both_sides_and_all_four_happen():
    whole = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(1, 16, 16, 3)
    small = whole[:, ::2, ::2]
    pairs = StoredPairs(small, whole, Cut(16, rotate=True))
    found = set()
    for turn in range(40):
        sources, targets = pairs.draw(np.array([0]), np.array([turn]))
        turns = next(turns for turns in range(4) if np.array_equal(targets[0], np.rot90(whole[0], turns)))
        assert np.array_equal(sources[0], np.rot90(small[0], turns))
        found.add(turns)
    assert found == {0, 1, 2, 3}


def test_crops_of_pairs_of_unlike_size_lie_on_the_smaller_ones_grid():
    small = images(4, 8)
    large = small.repeat(3, axis=1).repeat(3, axis=2)
    pairs = StoredPairs(small, large, Cut(12, mirror=True))
    for turn in range(12):
        (source,), (target,) = drawn(pairs, [turn % 4], [turn])
        assert source.shape == (4, 4, 3)
        np.testing.assert_array_equal(source.repeat(3, axis=0).repeat(3, axis=1), target)


def test_shrinking_shows_larger_pieces_at_the_same_size():
    ramp = np.broadcast_to(np.arange(0, 240, 10, dtype=np.uint8)[None, None, :, None], (1, 24, 24, 3)).copy()
    slopes = set()
    for turn in range(20):
        _, (target,) = drawn(DegradedPairs(ramp, GREY, Cut(12, shrink=2.0)), [0], [turn])
        assert target.shape == (12, 12, 3)
        slopes.add(round(float(np.diff(target[6, 2:-2, 0].astype(int)).mean())))
    assert min(slopes) <= 13 and max(slopes) >= 17  # 10 levels a pixel as they are, up to 20 at half the size


def test_scaling_pairs():
    sources, targets = drawn(DegradedPairs(images(), BICUBIC, Cut(16), scale=4), [0, 1], [0, 0])
    assert sources.shape == (2, 4, 4, 3) and targets.shape == (2, 16, 16, 3)
    odd = DegradedPairs(images(side=22), BICUBIC, Cut(0), scale=4)  # whole images that the scale does not divide
    sources, targets = drawn(odd, [0], [0])
    assert sources.shape == (1, 5, 5, 3) and targets.shape == (1, 20, 20, 3)


def test_the_target_may_be_what_is_made():
    source, target = drawn(DegradedPairs(images(), DEGRADATIONS["night"], Cut(24)), [0], [0])
    np.testing.assert_array_equal(source[0], images()[0])
    assert target.mean() < source.mean()


def test_unpaired_sets_draw_both_sides():
    a, b = images(5), np.full((3, 30, 30, 3), 7, np.uint8) + np.arange(3, dtype=np.uint8)[:, None, None, None]
    pairs = UnpairedSets(a, b, Cut(16))
    assert len(pairs) == 5
    sources, targets = drawn(pairs, list(range(5)) * 6, list(range(30)))
    assert sources.shape == targets.shape == (30, 16, 16, 3)
    assert set(np.unique(targets)) == {7, 8, 9}


def test_examples_are_always_the_same():
    pairs = DegradedPairs(images(), HOLES, Cut(0))
    one, again = examples(pairs, 4), examples(pairs, 4)
    np.testing.assert_array_equal(one[0], again[0])
    assert len(one[0]) == 4 and len(examples(pairs, 99)[0]) == 6


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: DegradedPairs(images(), GREY, Cut(25)), "size is 25, but the images have 24 x 24 px"),
        (lambda: DegradedPairs(images(), BICUBIC, Cut(18), scale=4), "size is 18, must be a multiple of the scale 4"),
        (lambda: DegradedPairs(images()[..., :1], GREY, Cut(8)), "must be uint8"),
        (lambda: DegradedPairs(images(0), GREY, Cut(8)), "no images"),
        (lambda: StoredPairs(images(3), images(2), Cut(8)), "3 sources for 2 targets"),
        (lambda: StoredPairs(images(2, 16), images(2), Cut(8)), "no multiple"),
        (lambda: UnpairedSets(images(3), images(0), Cut(8)), "3 sources and 0 targets"),
    ],
)
def test_what_cannot_be_cut_is_refused(make, message):
    with pytest.raises(DataError, match=message):
        make()


def folder_pairs(root, names=("input", "target"), count=12):
    for index in range(count):
        for side, name in enumerate(names):
            (root / name).mkdir(parents=True, exist_ok=True)
            kind = "png" if side else "webp"  # the format may differ, the stem decides
            image = np.full((20, 20, 3), 10 * index + 5 * side, np.uint8)
            path = root / name / f"{index:02d}.{kind}"
            Image.fromarray(image).save(path, **({} if side else {"lossless": True}))
    return root


@pytest.mark.parametrize("names", [("input", "target"), ("a", "b"), ("A", "B")])
def test_two_folders_of_pairs(tmp_path, names):
    folder_pairs(tmp_path, names)
    (tmp_path / names[0] / "lonely.png").write_bytes(png(rgb(9)))
    (tmp_path / names[1] / "00.txt").write_text("")  # replaces 00 by what is no image
    (tmp_path / names[1] / "00.png").unlink()
    reports = []
    found = load_pairs(str(tmp_path), PairOptions(size=16, load_size=20), "paired", report=reports.append)
    (report,) = reports
    assert report.left_out["no-counterpart"] == [f"{names[0]}/lonely.png"] and report.used == 11
    assert len(found.train) + len(found.test) == 11 and len(found.test) >= 1
    for pairs, side in ((found.train, 16), (found.test, 20)):
        indices = list(range(len(pairs)))
        sources, targets = drawn(pairs, indices, indices)
        assert sources.shape == (len(pairs), side, side, 3)
        np.testing.assert_array_equal(targets.astype(int) - sources, 5)  # each with its own counterpart
    again = load_pairs(str(tmp_path), PairOptions(size=16, load_size=20), "paired")
    assert again.fingerprint == found.fingerprint and found.unseen is None


def test_pictures_side_by_side(tmp_path):
    for index in range(6):
        both = np.concatenate(
            [np.full((16, 16, 3), 10 * index, np.uint8), np.full((16, 16, 3), 200 + index, np.uint8)], 1
        )
        Image.fromarray(both).save(tmp_path / f"{index}.png")
    (tmp_path / "square.png").write_bytes(png(rgb(0)))
    reports = []
    found = load_pairs(str(tmp_path), PairOptions(size=8, load_size=16), "paired", report=reports.append)
    assert reports[0].left_out == {"not-side-by-side": ["square.png"]}
    sources, targets = drawn(found.train, range(len(found.train)), range(len(found.train)))
    np.testing.assert_array_equal(targets[:, 0, 0, 0].astype(int) - 200, sources[:, 0, 0, 0] // 10)


def test_degraded_pairs_hold_out_images_and_know_the_unseen_generator(folder):
    options = PairOptions(size=8, load_size=16, degradation="rain", seed=4)
    found = load_pairs(str(folder), options, "paired")
    assert found.unseen is not None and len(found.unseen) == len(found.test)
    (seen, clean), (unseen, same) = examples(found.test, 2), examples(found.unseen, 2)
    np.testing.assert_array_equal(clean, same)
    assert (seen != unseen).any() and clean.shape[1:] == (16, 16, 3)
    train = {image.tobytes() for image in drawn_clean(found.train)}
    assert not train & {image.tobytes() for image in drawn_clean(found.test)}


def drawn_clean(pairs):
    return list(pairs.clean)


def test_unpaired_folders(tmp_path, folder):
    other = tmp_path / "drawings"
    other.mkdir()
    for index in range(12):
        (other / f"{index}.png").write_bytes(png(rgb(100 + index)))
    by_names = load_pairs(f"{folder}, {other}", PairOptions(size=8), "unpaired")
    assert by_names.unpaired and by_names.name == "photos and drawings" and len(by_names.train) >= 10
    by_folder = load_pairs(str(tmp_path), PairOptions(size=8), "unpaired")
    assert by_folder.name == "drawings and photos"


@pytest.mark.parametrize(
    "options, pairing, message",
    [
        ({"degradation": "rain-unseen"}, "paired", "kept for tests"),
        ({"degradation": "bicubic"}, "paired", "'bicubic' needs a scale of 2 or more, scale is 1"),
        ({"degradation": "grey", "scale": 4}, "paired", "'grey' goes with scale 1, scale is 4"),
        ({"degradation": "fog"}, "paired", "degradation is 'fog'"),
        ({}, "unpaired", "want two sets with a comma between"),
        ({}, "paired", "holds no usable pair"),
    ],
)
def test_bad_asks_are_answered(folder, options, pairing, message):
    with pytest.raises(DataError, match=message):
        load_pairs(str(folder), PairOptions(size=8, **options), pairing)


def test_a_place_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="no such folder or zip of pairs"):
        load_pairs(str(tmp_path / "nowhere"), PairOptions(size=8), "paired")


def pictures(folder, count, size, seed=0):
    """`count` pictures by name: random at 24 x 20 px and enlarged."""
    random = np.random.default_rng(seed)
    for index in range(count):
        small = Image.fromarray(random.integers(0, 256, (20, 24, 3), np.uint8))
        yield index, small, small.resize(size, Image.Resampling.BICUBIC)


def test_what_is_held_out_does_not_depend_on_the_size(tmp_path):
    """A run at one size, and one that starts from it at another, must not train on each other's held-out pairs."""
    for side in ("input", "target"):
        (tmp_path / side).mkdir()
    for index, small, large in pictures(tmp_path, 60, (48, 40)):
        small.save(tmp_path / "input" / f"{index}.png")
        large.save(tmp_path / "target" / f"{index}.png")
    found = []
    for size in (8, 16):
        pairs = load_pairs(str(tmp_path), PairOptions(size=size), "paired", test_fraction=0.3)
        small = [
            np.asarray(Image.fromarray(one).resize((4, 4), Image.Resampling.BOX), int) for one in pairs.test.targets
        ]
        found.append(small)
    assert len(found[0]) == len(found[1]) >= 8
    for one in found[0]:
        assert min(np.abs(one - other).mean() for other in found[1]) < 12, "the same pictures, at another size"


def test_inputs_of_one_target_stay_together(tmp_path):
    for side in ("input", "target"):
        (tmp_path / side).mkdir()
    for index, small, _ in pictures(tmp_path, 20, (24, 20)):
        for kind in range(4):
            Image.eval(small, lambda value, kind=kind: value // (kind + 1)).save(
                tmp_path / "input" / f"{index}-{kind}.png"
            )
            small.save(tmp_path / "target" / f"{index}-{kind}.png")
    pairs = load_pairs(str(tmp_path), PairOptions(size=16), "paired", test_fraction=0.3)
    trained = {one.tobytes() for one in pairs.train.targets}
    assert len(pairs.test) and not trained & {one.tobytes() for one in pairs.test.targets}


def test_a_picture_and_its_enlargement_are_cut_at_the_same_place():
    wide, high = 101, 50
    rows, columns = np.mgrid[: 4 * high, : 4 * wide]
    levels = np.rint(127 + 100 * np.sin(columns / 9) * np.cos(rows / 11)).astype(np.uint8)
    large = Image.fromarray(np.repeat(levels[..., None], 3, axis=2))
    small = large.resize((wide, high), Image.Resampling.BOX)
    one, two = fit_pair(small, large, 50, 200)
    again = np.asarray(Image.fromarray(two).resize((50, 50), Image.Resampling.BOX), int)
    assert np.abs(again - one).mean() < 0.5


def test_unpaired_examples_are_each_another():
    sets = UnpairedSets(images(20), images(30, seed=1), Cut(0))
    sources, targets = examples(sets, 15)
    assert len({one.tobytes() for one in targets}) == len({one.tobytes() for one in sources}) == 15
    assert len(examples(sets, 40)[1]) == 20


@pytest.mark.parametrize("wide", [*range(30, 60, 7), 101, 161])
def test_any_ratio_is_cut_within_the_picture(wide):
    """Of a quotient, a bit may be lost: times what it was divided by, it can be more than there is."""
    for other in (wide - 1, wide, wide + 1, 2 * wide, 3 * wide - 1, 49):
        one, two = (Image.new("RGB", (side, max(side // 2, 1))) for side in (wide, other))
        assert [part.shape for part in fit_pair(one, two, 8, 16)] == [(8, 8, 3), (16, 16, 3)]
