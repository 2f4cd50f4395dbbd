"""Objectives and penalties against numbers worked out from the papers' formulas."""

import numpy as np
import pytest
import torch
from tinytraining import shrunk
from torch import nn

from training.families import FAMILIES
from training.family import Batch, Phase
from training.losses import (
    OBJECTIVES,
    gradient_penalty,
    r1_penalty,
    two_player_loss,
    two_player_phases,
    with_objective,
)
from training.recipe import Recipe, RecipeError

LN = np.log
REAL, FAKE = np.array([0.0, LN(3.0), 2.5]), np.array([-LN(3.0), 0.0, 1.5])


def probability(logits):
    return 1 / (1 + np.exp(-logits))


# D's loss and G's loss, as the papers write them, of D's probabilities or of the critic's scores.
EXPECTED = {
    "minimax": (
        -np.mean(LN(probability(REAL))) - np.mean(LN(1 - probability(FAKE))),
        np.mean(LN(1 - probability(FAKE))),
    ),
    "non_saturating": (
        -np.mean(LN(probability(REAL))) - np.mean(LN(1 - probability(FAKE))),
        -np.mean(LN(probability(FAKE))),
    ),
    "least_squares": (np.mean((REAL - 1) ** 2) / 2 + np.mean(FAKE**2) / 2, np.mean((FAKE - 1) ** 2) / 2),
    "hinge": (
        -np.mean(np.minimum(0, -1 + REAL)) - np.mean(np.minimum(0, -1 - FAKE)),
        -np.mean(FAKE),
    ),
    "wasserstein": (np.mean(FAKE) - np.mean(REAL), -np.mean(FAKE)),
    "wasserstein_gp": (np.mean(FAKE) - np.mean(REAL), -np.mean(FAKE)),
    "relativistic": (-np.mean(LN(probability(REAL - FAKE))), -np.mean(LN(probability(FAKE - REAL)))),
}


def test_every_objective_has_a_reference():
    assert EXPECTED.keys() == OBJECTIVES.keys()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_values(name):
    real, fake = torch.from_numpy(REAL), torch.from_numpy(FAKE)
    found = OBJECTIVES[name].discriminator(real, fake), OBJECTIVES[name].generator(real, fake)
    np.testing.assert_allclose([float(loss) for loss in found], EXPECTED[name], rtol=1e-12)


def test_values_by_hand():
    # sigmoid(0) = 1/2, sigmoid(ln 3) = 3/4, sigmoid(-ln 3) = 1/4
    real, fake = torch.tensor([0.0, LN(3.0)]), torch.tensor([-LN(3.0), 0.0])
    goodfellow = -(LN(1 / 2) + LN(3 / 4)) / 2 - (LN(3 / 4) + LN(1 / 2)) / 2
    assert float(OBJECTIVES["minimax"].discriminator(real, fake)) == pytest.approx(goodfellow)
    assert float(OBJECTIVES["non_saturating"].generator(real, fake)) == pytest.approx(LN(8) / 2)
    assert float(OBJECTIVES["relativistic"].discriminator(real, fake)) == pytest.approx(LN(4 / 3))
    assert float(OBJECTIVES["relativistic"].generator(real, fake)) == pytest.approx(LN(4))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_extreme_logits_stay_finite_and_say_where_to_go(name):
    for winner in (1e4, -1e4):
        real = torch.full((4,), winner, requires_grad=True)
        fake = torch.full((4,), -winner, requires_grad=True)
        for loss in (OBJECTIVES[name].discriminator(real, fake), OBJECTIVES[name].generator(real, fake)):
            assert loss.isfinite()
            for gradient in torch.autograd.grad(loss, (real, fake), allow_unused=True):
                assert gradient is None or gradient.isfinite().all()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_players_pull_apart(name):
    """D raises reals and lowers fakes, G raises fakes."""
    real, fake = (torch.full((4,), logit, requires_grad=True) for logit in (0.1, 0.2))
    up, down = torch.autograd.grad(OBJECTIVES[name].discriminator(real, fake), (real, fake))
    (mine,) = torch.autograd.grad(OBJECTIVES[name].generator(real, fake), fake)
    assert (up < 0).all() and (down > 0).all() and (mine < 0).all()


def test_minimax_saturates_where_the_modified_one_does_not():
    fake = torch.full((1,), -12.0, requires_grad=True)  # D is sure
    slopes = {
        name: float(torch.autograd.grad(OBJECTIVES[name].generator(fake, fake), fake)[0])
        for name in ("minimax", "non_saturating")
    }
    assert slopes["non_saturating"] == pytest.approx(-1, abs=1e-4) and -1e-4 < slopes["minimax"] < 0


def linear(weights):
    return lambda images: (images * weights).flatten(1).sum(1) + 0.5


@pytest.fixture
def images():
    return torch.randn(6, 2, 3, 3, generator=torch.Generator().manual_seed(0))


