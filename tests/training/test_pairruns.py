"""Image-to-image families by the command line, over real files: train, resume, evaluate, export."""

import json

import numpy as np
import pytest
from PIL import Image

from service.manifest import Task
from service.package import verify_package
from training import perceptual
from training.__main__ import main
from training.evaluation import pairwise

TINY = ["--threads", "1", "--kimg", "0.024", "--size", "16", "--snapshot-kimg", "0.012"]
TINY += [f"--set={field}" for field in ("generator_width=4", "discriminator_width=4", "batch_size=4")]
TINY += ["--set=residual_blocks=1", "--set=perceptual_weight=0", "--set=load_size=24"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Sixty soft pictures of 24 px."""
    root = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for index in range(60):
        small = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        small.resize((24, 24), Image.Resampling.BICUBIC).save(root / f"{index}.png")
    return root


@pytest.fixture(autouse=True)
def cheap_features(monkeypatch):
    """Pixels instead of a pretrained network's features, and no LPIPS-HED: the way is tested, not the figures."""
    monkeypatch.setattr(pairwise, "Lite0Features", lambda: lambda images: images.reshape(len(images), -1)[:, :12] / 255)
    monkeypatch.setattr(perceptual, "WEIGHTS", perceptual.WEIGHTS)


def run(tmp_path, family, data, *more):
    command = ["train", "--family", family, "--data", str(data), "--run", str(tmp_path / "run")]
    command += ["--data-root", str(tmp_path / "no-data"), "--evaluate-kimg", "0.012"]
    return main([*command, *TINY, *more])


def rows(directory, kind):
    lines = [json.loads(line) for line in (directory / "stats.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def test_degraded_pairs_from_training_to_a_model_folder(tmp_path, photos, capsys):
    assert run(tmp_path, "pix2pix", photos, "--recipe", "weather") == 0
    directory = tmp_path / "run"
    facts = json.loads((directory / "recipe.json").read_text())
    assert facts["recipe"]["degradation"] == "weather" and facts["data"]["classes"] == []
    assert {"loss_pixel", "loss_adversarial", "psnr"} <= rows(directory, "train")[-1].keys()
    assert {"psnr", "ssim", "error"} <= rows(directory, "evaluation")[-1].keys() and (directory / "best.pt").is_file()
    grid = np.asarray(Image.open(sorted((directory / "samples").iterdir())[-1]))
    assert grid.shape[1] > 6 * 24 and grid.shape[2] == 3
    evaluate = ["evaluate", "--run", str(directory), "--data-root", str(tmp_path / "no-data"), "--threads", "1"]
    assert main(evaluate) == 0
    judged = json.loads((directory / "evaluation.json").read_text())
    seen, unseen = judged["tables"].values()
    assert list(seen) == list(unseen)
    assert list(seen) == ["this model", "the input itself", "median filter, 3 px", "median filter, 5 px"]
    assert seen["the input itself"] != unseen["the input itself"]
    export = ["export", "--run", str(directory), "--name", "dry", "--models", str(tmp_path / "models")]
    assert main(export) == 0
    folder = tmp_path / "models" / "dry" / "1"
    manifest, card = verify_package(folder), (folder / "CARD.md").read_text()
    assert manifest.tasks == (Task.TRANSLATE,) and manifest.evaluation[0].metric == "PSNR"
    assert "Translates** RGB images of any size; trained on pairs made by `weather`" in card
    assert "input, output, target" in card and "| this model |" in card and "its only size" not in card
    capsys.readouterr()


def test_another_run_stands_in_the_same_table(tmp_path, photos, capsys):
    fast = ["--set", "learning_rate=0.01"]  # so few steps at the usual rate may round to the very same pixels
    assert run(tmp_path, "pix2pix", photos, "--recipe", "weather", *fast) == 0
    (tmp_path / "run").rename(tmp_path / "judged")
    l1 = ["--set", "adversarial_weight=0", "--set", "perceptual_weight=0", *fast]
    assert run(tmp_path, "pix2pix", photos, "--recipe", "weather", *l1) == 0
    judge = ["evaluate", "--data-root", str(tmp_path / "no-data"), "--threads", "1", "--run", str(tmp_path / "judged")]
    assert main([*judge, "--beside", str(tmp_path / "run")]) == 0
    tables = json.loads((tmp_path / "judged" / "evaluation.json").read_text())["tables"]
    for table in tables.values():
        assert [name for name in table if name.startswith("L1 alone, ")] == [list(table)[-1]]
        assert table["this model"] != table[list(table)[-1]] != table["the input itself"]
    (tmp_path / "run").rename(tmp_path / "other")
    assert run(tmp_path, "pix2pix", photos, "--recipe", "old") == 0
    capsys.readouterr()
    assert main([*judge, "--beside", str(tmp_path / "run")]) == 1
    assert "recipe's degradation is 'old', this run's 'weather'" in capsys.readouterr().err


def test_upscaling_is_measured_beside_bicubic(tmp_path, photos, capsys):
    assert run(tmp_path, "srgan", photos, "--set=scale=2") == 0
    evaluate = ["evaluate", "--run", str(tmp_path / "run"), "--data-root", str(tmp_path / "no-data"), "--threads", "1"]
    assert main(evaluate) == 0
    (table,) = json.loads((tmp_path / "run" / "evaluation.json").read_text())["tables"].values()
    assert list(table) == ["this model", "bicubic", "Lanczos"]
    assert "| bicubic |" in capsys.readouterr().out


def test_two_sets_give_a_table_each_way_and_the_cycle_error(tmp_path, photos, capsys):
    assert run(tmp_path, "cyclegan", f"{photos},{photos}") == 0
    assert not rows(tmp_path / "run", "evaluation")  # without counterparts there is no error to choose by
    evaluate = ["evaluate", "--run", str(tmp_path / "run"), "--data-root", str(tmp_path / "no-data"), "--threads", "1"]
    assert main(evaluate) == 0
    tables = json.loads((tmp_path / "run" / "evaluation.json").read_text())["tables"]
    assert [list(table) for table in tables.values()] == [
        ["this model", "the input itself"],
        ["this model", "the input itself"],
        ["a2b and back", "b2a and back"],
    ]
    assert "PSNR" in capsys.readouterr().out


def test_resuming_goes_on(tmp_path, photos):
    assert run(tmp_path, "srgan", photos) == 0
    assert run(tmp_path, "srgan", photos, "--resume", "--kimg", "0.04") == 0
    assert rows(tmp_path / "run", "train")[-1]["kimg"] == 0.04


def test_a_second_stage_starts_from_the_first_ones_weights(tmp_path, photos):
    assert run(tmp_path, "srgan", photos) == 0
    (tmp_path / "run").rename(tmp_path / "first")
    assert run(tmp_path, "srgan", photos, "--recipe", "sharp", "--start-from", str(tmp_path / "first")) == 0
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["started_from"]["images"] == 24
    assert "loss_adversarial" in rows(tmp_path / "run", "train")[-1]


@pytest.mark.parametrize(
    "family, more, message",
    [
        ("pix2pix", ["--set=degradation=fog"], "degradation is 'fog', must be one of bicubic"),
        ("pix2pix", ["--set=degradation=rain-unseen"], "kept for tests"),
        ("pix2pix", [], "holds no usable pair"),
        ("srgan", ["--set=scale=3"], "scale is 3, srgan has 2 and 4"),
        ("srgan", ["--size", "18"], "size is 18, must be a multiple of the scale 4"),
        ("srgan", ["--size", "32"], "size is 32, but the images have 24 x 24 px"),
        ("srgan", ["--set=perceptual_weight=1"], "`python -m training data hed-vgg` fetches it"),
        ("cyclegan", [], "want two sets with a comma between"),
    ],
)
def test_bad_input_is_one_clear_line(tmp_path, photos, capsys, family, more, message):
    assert run(tmp_path, family, photos, *more) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("python -m training train: ")]
    assert len(lines) == 1 and message in lines[0]
    assert not (tmp_path / "run" / "recipe.json").exists()
