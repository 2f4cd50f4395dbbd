"""The command line over real files: what it lists, refuses in one line, leaves behind when interrupted."""

import json
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from tinytraining import differing

from training import checkpoint, commands
from training.__main__ import COMMANDS, main
from training.datasets import ImageSet, prepared
from training.families import FAMILIES
from training.losses import OBJECTIVES
from training.trainer import Trainer

EMPTY = np.zeros((0, 8, 8, 1), np.uint8)
NO_IMAGES = ImageSet("none", EMPTY, EMPTY, None, None, (), "CC0", "none", "")
TINY = ["--threads", "1", "--size", "8", "--kimg", "0.04"]
TINY += [f"--set={field}" for field in ("generator_width=4", "discriminator_width=4", "batch_size=8", "latent_dim=4")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Thirty images in two classes: dark and bright noise."""
    root = tmp_path_factory.mktemp("own")
    random = np.random.default_rng(0)
    for name, low, high in (("dark", 0, 100), ("bright", 150, 256)):
        (root / name).mkdir()
        for index in range(15):
            Image.fromarray(random.integers(low, high, (8, 8), dtype=np.uint8)).save(root / name / f"{index}.png")
    return root


def train(folder, run, *more, family="gan"):
    command = ["train", "--family", family, "--data", str(folder), "--run", str(run), "--evaluate-kimg", "0"]
    return main([*command, *TINY, *more])


def test_families_lists_everything(capsys):
    assert main(["families"]) == 0
    out = capsys.readouterr().out
    for family in FAMILIES.values():
        assert family.name in out and family.paper in out
        for recipe in family.recipes.values():
            assert f"{recipe.size} px, {recipe.objective}, {recipe.total_kimg:.0f} kimg" in out
    assert all(objective in out.splitlines()[-1] for objective in OBJECTIVES)
    assert out.count("(needs labels)") == sum(family.conditional for family in FAMILIES.values())


def test_usage(capsys):
    assert main(["--help"]) == 0 and main([]) == 2
    out = capsys.readouterr().out
    assert all(out.count(f"\n  {name} ") == 2 for name in COMMANDS)
    assert main(["trian"]) == 2
    assert "'trian' is none of data, train" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--family", "stylegan9"], "--family is 'stylegan9', must be one of gan, dcgan, cgan"),
        (["--recipe", "ancient"], "--recipe is 'ancient', gan has paper, modern"),
        (["--objective", "dice"], "objective is 'dice', must be one of minimax"),
        (["--set", "r1_gama=1"], "no field 'r1_gama'; did you mean r1_gamma"),
        (["--set", "r1_gamma"], "write FIELD=VALUE"),
        (["--set", "r1_gamma=much"], "r1_gamma is 'much', must be a number"),
        (["--set", "augment=sepia"], "augment names 'sepia'"),
        (["--set", "architecture=mpl"], "architecture is 'mpl', this family builds mlp, paper"),
        (["--kimg", "0"], "total_kimg is 0.0, must be above 0"),
        (["--size", "0"], "size is 0, must be at least 1"),
        (["--family", "dcgan", "--size", "9"], "size is 9, must be 4 to 7 px doubled"),
        (["--data", "no/such/place"], "'no/such/place' is neither a prepared set nor an existing path"),
        (["--device", "cuda:99"], "--device is 'cuda:99', but torch sees no CUDA device"),
    ],
)
def test_bad_input_is_one_clear_line(folder, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert train(folder, tmp_path / "run", *arguments) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith((str(folder), "  "))]
    assert line.startswith("python -m training train: ") and message in line
    assert not (tmp_path / "run" / "recipe.json").exists()


def test_a_conditional_family_on_unlabelled_images(folder, tmp_path, capsys):
    assert train(folder / "dark", tmp_path / "run", family="cgan") == 1
    assert "family cgan needs labelled images, dark has no classes" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["evaluate", "export"])
def test_no_run_there(tmp_path, capsys, command):
    more = ["--name", "x", "--models", str(tmp_path)] if command == "export" else []
    assert main([command, "--run", str(tmp_path / "nothing"), *more]) == 1
    assert f"python -m training {command}: {tmp_path / 'nothing'}: no run there" in capsys.readouterr().err


def test_train_leaves_a_whole_run(folder, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(folder, run, "--seed", "5", family="cgan") == 0
    facts = json.loads((run / "recipe.json").read_text())
    assert (facts["family"], facts["seed"], facts["threads"], facts["device"]) == ("cgan", 5, 1, "cpu")
    assert facts["data"]["classes"] == ["bright", "dark"] and facts["data"]["train"] + facts["data"]["test"] == 30
    assert facts["recipe"]["classes"] == 2 and facts["recipe"]["size"] == 8 and facts["recipe"]["total_kimg"] == 0.04
    rows = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    assert rows[-1]["kimg"] == 0.04
    assert list((run / "samples").glob("*.png")) and checkpoint.load(run / "last.pt")["iteration"] == 5
    err = capsys.readouterr().err
    assert "30 images used" in err and "img/s" in err
    assert train(folder, run, family="cgan") == 1
    assert "already holds a run: add --resume" in capsys.readouterr().err


@pytest.mark.parametrize("channels", [1, 3])
def test_a_prepared_set_decides_on_colour_unless_asked(tmp_path, channels):
    images = np.random.default_rng(0).integers(0, 256, (24, 8, 8, channels), np.uint8)
    about = {"name": "tiny", "classes": [], "license": "CC0", "source": "none"}
    prepared.write(tmp_path / "data" / "tiny", {"train_images": images[:20], "test_images": images[20:]}, about)
    root = ["--data-root", str(tmp_path / "data")]
    for family in ("gan", "dcgan"):  # recipes for grey and for colour
        assert train("tiny", tmp_path / family, *root, family=family) == 0
        assert json.loads((tmp_path / family / "recipe.json").read_text())["recipe"]["channels"] == channels
    other = 4 - channels
    assert train("tiny", tmp_path / "asked", *root, f"--set=channels={other}", family="dcgan") == 0
    assert json.loads((tmp_path / "asked" / "recipe.json").read_text())["recipe"]["channels"] == other


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_and_resumed_equals_uninterrupted(number, folder, tmp_path, monkeypatch, capsys):
    assert train(folder, tmp_path / "whole") == 0
    real = Trainer.step

    def step(self):
        if self.iteration == 2:  # in the middle of the third iteration, which is finished all the same
            signal.raise_signal(number)
        return real(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", step)
        assert train(folder, tmp_path / "broken") == 130
    assert "stopped at 0.0 kimg; go on with --resume" in capsys.readouterr().err
    assert checkpoint.load(tmp_path / "broken" / "last.pt")["iteration"] == 3
    assert train(folder, tmp_path / "broken", "--resume") == 0
    assert "resumed at" in capsys.readouterr().err
    ends = [checkpoint.load(tmp_path / name / "last.pt") for name in ("whole", "broken")]
    assert differing(*ends) == []


def test_resume_refuses_a_set_that_has_changed(folder, tmp_path, capsys):
    assert train(folder, tmp_path / "run") == 0
    assert train(folder / "dark", tmp_path / "run", "--resume") == 1
    assert "was trained on other images" in capsys.readouterr().err


def test_resume_refuses_as_many_other_images(folder, tmp_path, capsys):
    other = tmp_path / "other"
    for name in ("dark", "bright"):
        (other / name).mkdir(parents=True)
        for path in (folder / name).iterdir():
            Image.open(path).transpose(Image.Transpose.ROTATE_90).save(other / name / path.name)
    assert train(folder, tmp_path / "run") == 0
    before = (tmp_path / "run" / "recipe.json").read_bytes()
    assert train(other, tmp_path / "run", "--kimg", "0.08", "--resume") == 1
    assert "was trained on other images" in capsys.readouterr().err
    assert (tmp_path / "run" / "recipe.json").read_bytes() == before


def test_a_run_that_has_ended_says_so_and_keeps_what_it_was_trained_by(folder, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(folder, run) == 0
    before = (run / "recipe.json").read_bytes()
    assert train(folder, run, "--resume", "--set", "learning_rate=0.5", "--kimg", "0.02") == 0
    assert "has come to its end" in capsys.readouterr().err
    assert (run / "recipe.json").read_bytes() == before


def test_a_resumed_run_without_a_checkpoint_begins_from_what_it_is_told(folder, tmp_path, capsys):
    assert train(folder, tmp_path / "first") == 0
    assert train(folder, tmp_path / "second", "--resume", "--start-from", str(tmp_path / "first")) == 0
    err = capsys.readouterr().err
    assert "holds no checkpoint yet" in err and f"weights of {tmp_path / 'first'}" in err
    assert json.loads((tmp_path / "second" / "recipe.json").read_text())["started_from"]["images"] == 40
    assert train(folder, tmp_path / "third", "--start-from", str(tmp_path / "none")) == 1
    assert "neither a run (with last.pt) nor an exported version" in capsys.readouterr().err


def test_a_run_of_half_the_side_is_imitated_first(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("training.exported.GROWN_KIMG", 0.032)
    assert train(folder, tmp_path / "small", "--set", "max_channels=8", family="dcgan") == 0
    grown = ["--size", "16", "--set", "max_channels=8", "--set", "generator_width=2"]
    assert train(folder, tmp_path / "large", *grown, "--start-from", str(tmp_path / "small"), family="dcgan") == 0
    assert "imitating small: 0 kimg" in capsys.readouterr().err
    assert train(folder, tmp_path / "young", family="progan") == 0
    assert (
        train(folder, tmp_path / "old", "--size", "16", "--start-from", str(tmp_path / "young"), family="progan") == 0
    )
    assert "imitating" not in capsys.readouterr().err, "which grows by itself"
    assert json.loads((tmp_path / "large" / "recipe.json").read_text())["started_from"]["images"] == 40


def test_own_images_decide_on_colour_too(folder, tmp_path):
    (tmp_path / "own").mkdir()
    random = np.random.default_rng(0)
    for index in range(20):
        pixels = random.integers(0, 256, (8, 8, 1 if index else 3), np.uint8).repeat(3 if index else 1, axis=2)
        Image.fromarray(pixels).save(tmp_path / "own" / f"{index}.png")
    for data, family, channels in ((tmp_path / "own", "gan", 3), (folder, "dcgan", 1)):
        run = tmp_path / family
        assert train(data, run, family=family) == 0
        assert json.loads((run / "recipe.json").read_text())["recipe"]["channels"] == channels


@pytest.mark.parametrize(
    "arguments",
    [
        ["--threads", "0"], ["--within", "-1"], ["--minutes", "nan"], ["--kimg", "much"], ["--device", "gpu"],
        ["--seed", "99999999999999999999"], ["--evaluate-samples", "0"], ["--snapshot-kimg", "-1"],
    ],
)  # fmt: skip
def test_wrong_usage_names_the_argument_and_what_would_be_right(folder, tmp_path, capsys, arguments):
    with pytest.raises(SystemExit) as left:
        train(folder, tmp_path / "run", *arguments)
    line = capsys.readouterr().err.splitlines()[-1]
    assert left.value.code == 2 and f"argument {arguments[0]}: is '{arguments[1]}', must be" in line


def test_a_file_is_no_run_and_a_bad_name_no_model(folder, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert train(folder, tmp_path / "file") == 1 and "is a file" in capsys.readouterr().err
    assert train(folder, tmp_path / "run") == 0
    command = ["export", "--run", str(tmp_path / "run"), "--models", str(tmp_path / "models"), "--name"]
    for name in ("Bad Name", "../x"):
        assert main([*command, name]) == 1
        assert f"python -m training export: name is {name!r}" in capsys.readouterr().err
    assert not (tmp_path / "models").exists() or not any((tmp_path / "models").iterdir())


def test_interrupted_before_the_loop_is_no_traceback(monkeypatch, capsys):
    def interrupt(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "families", interrupt)
    assert main(["families"]) == 130 and "families: interrupted" in capsys.readouterr().err


def test_too_few_images_train_without_evaluation(folder, tmp_path, capsys):
    few = ("--evaluate-kimg", "0.01", "--evaluate-samples", "5")
    assert train(folder / "dark", tmp_path / "run", *few) == 0
    assert "5 images are too few to evaluate: training without" in capsys.readouterr().err
    assert main(["evaluate", "--run", str(tmp_path / "run"), "--threads", "1"]) == 1
    assert "needs more than 5 --samples and 11 held-out images; there are" in capsys.readouterr().err


class Rows:
    """A stand-in for the pretrained network, which the tests of features and evaluation exercise: rows' means."""

    space, fingerprint = "lite0", "rows-1"

    def __call__(self, images):
        return images.reshape(len(images), -1).astype(np.float32)[:, ::8] / 255


def figures(table):
    """A table's numbers by the first cell of their row."""
    lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")][1:]
    return {line[0]: [float(cell) for cell in line[1:]] for line in lines}


def test_a_model_that_draws_nothing_is_not_evaluated(tmp_path, capsys):
    assert main(["evaluate", "--model", "models/photo-x2/4"]) == 1
    assert "does not generate" in capsys.readouterr().err


def test_train_and_evaluate(tmp_path, monkeypatch, capsys):
    random = np.random.default_rng(1)
    (tmp_path / "many").mkdir()
    for index in range(160):
        image = Image.fromarray(random.integers(0, 256, (8, 8), dtype=np.uint8))
        image.save(tmp_path / "many" / f"{index}.png")
    monkeypatch.setattr("training.evaluation.evaluator.Lite0Features", Rows)
    run = tmp_path / "run"
    assert train(tmp_path / "many", run, "--evaluate-kimg", "0.02", "--evaluate-samples", "8") == 0
    rows = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    judged = [row for row in rows if row["kind"] == "evaluation"]
    assert [row["kimg"] for row in judged] == [0.024, 0.04]
    best = checkpoint.load(run / "best.pt")
    assert best["best"] == min(row["kid_lite0"] for row in judged)
    capsys.readouterr()
    assert main(["evaluate", "--run", str(run), "--threads", "1", "--samples", "6"]) == 0
    out = capsys.readouterr().out
    document = json.loads((run / "evaluation.json").read_text())
    assert out.strip() == (run / "evaluation.md").read_text().strip() == document["table"].strip()
    assert document["checkpoint"] == checkpoint.digest(run / "last.pt")
    assert (document["samples"], document["kimg"]) == (6, 0.04)
    assert {row["metric"] for row in document["metrics"]} >= {"KID-lite0", "FD-lite0", "recall"}
    from training.export import read_evaluation, read_run

    assert read_evaluation(read_run(run)) == document
    models = tmp_path / "models"
    assert main(["export", "--run", str(run), "--name", "shown", "--models", str(models)]) == 0
    shown = ["evaluate", "--model", str(models / "shown" / "1"), "--data-root", str(tmp_path), "--threads", "1"]
    capsys.readouterr()
    assert main([*shown, "--samples", "6", "--data", str(tmp_path / "many")]) == 0
    # The same pictures, but for a level here and there that was rounded the other way.
    found, expected = (figures(table) for table in (capsys.readouterr().out, out))
    assert found.keys() == expected.keys() and len(found) == 5
    for name, row in expected.items():
        assert found[name] == pytest.approx(row, rel=0.02, abs=0.02), name
    (tmp_path / "many" / "0.png").unlink()
    assert main(["evaluate", "--run", str(run), "--threads", "1", "--samples", "6"]) == 1
    assert "has changed since the run was trained on it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("able", "asked", "expected"),
    [({}, [], "fp32"), ({}, ["--set", "precision=bf16"], "bf16"), ({"avx512_bf16": True}, [], "bf16")],
)
def test_bfloat16_is_left_to_processors_that_have_it(monkeypatch, capsys, able, asked, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    args = commands._train_parser().parse_args(["--family", "stylegan", "--data", "x", "--run", "y", *asked])
    assert commands._recipe(FAMILIES["stylegan"], args).precision == expected
    assert ("has no bfloat16" in capsys.readouterr().out) == (expected == "fp32")