def test_r1_of_a_linear_critic_is_its_squared_slope(images):
    weights = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(1))
    at = images.requires_grad_(True)
    assert float(r1_penalty(linear(weights)(at), at).detach()) == pytest.approx(float(weights.square().sum()), rel=1e-6)


def test_r1_of_a_square_is_each_images_own_norm(images):
    at = images.requires_grad_(True)  # gradient of |x|^2 / 2 is x
    logits = at.square().flatten(1).sum(1) / 2
    expected = images.detach().numpy().reshape(6, -1)
    assert float(r1_penalty(logits, at).detach()) == pytest.approx((expected**2).sum(1).mean(), rel=1e-6)


def test_gradient_penalty_of_a_linear_critic(images):
    weights = torch.full((2, 3, 3), 3 / np.sqrt(18))  # slope 3, so (3 - 1)^2
    assert float(gradient_penalty(linear(weights), images, -images)) == pytest.approx(4, rel=1e-5)


def test_gradient_penalty_lies_between_the_images(images):
    seen = []

    def critic(x):
        seen.append(x)
        return x.square().flatten(1).sum(1) / 2

    real, fake = torch.zeros_like(images), torch.ones_like(images)
    penalty = gradient_penalty(critic, real, fake)
    (between,) = seen
    t = between.detach().flatten(1).numpy()
    assert (t == t[:, :1]).all() and len(set(t[:, 0])) == 6 and (t >= 0).all() and (t <= 1).all()
    assert float(penalty.detach()) == pytest.approx(((t[:, 0] * np.sqrt(18) - 1) ** 2).mean(), rel=1e-5)


def test_gradient_penalty_of_a_flat_critic_has_a_gradient(images):
    weights = torch.zeros(2, 3, 3, requires_grad=True)
    penalty = gradient_penalty(linear(weights), images, -images)
    penalty.backward()
    assert float(penalty) == pytest.approx(1, abs=1e-5) and weights.grad.isfinite().all()


class Linear(nn.Module):
    """Player of known slope; keeps what it was shown."""

    def __init__(self, weights):
        super().__init__()
        self.weights, self.shown = nn.Parameter(weights), []

    def forward(self, x, labels=None):
        self.shown.append((x, labels))
        return linear(self.weights)(x)


class Constant(nn.Module):
    """Generator of one picture, scaled by the latent's first number."""

    def __init__(self):
        super().__init__()
        self.picture = nn.Parameter(torch.ones(1, 2, 2))

    def forward(self, z, labels=None):
        return z[:, 0, None, None, None] * self.picture


def players():
    weights = torch.tensor([[[1.0, -2.0], [0.5, 0.25]]])
    return nn.ModuleDict({"generator": Constant(), "discriminator": Linear(weights)})


def batch(**given):
    rows = torch.Generator().manual_seed(3)
    return Batch(torch.randn(4, 1, 2, 2, generator=rows), torch.randn(4, 5, generator=rows), **given)


SLOPE = 1 + 4 + 0.25 + 0.0625  # squared


def test_penalty_phase_weights_each_term():
    recipe = Recipe(objective="relativistic", r1_gamma=0.4, r2_gamma=0.6, penalty_every=3)
    losses = two_player_loss("penalty", players(), batch(), recipe)
    found = {name: float(term) for name, term in losses.terms.items()}
    assert found == pytest.approx({"r1": 0.2 * 3 * SLOPE, "r2": 0.3 * 3 * SLOPE})
    recipe = Recipe(objective="wasserstein_gp", gp_lambda=10.0, penalty_every=2)
    (term,) = two_player_loss("penalty", players(), batch(), recipe).terms.values()
    assert float(term) == pytest.approx(20 * (np.sqrt(SLOPE) - 1) ** 2, rel=1e-5)


def test_penalties_are_taken_at_reals_and_at_fakes():
    nets, shown = players(), batch()
    two_player_loss("penalty", nets, shown, Recipe(objective="relativistic", r1_gamma=1.0, r2_gamma=1.0))
    (at_real, _), (at_fake, _) = nets["discriminator"].shown
    assert torch.equal(at_real, shown.real)
    assert torch.equal(at_fake, nets["generator"](shown.z).detach())


def test_discriminators_turn_leaves_the_generator_without_gradient():
    nets = players()
    losses = two_player_loss("discriminator", nets, batch(), Recipe(objective="non_saturating"))
    losses.terms["discriminator"].backward()
    assert nets["generator"].picture.grad is None and nets["discriminator"].weights.grad.abs().sum() > 0


def test_players_see_augmented_images_and_the_batchs_labels():
    nets, labels = players(), torch.tensor([0, 1, 0, 1])
    shown = batch(labels=labels, augment=lambda images: images + 100)
    for phase in ("discriminator", "generator"):
        nets["discriminator"].shown.clear()
        two_player_loss(phase, nets, shown, Recipe(objective="relativistic"))
        assert len(nets["discriminator"].shown) == 2
        for images, given in nets["discriminator"].shown:
            assert given is labels and images.min() > 50


