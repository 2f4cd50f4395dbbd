"""Every image-to-image family and recipe: builds, moves what it trains, comes back, exports, and tiles exactly."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from tinypairs import CASES, SIDE, shrunk_pairs, tiny_pair_run, tiny_pair_trainer, tiny_pairs
from tinytraining import differing, spying

from service.manifest import Task
from service.package import verify_package
from training import checkpoint, perceptual
from training.evaluation.psnr import psnr
from training.export import export_run, read_run
from training.families import FAMILIES
from training.paired import log_error
from training.perceptual import Vgg
from training.recipe import RecipeError
from training.trainer import sheet, translate
from training.translators import FILLING

every = pytest.mark.parametrize("family, recipe", CASES)


@pytest.fixture(autouse=True)
def small_features(monkeypatch):
    """An untrained VGG instead of the fetched one: the tests need its shapes and gradients, not its taste."""

    def untrained(blocks=3, path=None):
        torch.manual_seed(0)
        return Vgg(blocks).eval()

    monkeypatch.setattr(perceptual, "load_vgg", untrained)


def test_every_family_says_what_it_is():
    for name in {name for name, _ in CASES}:
        family = FAMILIES[name]
        assert (
            family.name == name and family.paper.startswith("arXiv:") and {"paper", "modern"} <= family.recipes.keys()
        )
        for key, recipe in family.recipes.items():
            recipe.validate()
            assert recipe.name == key and not recipe.classes and recipe.channels == 3


@every
def test_builds_at_full_size(family, recipe):
    whole = FAMILIES[family].recipes[recipe]
    channels = 4 if whole.output in FILLING else 3
    with torch.device("meta"):  # shapes without numbers: the published sizes cost nothing
        nets = FAMILIES[family].nets(whole)
        source = torch.zeros(2, channels, whole.size // whole.scale, whole.size // whole.scale)
        images = nets["generator"](source)
    assert nets.training and set(nets) == {"generator", "discriminator"}
    assert images.shape == (2, 3, whole.size, whole.size)


@every
def test_one_iteration_moves_what_it_trains(tmp_path, family, recipe):
    small, seen = shrunk_pairs(family, recipe), []

    def weights(nets):
        return {(net, name): p.detach().clone() for net in nets for name, p in nets[net].named_parameters()}

    spy = spying(FAMILIES[family], lambda phase, nets, batch: seen.append((phase, weights(nets))))
    trainer = tiny_pair_trainer(tmp_path, family, small, subject=spy)
    stats = trainer.step()
    assert np.isfinite(list(stats.values())).all()
    phases = trainer.phases
    assert [phase for phase, _ in seen] == [phase.name for phase in phases]
    states = [state for _, state in seen] + [weights(trainer.nets)]
    for phase, before, after in zip(phases, states, states[1:], strict=False):
        moved = {net for (net, name), value in after.items() if not torch.equal(value, before[net, name])}
        assert moved == (set(phase.trains) if phase.step else set()), phase.name
    assert any("discriminator" in phase.trains for phase in phases) == (small.adversarial_weight > 0)


@every
def test_a_resumed_run_is_the_same_run(tmp_path, family, recipe):
    small = shrunk_pairs(family, recipe)
    one = tiny_pair_trainer(tmp_path / "one", family, small)
    one.step()
    checkpoint.save(tmp_path / "one" / "last.pt", one.state())
    reading = one.step()
    torch.manual_seed(99)
    other = tiny_pair_trainer(tmp_path / "other", family, small)
    other.restore(checkpoint.load(tmp_path / "one" / "last.pt"))
    assert other.step() == reading
    assert differing(one.state(), other.state()) == []


@every
def test_learning_brings_outputs_nearer_to_targets(tmp_path, family, recipe):
    """On one fixed pair, the similarity terms alone must fall; a wrong sign or a swapped pair would not let them."""
    small = shrunk_pairs(family, recipe, learning_rate=2e-3, adversarial_weight=0.0, decay_from=1.0, total_kimg=10.0)
    if FAMILIES[family].pairing == "paired" and not small.pixel_weight:
        small = small.replaced(pixel_weight=1.0)
    trainer = tiny_pair_trainer(tmp_path, family, small, pairs=tiny_pairs(family, small, count=2))
    losses = []
    for _ in range(30):
        stats = trainer.step()
        losses.append(sum(value for name, value in stats.items() if name.startswith("loss_")))
    assert np.mean(losses[-5:]) < 0.95 * np.mean(losses[:5])


def test_the_psnr_loss_falls_as_a_mean_psnr_rises():
    random = np.random.RandomState(0)
    targets = random.randint(40, 216, (3, 8, 8, 3))
    near = (targets + random.randint(-3, 4, targets.shape)).astype(np.uint8)
    far = (targets + random.randint(-30, 31, targets.shape)).astype(np.uint8)
    for images in (near, far, np.stack([near[0], far[1], near[2]])):
        pairs = (
            torch.from_numpy(part.astype(np.float32) / 127.5 - 1).permute(0, 3, 1, 2) for part in (images, targets)
        )
        told = 20 * np.log10(2) - 10 / np.log(10) * float(log_error(*pairs))
        assert abs(told - psnr(images, targets.astype(np.uint8)).mean()) < 0.1


@every
def test_grid_shows_inputs_outputs_and_targets(tmp_path, family, recipe):
    small = shrunk_pairs(family, recipe)
    trainer = tiny_pair_trainer(tmp_path, family, small)
    images, columns = sheet(FAMILIES[family], trainer.ema, small, *trainer.examples)
    sources, targets = trainer.examples
    each = columns // 2
    assert images.shape == (each * len(targets), SIDE, SIDE, 3) and images.dtype == np.uint8
    zoomed = sources[0, :, :, :3].repeat(small.scale, axis=0).repeat(small.scale, axis=1)
    np.testing.assert_array_equal(images[0], zoomed)
    assert any((images[i] == targets[0]).all() for i in range(each))


# Each kind of net and of answer once: an export takes seconds.
BUILT = {
    (name, r.architecture, r.generator_norm, r.output): (name, key)
    for name, key in CASES
    for r in [FAMILIES[name].recipes[key]]
}


@pytest.mark.slow
@pytest.mark.parametrize("family, recipe", BUILT.values())
def test_export_parity_any_size_and_any_batch(tmp_path, family, recipe):
    run = read_run(tiny_pair_run(tmp_path / "run", family, shrunk_pairs(family, recipe)))
    small, folders = run.recipe, export_run(run, tmp_path / "models", "tiny")
    assert len(folders) == (2 if FAMILIES[family].pairing == "unpaired" else 1)
    for folder in folders:
        manifest = verify_package(folder)
        task = Task.UPSCALE if small.scale > 1 else Task.TRANSLATE
        assert manifest.tasks == (task,) and manifest.family == family
        if task is Task.UPSCALE:
            assert manifest.upscale.scale == small.scale and manifest.upscale.alpha == "lanczos"
        else:
            assert manifest.translate.multiple == 2**small.downsamplings
            assert (manifest.translate.mask is not None) == (small.output in FILLING)
        suffix = folder.parent.name.removeprefix("tiny").removeprefix("-")
        generator = getattr(run.nets["generator"], suffix) if suffix else run.nets["generator"]
        session = onnxruntime.InferenceSession(folder / "generator.onnx", providers=["CPUExecutionProvider"])
        multiple = 2**small.downsamplings
        for rows, height, width in ((1, 5, 9), (2, 8, 3), (5, 3, 3)):
            shape = (rows, height * multiple, width * multiple)
            sources = np.random.default_rng(rows).integers(0, 256, (*shape, 3), dtype=np.uint8)
            feed = {"image": sources}
            if small.output in FILLING:
                mask = np.random.default_rng(1).choice(np.array([0, 255], np.uint8), (*shape, 1))
                feed["mask"] = mask
                hole = np.where(mask > 0, np.uint8(127), sources)
                sources = np.concatenate([hole, mask], axis=3)
            (image,) = session.run(None, feed)
            expected = translate(generator, sources, multiple)
            assert image.dtype == np.uint8 and image.shape == expected.shape
            assert image.shape[1:] == (shape[1] * small.scale, shape[2] * small.scale, 3)
            apart = np.abs(image.astype(int) - expected.astype(int))
            assert apart.max() <= 1 and (apart > 0).sum() <= 1 + apart.size // 5000


@pytest.mark.parametrize("scale", [2, 4])
def test_an_upscaling_graph_has_no_global_statistics_and_tiles_exactly(tmp_path, scale):
    """A tile with a halo as wide as the net sees gives the same bits as the whole picture."""
    small = shrunk_pairs("srgan", scale=scale)
    (folder,) = export_run(
        read_run(tiny_pair_run(tmp_path / "run", "srgan", small)), tmp_path / "models", "tiny"
    )  # fmt: skip
    graph = onnx.load(folder / "generator.onnx").graph
    spatial = {"ReduceMean", "GlobalAveragePool", "InstanceNormalization", "Resize", "MatMul", "Softmax"}
    assert not spatial & {node.op_type for node in graph.node}
    session = onnxruntime.InferenceSession(folder / "generator.onnx", providers=["CPUExecutionProvider"])
    picture = np.random.default_rng(0).integers(0, 256, (1, 48, 40, 3), dtype=np.uint8)
    (whole,) = session.run(None, {"image": picture})
    halo = 2 * 2 + 4  # two blocks of two convolutions; head, fuse, last, and the bypass's reach
    for top, left in ((0, 0), (12, 8), (24, 16)):
        y, x = max(top - halo, 0), max(left - halo, 0)
        tile = picture[:, y : top + 16 + halo, x : left + 16 + halo]
        (answer,) = session.run(None, {"image": np.ascontiguousarray(tile)})
        cut = answer[:, (top - y) * scale : (top - y + 16) * scale, (left - x) * scale : (left - x + 16) * scale]
        np.testing.assert_array_equal(
            cut, whole[:, top * scale : (top + 16) * scale, left * scale : (left + 16) * scale]
        )


def test_an_untrained_upscaler_is_nearly_bicubic(tmp_path):
    from training.evaluation.classical import answers

    small = shrunk_pairs("srgan", scale=2)
    torch.manual_seed(0)
    generator = FAMILIES["srgan"].nets(small)["generator"].eval()
    smooth = np.add.outer(np.arange(16) * 6, np.arange(16) * 5)[None, :, :, None].repeat(3, axis=3).astype(np.uint8)
    ours = translate(generator, smooth).astype(int)
    apart = np.abs(ours - answers("bicubic", smooth, smooth, 2)["bicubic"])[:, 4:-4, 4:-4]
    assert apart.mean() < 8


@pytest.mark.parametrize(
    "family, changes, message",
    [
        ("srgan", {"scale": 3}, "scale is 3, srgan has 2 and 4"),
        ("srgan", {"architecture": "unet"}, "architecture is 'unet', this family builds residual, rrdb, paper"),
        ("srgan", {"channels": 1}, "srgan takes RGB"),
        ("pix2pix", {"architecture": "residual"}, "architecture is 'residual', this family builds unet, resnet"),
        ("pix2pix", {"scale": 2}, "scale is 2, pix2pix keeps sizes"),
        ("pix2pix", {"size": 18}, "size is 18, must be a multiple of 4"),
        ("pix2pix", {"downsamplings": 0}, "a U-Net needs at least 1"),
        ("pix2pix", {"degradation": "holes"}, "holes go with 'fill' or 'inpaint'"),
        ("pix2pix", {"output": "fill"}, "holes go with 'fill' or 'inpaint'"),
        ("cyclegan", {"channels": 1}, "cyclegan takes RGB"),
    ],
)
def test_what_a_family_does_not_build_is_refused(family, changes, message):
    with pytest.raises(RecipeError, match=message):
        FAMILIES[family].nets(shrunk_pairs(family, **changes))


def test_images_alone_are_refused_and_pairs_too_where_they_do_not_belong(tmp_path):
    small = shrunk_pairs("srgan")
    with pytest.raises(RecipeError, match="family srgan trains on pairs of images"):
        tiny_pair_trainer(tmp_path, "srgan", small, pairs=np.zeros((4, 16, 16, 3), np.uint8), examples=None)
    with pytest.raises(RecipeError, match="family dcgan trains on images"):
        tiny_pair_trainer(tmp_path, "srgan", small, subject=FAMILIES["dcgan"])


def test_chroma_keeps_the_luminance_and_can_make_every_colour():
    from training.translators import LUMA, coloured

    wanted = torch.rand(1, 3, 8, 8) * 2 - 1
    luma = sum(weight * wanted[:, i : i + 1] for i, weight in enumerate(LUMA))
    cb = (wanted[:, 2:] - luma) / (2 - 2 * LUMA[2])
    cr = (wanted[:, :1] - luma) / (2 - 2 * LUMA[0])
    found = coloured(luma.expand(-1, 3, -1, -1), torch.cat([cb, cr], dim=1))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    other = coloured(wanted, torch.rand(1, 2, 8, 8) - 0.5)
    torch.testing.assert_close(sum(w * other[:, i : i + 1] for i, w in enumerate(LUMA)), luma, atol=1e-5, rtol=0)


def test_filling_leaves_known_pixels_alone():
    small = shrunk_pairs("pix2pix", "holes")
    generator = FAMILIES["pix2pix"].nets(small)["generator"].eval()
    sources, targets = tiny_pairs("pix2pix", small).draw(np.arange(4), np.arange(4))
    answers, missing = translate(generator, sources, 4), sources[..., 3] == 255
    assert missing.any()
    np.testing.assert_array_equal(answers[~missing], targets[~missing])
    assert (answers[missing] != sources[missing][:, :3]).any()


def test_a_conditional_discriminator_looks_at_the_source():
    small = shrunk_pairs("pix2pix")
    judge = FAMILIES["pix2pix"].nets(small)["discriminator"].eval()
    image, one, other = torch.rand(3, 1, 3, 16, 16)
    assert not torch.equal(judge(image, one), judge(image, other))


def test_the_pool_returns_new_and_earlier_images():
    from training.families.cyclegan import ImagePool

    torch.manual_seed(0)
    pool = ImagePool(4, 1)
    fakes = torch.arange(1.0, 101.0).view(100, 1, 1, 1).expand(-1, 3, 1, 1)
    torch.testing.assert_close(pool(fakes[:4]), fakes[:4])  # while it fills, what comes is shown
    shown = torch.cat([pool(fakes[i : i + 4]) for i in range(4, 100, 4)])[:, 0, 0, 0]
    earlier = (shown != fakes[4:, 0, 0, 0]).float().mean()
    assert 0.3 < earlier < 0.7 and (shown <= fakes[4:, 0, 0, 0] + 3).all()
    assert int(pool.count) == 4 and torch.equal(ImagePool(0, 1)(fakes), fakes)


def test_the_cycle_error_is_that_of_going_there_and_back(tmp_path):
    trainer = tiny_pair_trainer(tmp_path, "cyclegan", shrunk_pairs("cyclegan", precision="fp32", decay_from=1.0))
    nets = trainer.nets
    source, target = trainer.images.draw(np.arange(4), np.arange(4))
    from training.family import Batch
    from training.layers import from_pixels

    a, b = (from_pixels(torch.from_numpy(part)) for part in (source, target))
    losses = FAMILIES["cyclegan"].loss("generator", nets, Batch(b, torch.zeros(4, 0), source=a), trainer.recipe)
    with torch.no_grad():
        there_and_back = nets["generator"].b2a(nets["generator"].a2b(a))
    assert losses.stats["cycle_error_a2b"] == pytest.approx(float((there_and_back - a).abs().mean()), rel=1e-5)
    assert losses.terms["cycle_a2b"].detach() == pytest.approx(10 * float(losses.stats["cycle_error_a2b"]), rel=1e-5)


def test_shading_keeps_grids_from_pixel_to_pixel_out():
    small = shrunk_pairs("cyclegan", output="shade")
    net = FAMILIES["cyclegan"].nets(small)["generator"].a2b.eval()
    assert "blur" in net.state_dict()
    source = torch.zeros(1, 3, 16, 16)
    grid = torch.ones(1, 3, 16, 16)
    grid[..., ::2] = -1
    flat = torch.full((1, 3, 16, 16), 0.5)
    for answer, kept in ((grid, 0.0), (flat, 0.5)):
        net.body.forward = lambda _, answer=answer: answer
        inner = net(source)[..., 4:-4, 4:-4]
        torch.testing.assert_close(inner, torch.full_like(inner, kept), atol=1e-6, rtol=0)


def test_noise_on_what_goes_back_costs_what_was_hidden(tmp_path):
    from training.family import Batch

    recipe = shrunk_pairs("cyclegan", precision="fp32", decay_from=1.0, condition_noise=0.2, output="residual")
    trainer = tiny_pair_trainer(tmp_path, "cyclegan", recipe)
    for parameter in trainer.nets["generator"].parameters():
        parameter.data.zero_()  # both nets are the identity: without noise the cycle would be without error
    images = torch.rand(4, 3, 16, 16)
    batch = Batch(images, torch.zeros(4, 0), source=images)
    stats = FAMILIES["cyclegan"].loss("generator", trainer.nets, batch, recipe).stats
    assert float(stats["cycle_error_a2b"]) == pytest.approx(0.2 * (2 / torch.pi) ** 0.5, rel=0.1)


@pytest.mark.parametrize(
    ("family", "changes", "says"),
    [
        ("pix2pix", {"r2_gamma": 0.2}, "r2_gamma is 0.2, a penalty that pix2pix does not compute"),
        ("pix2pix", {"gp_lambda": 10.0}, "gp_lambda"),
        ("srgan", {"r2_gamma": 0.2}, "r2_gamma"),
        ("cyclegan", {"r1_gamma": 0.2}, "it has none"),
    ],
)
def test_penalties_that_would_be_missing_are_refused(family, changes, says):
    recipe = FAMILIES[family].recipes["modern"].replaced(adversarial_weight=1.0, **changes)
    with pytest.raises(RecipeError, match=says):
        FAMILIES[family].nets(recipe)
    FAMILIES[family].nets(recipe.replaced(adversarial_weight=0.0))
