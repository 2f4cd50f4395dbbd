"""Discriminators on pretrained features: they judge, they teach the generator, and the pretrained network stays out."""

import pytest
import torch
from tinytraining import shrunk, tiny_trainer

from training import perceptual
from training.families import FAMILIES
from training.features import FeaturesUnavailable
from training.perceptual import Vgg
from training.projected import FeatureHeads


@pytest.fixture
def small_features(monkeypatch):
    """An untrained VGG instead of the fetched one: the tests need its shapes and gradients, not its taste."""

    def untrained(blocks=3, path=None):
        torch.manual_seed(0)
        return Vgg(blocks).eval()

    monkeypatch.setattr(perceptual, "load_vgg", untrained)


@pytest.mark.parametrize("channels", [1, 3])
def test_logits_for_every_place_with_gradients_to_the_images(small_features, channels):
    torch.manual_seed(0)
    heads = FeatureHeads()
    images = (torch.rand(4, channels, 32, 32) * 2 - 1).requires_grad_(True)
    logits = heads(images)
    assert logits.shape == (4, 16**2 + 8**2 + 4**2)
    logits.mean().backward()
    assert images.grad is not None and images.grad.abs().max() > 0


def test_the_pretrained_network_is_neither_trained_nor_saved(small_features):
    heads = FeatureHeads()
    heads(torch.zeros(2, 3, 16, 16))
    assert sum(value.numel() for value in heads.state_dict().values()) < 500_000
    assert not any(name.startswith("blocks") for name, _ in heads.named_parameters())


def test_a_mixing_comes_back_with_the_checkpoint(small_features):
    first, second = FeatureHeads().eval(), FeatureHeads().eval()
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    assert not torch.equal(first(images), second(images))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(images), second(images))


@pytest.mark.parametrize("family", ["gan", "dcgan", "cgan", "stylegan"])
def test_both_players_learn_from_the_heads(small_features, tmp_path, family):
    trainer = tiny_trainer(tmp_path, family, shrunk(family).replaced(size=16, feature_weight=0.5))
    before = {name: value.clone() for name, value in trainer.nets["discriminator"].heads.named_parameters()}
    stats = trainer.step()
    assert "loss_features" in stats
    # While all logits lie within the hinge, what is added to reals and fakes alike has no gradient: weights only.
    after = {
        name: value for name, value in trainer.nets["discriminator"].heads.named_parameters() if "bias" not in name
    }
    assert len(after) == 9 and all(not torch.equal(value, before[name]) for name, value in after.items())


def test_without_a_weight_there_are_no_heads():
    assert not hasattr(FAMILIES["dcgan"].nets(shrunk("dcgan"))["discriminator"], "heads")


def test_missing_weights_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(perceptual, "WEIGHTS", tmp_path / "none.npz")
    perceptual.load_vgg.cache_clear()
    with pytest.raises(FeaturesUnavailable, match="data hed-vgg"):
        FeatureHeads()(torch.zeros(1, 3, 16, 16))