def test_stats_of_the_discriminators_turn():
    nets, shown = players(), batch()
    stats = two_player_loss("discriminator", nets, shown, Recipe(objective="hinge")).stats
    weights = nets["discriminator"].weights.detach().numpy()
    real = (shown.real.numpy() * weights).sum((1, 2, 3)) + 0.5
    fake = shown.z.numpy()[:, 0] * weights.sum() + 0.5
    expected = {
        "real_logit": real.mean(),
        "fake_logit": fake.mean(),
        "accuracy": ((real > 0).mean() + (fake < 0).mean()) / 2,
        "pair_accuracy": (real > fake).mean(),
        "certainty": np.sign(real).mean(),
    }
    paired = two_player_loss("discriminator", nets, shown, Recipe(objective="relativistic")).stats
    assert float(paired["certainty"]) == pytest.approx(np.sign(real - fake).mean())
    assert {name: float(value) for name, value in stats.items()} == pytest.approx(expected, rel=1e-5)


def test_label_smoothing_moves_the_real_target():
    nets, shown = players(), batch()
    recipe = Recipe(objective="non_saturating", label_smoothing=0.1)
    found = float(two_player_loss("discriminator", nets, shown, recipe).terms["discriminator"].detach())
    weights = nets["discriminator"].weights.detach().double().numpy()
    real = probability((shown.real.double().numpy() * weights).sum((1, 2, 3)) + 0.5)
    fake = probability(shown.z.double().numpy()[:, 0] * weights.sum() + 0.5)
    expected = -np.mean(0.9 * LN(real) + 0.1 * LN(1 - real)) - np.mean(LN(1 - fake))
    assert found == pytest.approx(expected, rel=1e-5)


def test_phases():
    penalty, discriminator, generator = two_player_phases(
        Recipe(objective="relativistic", r1_gamma=1.0, penalty_every=7, discriminator_steps=3)
    )
    assert penalty == Phase("penalty", ("discriminator",), every=7, step=False, autocast=False)
    assert discriminator == Phase("discriminator", ("discriminator",))
    assert generator == Phase("generator", ("generator",), every=3)
    assert [phase.name for phase in two_player_phases(Recipe())] == ["discriminator", "generator"]


def test_asking_for_an_objective_brings_what_it_needs():
    plain = Recipe(objective="non_saturating", r1_gamma=0.3, discriminator_norm="none")
    assert with_objective(plain, "non_saturating") is plain
    clipped = with_objective(plain, "wasserstein")
    assert (clipped.clip, clipped.discriminator_steps, clipped.optimiser) == (0.01, 5, "rmsprop")
    assert clipped.r1_gamma == 0  # a penalty beside clipping would be neither paper's
    normed = Recipe(objective="non_saturating", discriminator_norm="batch")
    for name in ("wasserstein_gp", "relativistic"):
        assert with_objective(normed, name).discriminator_norm == "none"
    assert with_objective(plain, "wasserstein_gp").gp_lambda == 10
    assert with_objective(plain, "relativistic").r2_gamma > 0
    with pytest.raises(RecipeError, match=r"objective is 'dice', must be one of minimax.*relativistic"):
        with_objective(plain, "dice")


def test_the_class_term_is_cross_entropy_of_reals_for_d_and_of_fakes_for_g():
    recipe = shrunk("cgan", class_weight=0.5)
    nets = FAMILIES["cgan"].nets(recipe).eval()
    batch = Batch(torch.rand(6, 1, 8, 8) * 2 - 1, torch.randn(6, 8), torch.arange(6) % 3)
    with torch.no_grad():
        found = {
            phase: two_player_loss(phase, nets, batch, recipe).terms["class"]
            for phase in ("discriminator", "generator")
        }
        shown = {"discriminator": batch.real, "generator": nets["generator"](batch.z, batch.labels)}
        for phase, images in shown.items():
            logits = nets["discriminator"].classify(images).double().numpy()
            chosen = logits[np.arange(6), batch.labels.numpy()]
            expected = 0.5 * np.mean(np.log(np.exp(logits).sum(1)) - chosen)
            assert float(found[phase]) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(RecipeError, match="class_weight is for convolutional nets"):
        recipe.replaced(architecture="mlp")
    with pytest.raises(RecipeError, match="no classes to weigh"):
        FAMILIES["dcgan"].nets(shrunk("dcgan", class_weight=0.5))
    plain = FAMILIES["cgan"].nets(shrunk("cgan", class_weight=0.0))
    with pytest.raises(RuntimeError, match="class_weight is 0"):
        plain["discriminator"].classify(batch.real)
