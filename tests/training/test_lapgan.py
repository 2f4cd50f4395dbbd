"""LAPGAN: the pyramid loses nothing, levels learn apart, and composing them is drawing."""

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from tinytraining import shrunk, tiny_trainer

from service.engine.latents import latents_from_seeds
from training.families import FAMILIES
from training.families.lapgan import Finer, lower, pyramid, raised, sides_of
from training.family import Batch
from training.recipe import RecipeError

LAPGAN = FAMILIES["lapgan"]


def small(recipe="modern", **changes):
    return shrunk("lapgan", recipe, **{"size": 16, "latent_dim": 12, **changes})


@pytest.mark.parametrize("size, sides", [(8, [4, 8]), (16, [8, 16]), (28, [14, 28]), (64, [8, 16, 32, 64])])
def test_sides(size, sides):
    assert sides_of(size) == sides


def test_bands_add_up_to_the_image():
    images = torch.randn(2, 3, 32, 32)
    levels = pyramid(images, 3)
    assert [image.shape[-1] for image, _ in levels] == [8, 16, 32]
    rebuilt = levels[0][0]
    for image, enlarged in levels[1:]:
        torch.testing.assert_close(enlarged, raised(rebuilt))
        rebuilt = enlarged + (image - enlarged)
    torch.testing.assert_close(rebuilt, images)
    torch.testing.assert_close(levels[1][0], lower(images))


def test_drawing_is_one_level_after_the_other():
    torch.manual_seed(0)
    net, z = LAPGAN.nets(small(size=32, latent_dim=11))["generator"].eval(), torch.randn(3, 11)
    assert net.parts == [7, 2, 2]
    image = net.levels[0](z[:, :7])
    image = net.levels[1](z[:, 7:9], raised(image)).clamp(-1, 1)
    image = net.levels[2](z[:, 9:], raised(image)).clamp(-1, 1)
    assert torch.equal(net(z), image)
    other = z.clone()
    other[:, 9:] += 1  # the last part of z changes the last band alone
    torch.testing.assert_close(lower(net(other)), lower(image), atol=0.2, rtol=0)
    assert not torch.equal(net(other), image)


@pytest.mark.parametrize("fold", [1, 2])
def test_a_finer_level_adds_to_what_it_is_given(fold):
    level = Finer(small(), 2, 16, 8, fold)
    for parameter in level.body[-1].parameters():
        torch.nn.init.zeros_(parameter)
    given = torch.randn(2, 3, 16, 16)
    assert torch.equal(level(torch.randn(2, 2), given), given)


@pytest.mark.parametrize("recipe", ["paper", "modern"])
@pytest.mark.parametrize("phase", ["discriminator", "generator"])
def test_no_gradient_passes_between_levels(recipe, phase):
    torch.manual_seed(0)
    nets = LAPGAN.nets(small(recipe))
    batch = Batch(torch.rand(4, 3, 16, 16) * 2 - 1, torch.randn(4, 12))
    losses = LAPGAN.loss(phase, nets, batch, small(recipe))
    assert set(losses.terms) == {f"{phase}_8", f"{phase}_16"}
    losses.terms[f"{phase}_16"].backward()
    touched = {name for name, p in nets[phase].named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert touched and all(name.startswith("levels.1.") for name in touched)


def test_levels_learn_as_they_would_alone(tmp_path):
    """What the coarsest level becomes does not depend on what the finer ones do."""
    recipe = small(condition_noise=0.0)
    ends = []
    for hindered in (False, True):
        trainer = tiny_trainer(tmp_path / str(hindered), "lapgan", recipe)
        if hindered:
            with torch.no_grad():
                for parameter in trainer.nets["generator"].levels[1].parameters():
                    parameter.mul_(3.0)
        for _ in range(3):
            trainer.step()
        ends.append([p.detach().clone() for p in trainer.nets["generator"].levels[0].parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))


def test_finer_levels_are_given_rougher_images_while_they_learn():
    seen = []
    nets = LAPGAN.nets(small())
    nets["generator"].levels[1].register_forward_hook(lambda module, given, answer: seen.append(given[1]))
    real = torch.rand(4, 3, 16, 16) * 2 - 1
    for strength in (0.0, 0.5):
        LAPGAN.loss("generator", nets, Batch(real, torch.randn(4, 12)), small(condition_noise=strength))
    assert torch.equal(seen[0], raised(lower(real)))
    deviation = (seen[1] - seen[0]).std(dim=(1, 2, 3))
    assert deviation.max() <= 0.6 and deviation.min() >= 0 and deviation.std() > 0


def test_what_cannot_be_a_pyramid_is_refused():
    with pytest.raises(RecipeError, match="latent_dim is 1, must be more than 1 for 2 levels"):
        LAPGAN.nets(small(latent_dim=1))
    with pytest.raises(RecipeError, match=r"feature_weight is 0\.5, but levels judge bands"):
        LAPGAN.nets(small(feature_weight=0.5))
    with pytest.raises(RecipeError, match="size is 9"):
        LAPGAN.nets(replace(small(), size=9))


@pytest.mark.slow
def test_the_levels_graphs_compose_to_the_whole_one(exported):
    run, folder = exported("lapgan", "modern")
    names = ["level-4", "level-8", "generator"]
    sessions = {
        name: onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])
        for name in names
    }
    assert {path.stem for path in folder.glob("*.onnx")} == set(names)
    z = latents_from_seeds(range(4), run.recipe.latent_dim)
    first, second = np.split(z, [run.nets["generator"].parts[0]], axis=1)
    (image,) = sessions["level-4"].run(None, {"z": first})
    (finer,) = sessions["level-8"].run(None, {"z": second, "image": image})
    (whole,) = sessions["generator"].run(None, {"z": z})
    # Apart from the rounding to levels in between.
    assert image.shape == (4, 4, 4, 3) and np.abs(finer.astype(int) - whole.astype(int)).max() <= 3
