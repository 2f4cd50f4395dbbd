"""Steering: the algebra of the latent space, bit for bit, on tiny models, alone and among others."""

import asyncio

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tinymodels import STYLE_DIM, STYLE_LAYERS, STYLE_NOISE, TINY_LABELS, write_tiny, write_tiny_style

from service.engine.engine import Engine, EngineOptions, Steering
from service.engine.latents import latents_from_seeds, noise_from_seeds
from service.engine.pipelines import steered
from service.errors import InvalidRequest, TooLarge

NAMED = ("sefa_1", "sefa_2", "glasses")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    write_tiny_style(root, directions=NAMED)
    write_tiny_style(root, "tiny-still", noise=False)
    write_tiny_style(root, "tiny-kinds", labels=TINY_LABELS)
    write_tiny(root, "tiny-rgb", directions=("smile",))
    write_tiny(root, "tiny-grey", channels=1, labels=TINY_LABELS)
    write_tiny(root, "tiny-mixed", channels=1, labels=TINY_LABELS, weighed=True)
    return root


@pytest.fixture
async def engine(root):
    options = EngineOptions(models=root, providers=("cpu",), profile_s=0, poll_models_s=None, lanes=2, max_batch=4)
    async with Engine(options) as engine:
        assert engine.refused == {}
        yield engine


async def draw(engine, model, *, seeds=None, latents=None, labels=None, truncation=1.0, **steering):
    steered = Steering.of(**steering) if steering else None
    return await engine.generate(
        model, seeds=seeds, latents=latents, labels=labels, truncation=truncation, steering=steered
    )


def same(one, two):
    np.testing.assert_array_equal(one.images, two.images)
    np.testing.assert_array_equal(one.latents, two.latents)


MODELS = ["tiny-w", "tiny-still", "tiny-rgb"]


@pytest.mark.parametrize("model", [*MODELS, "tiny-kinds", "tiny-grey", "tiny-mixed"])
async def test_a_seed_mixed_with_itself_is_the_seed(engine, model):
    mix = [{"seed": 7, "weight": 0.7}, {"seed": 7, "weight": 0.3}, {"seed": 9, "weight": 0}]
    mixed, plain = (
        await draw(engine, model, mix=mix, truncation=0.6),
        await draw(engine, model, seeds=[7], truncation=0.6),
    )
    same(mixed, plain)
    assert (mixed.seeds, mixed.labels) == (plain.seeds, plain.labels)
    assert mixed.recipes == ({},)  # the file is that of the seed, too


@pytest.mark.parametrize("model", MODELS)
async def test_the_ends_of_a_mix_are_its_parts(engine, model):
    for weights, seed in (((1, 0), 3), ((0, 1), 4)):
        mix = [{"seed": one, "weight": weight} for one, weight in zip((3, 4), weights, strict=True)]
        same(await draw(engine, model, mix=mix), await draw(engine, model, seeds=[seed]))


async def test_a_mix_of_equal_latents_is_the_latent(engine):
    z = latents_from_seeds([5], 8)[0]
    mix = [{"latent": z.tolist(), "weight": 1}, {"latent": z.tolist(), "weight": 2}]
    for model in MODELS:
        same(await draw(engine, model, mix=mix), await draw(engine, model, latents=z))


async def test_a_mix_lies_in_z_or_in_w(engine):
    one, two = [await draw(engine, "tiny-w", seeds=[seed]) for seed in (1, 2)]
    mixed = await draw(engine, "tiny-w", mix=[{"seed": 1, "weight": 3}, {"seed": 2, "weight": 1}])
    w1, w2 = one.latents.astype(float), two.latents.astype(float)
    np.testing.assert_array_equal(mixed.latents, ((3 * w1 + w2) / 4).astype(np.float32))
    plain = await draw(engine, "tiny-rgb", mix=[{"seed": 1}, {"seed": 2}])
    z = latents_from_seeds([1, 2], 8).astype(float)
    assert np.linalg.norm(plain.latents) == pytest.approx(np.linalg.norm(z, axis=1).mean(), rel=1e-6)
    assert mixed.seeds == (None,) and mixed.recipes[0]["mix"] == [
        {"seed": 1, "weight": 3.0},
        {"seed": 2, "weight": 1.0},
    ]


async def test_several_mixes_are_several_images(engine):
    mixes = [[{"seed": 1}, {"seed": 2}], [{"seed": 3}], [{"seed": 2}, {"seed": 1, "weight": 2}]]
    for model in MODELS:
        drawn = await draw(engine, model, mix=mixes)
        assert drawn.seeds == (None, 3, None)
        for place, mix in enumerate(mixes):
            np.testing.assert_array_equal(drawn.images[place], (await draw(engine, model, mix=mix)).images[0])


@pytest.mark.parametrize("model", ["tiny-w", "tiny-rgb"])
async def test_strength_0_changes_nothing(engine, model):
    name = NAMED[0] if model == "tiny-w" else "smile"
    plain = await draw(engine, model, seeds=[1, 2], truncation=0.7)
    same(await draw(engine, model, seeds=[1, 2], truncation=0.7, directions={name: 0}), plain)
    same(await draw(engine, model, seeds=[1, 2], truncation=0.7, directions={name: -0.0}), plain)
    moved = await draw(engine, model, seeds=[1, 2], truncation=0.7, directions={name: 2.5})
    assert (moved.images != plain.images).any()
    count, wide = (3, STYLE_DIM) if model == "tiny-w" else (1, 8)
    vector = np.random.RandomState(7).randn(count, wide).astype(np.float32)[0].astype(float)
    np.testing.assert_array_equal(moved.latents, (plain.latents + 2.5 * vector).astype(np.float32))


async def test_directions_go_to_the_layers_that_are_named(engine):
    plain = await draw(engine, "tiny-w", seeds=[1])
    moved = await draw(engine, "tiny-w", seeds=[1], directions={"glasses": {"strength": 1.5, "layers": "1-2"}})
    assert (moved.latents != plain.latents).any(axis=(0, 2)).tolist() == [False, True, True]
    one = await draw(engine, "tiny-w", seeds=[1], directions={"sefa_2": 1, "sefa_1": -2})
    same(one, await draw(engine, "tiny-w", seeds=[1], directions={"sefa_1": -2, "sefa_2": 1}))


async def test_truncation_0_is_the_mean_whatever_is_steered(engine):
    mean = np.arange(1, STYLE_DIM + 1, dtype=np.float32) / 10
    for steering in (
        {"mix": [{"seed": 1}, {"seed": 2}]},
        {"mix": [{"seed": 8}], "styles": [{"seed": 3, "layers": 0}]},
        {"mix": [{"seed": 8}], "truncation_cutoff": STYLE_LAYERS},
    ):
        drawn = await draw(engine, "tiny-w", truncation=0.0, **steering)
        np.testing.assert_array_equal(drawn.latents[0], np.repeat(mean[None], STYLE_LAYERS, axis=0))
        np.testing.assert_array_equal(drawn.images, (await draw(engine, "tiny-w", seeds=[5], truncation=0.0)).images)


@pytest.mark.parametrize("cutoff", range(STYLE_LAYERS + 1))
async def test_a_cutoff_leaves_later_layers_as_they_are(engine, cutoff):
    plain, low = [await draw(engine, "tiny-w", seeds=[4], truncation=t) for t in (1.0, 0.3)]
    cut = await draw(engine, "tiny-w", seeds=[4], truncation=0.3, truncation_cutoff=cutoff)
    np.testing.assert_array_equal(cut.latents[:, :cutoff], low.latents[:, :cutoff])
    np.testing.assert_array_equal(cut.latents[:, cutoff:], plain.latents[:, cutoff:])


async def test_styles_are_mixed_layer_by_layer(engine):
    one, two, three = [(await draw(engine, "tiny-w", seeds=[seed])).latents[0] for seed in (1, 2, 3)]
    drawn = await draw(engine, "tiny-w", seeds=[1], styles=[{"seed": 2, "layers": "1"}, {"seed": 3, "layers": [2]}])
    np.testing.assert_array_equal(drawn.latents[0], np.stack([one[0], two[1], three[2]]))
    own = await draw(engine, "tiny-w", seeds=[1], styles=[{"seed": 1, "layers": "0-2"}])
    same(own, await draw(engine, "tiny-w", seeds=[1]))
    whole = await draw(engine, "tiny-w", seeds=[1], styles=[{"seed": 2, "layers": "0-2"}], truncation=0.5)
    same(whole, await draw(engine, "tiny-w", seeds=[2], truncation=0.5))


@pytest.mark.parametrize("space, shape", [("w", (STYLE_DIM,)), ("w+", (STYLE_LAYERS, STYLE_DIM))])
async def test_latents_in_w_are_drawn_as_they_are(engine, space, shape):
    plain = await draw(engine, "tiny-w", seeds=[1, 2], truncation=0.8)
    w = plain.latents if space == "w+" else plain.latents[:, 0]
    before = engine._repository.resolve("tiny-w").graphs["mapping"].batcher.stats().rows_total
    for asked in (w, w.tolist(), w.reshape(2, -1) if space == "w+" else w):
        same(await draw(engine, "tiny-w", latents=asked, space=space), plain)
    single = await draw(engine, "tiny-w", latents=w[0], space=space)
    np.testing.assert_array_equal(single.images[0], plain.images[0])
    assert engine._repository.resolve("tiny-w").graphs["mapping"].batcher.stats().rows_total == before
    mixed = await draw(engine, "tiny-w", mix=[{"latent": w[0].tolist(), "space": space}, {"seed": 2}])
    assert mixed.images.shape == plain.images[:1].shape


async def test_what_was_drawn_draws_it_again(engine):
    steered = await draw(
        engine, "tiny-w", seeds=[6], truncation=0.7, truncation_cutoff=2, directions={"sefa_1": 1.5},
        styles=[{"seed": 9, "layers": "2"}],
    )  # fmt: skip
    same(await draw(engine, "tiny-w", latents=steered.latents, space="w+"), steered)
    plain = await draw(engine, "tiny-rgb", seeds=[6], truncation=0.7, directions={"smile": 1})
    same(await draw(engine, "tiny-rgb", latents=plain.latents), plain)


async def test_noise_modes(engine):
    constant = await draw(engine, "tiny-w", seeds=[1, 2])
    same(await draw(engine, "tiny-w", seeds=[1, 2], noise="constant"), constant)
    same(await draw(engine, "tiny-w", seeds=[1, 2], noise="random", noise_seed=0), constant)
    random = await draw(engine, "tiny-w", seeds=[1, 2], noise="random")
    for place, seed in enumerate((1, 2)):
        alone = await draw(engine, "tiny-w", seeds=[seed], noise="random", noise_seed=seed)
        np.testing.assert_array_equal(random.images[place], alone.images[0])
    none = await draw(engine, "tiny-w", seeds=[1, 2], noise="none")
    np.testing.assert_array_equal(none.latents, constant.latents)
    assert len({drawn.images.tobytes() for drawn in (constant, random, none)}) == 3
    mixed = await draw(engine, "tiny-w", mix=[{"seed": 1}, {"seed": 2}], noise="random")
    first = await draw(engine, "tiny-w", mix=[{"seed": 1}, {"seed": 2}], noise="random", noise_seed=1)
    same(mixed, first)  # what cannot be mixed is the first part's
    assert noise_from_seeds([1], 8, STYLE_NOISE).shape == (1, STYLE_NOISE)


async def test_classes_mix_in_w(engine):
    circle, square = [(await draw(engine, "tiny-kinds", seeds=[3], labels=name)).latents for name in TINY_LABELS[:2]]
    mixed = await draw(engine, "tiny-kinds", seeds=[3], label={"Circle": 1, "Square": 3})
    np.testing.assert_allclose(mixed.latents, circle / 4 + square * 0.75, rtol=1e-6)
    assert mixed.labels == (None,) and mixed.recipes[0]["label"] == {"Circle": 1.0, "Square": 3.0}
    one = await draw(engine, "tiny-kinds", seeds=[3], label={"Circle": 2, "Square": 0})
    np.testing.assert_array_equal(one.latents, circle)
    parts = [{"seed": 3, "label": "Circle"}, {"seed": 3, "label": "Square", "weight": 3}]
    np.testing.assert_array_equal((await draw(engine, "tiny-kinds", mix=parts)).latents, mixed.latents)
    style = await draw(engine, "tiny-kinds", seeds=[3], labels="Circle", styles=[{"seed": 3, "label": 1, "layers": 1}])
    np.testing.assert_array_equal(style.latents[:, 1], square[:, 1])


async def test_a_mix_without_a_class_is_of_the_first_parts(engine):
    for model, label in (("tiny-grey", "Triangle"), ("tiny-mixed", "Triangle"), ("tiny-kinds", None)):
        mixed = await draw(engine, model, mix=[{"seed": 0}, {"seed": 1}])  # of the classes 2 and 0
        assert mixed.labels == (label,)
        if label:
            same(mixed, await draw(engine, model, mix=[{"seed": 0}, {"seed": 1}], labels=label))


async def test_directions_are_summed_before_they_are_rounded(engine):
    pushes = {"sefa_1": 0.3, "sefa_2": {"strength": -0.7, "layers": 1}}
    plain, moved = await draw(engine, "tiny-w", seeds=[1]), await draw(engine, "tiny-w", seeds=[1], directions=pushes)
    one, two, _ = np.random.RandomState(7).randn(3, STYLE_DIM).astype(np.float32).astype(float)
    np.testing.assert_array_equal(moved.latents[0, 0], (plain.latents[0, 0] + 0.3 * one).astype(np.float32))
    both = plain.latents[0, 1] + (0.3 * one + -0.7 * two)
    np.testing.assert_array_equal(moved.latents[0, 1], both.astype(np.float32))


async def test_classes_mix_where_the_graph_takes_weights(engine):
    by_name = await draw(engine, "tiny-mixed", seeds=[3, 4], labels="Square")
    by_weight = await draw(engine, "tiny-mixed", seeds=[3, 4], label={"Square": 5})
    same(by_name, by_weight)
    mixed = await draw(engine, "tiny-mixed", seeds=[3, 4], label={"Square": 1, "Circle": 1})
    assert (mixed.images != by_name.images).any() and mixed.labels == (None, None)
    index = await draw(engine, "tiny-grey", seeds=[3, 4], labels="Square")  # the same weights, taken by index
    assert np.abs(index.images.astype(int) - by_name.images).max() <= 1


WRONG = [
    ("tiny-w", {"directions": {"sefa1": 0}}, "directions", "did you mean 'sefa_1'"),
    ("tiny-still", {"directions": {"smile": 1}}, "directions", "tiny-still@1 has none"),
    ("tiny-w", {"directions": {"glasses": {"strength": 1, "layers": 3}}}, "directions", "layer 3; tiny-w@1 has 0 to 2"),
    ("tiny-rgb", {"directions": {"smile": {"strength": 1, "layers": 0}}}, "directions", "no layers of styles"),
    ("tiny-w", {"truncation_cutoff": 4}, "truncation_cutoff", "4 layers; tiny-w@1 has 3"),
    ("tiny-rgb", {"truncation_cutoff": 1}, "truncation_cutoff", "no layers of styles"),
    ("tiny-w", {"styles": [{"seed": 1, "layers": "2-3"}]}, "styles", "layer 3; tiny-w@1 has 0 to 2"),
    ("tiny-rgb", {"styles": [{"seed": 1, "layers": 0}]}, "styles", "no layers of styles"),
    ("tiny-still", {"noise": "none"}, "noise", "takes no noise"),
    ("tiny-rgb", {"noise": "random"}, "noise", "takes no noise"),
    ("tiny-w", {"noise_seed": 3}, "noise_seed", "for noise 'random' alone"),
    ("tiny-rgb", {"mix": [{"latent": [1.0] * 8, "space": "w"}]}, "mix", "only the space z"),
    ("tiny-rgb", {"mix": [{"latent": [1.0] * 7}]}, "mix", "must have 8 numbers"),
    ("tiny-w", {"mix": [{"latent": [1.0] * 7, "space": "w+"}]}, "mix", r"in w\+ it has \[3, 6\]"),
    ("tiny-grey", {"mix": [{"seed": 1, "label": "Circle"}]}, "mix", "no class of their own"),
    ("tiny-grey", {"label": {"Circle": 1, "Square": 1}}, "label", "takes one whole class"),
    ("tiny-w", {"label": {"Circle": 1}}, "label", "no classes"),
    ("tiny-kinds", {"label": {"Star": 1}}, "label", "'Star' is unknown"),
    ("tiny-kinds", {"label": {"Circle": 1}, "styles": [{"seed": 1, "layers": 0}]}, "styles", "a label of its own"),
]


@pytest.mark.parametrize("model, steering, field, says", WRONG)
async def test_what_a_model_cannot_do_is_named(engine, model, steering, field, says):
    seeds = None if "mix" in steering else [1]
    with pytest.raises(InvalidRequest, match=says) as error:
        await draw(engine, model, seeds=seeds, **steering)
    assert error.value.field == field


async def test_what_else_does_not_fit_is_named(engine):
    for arguments, says in (
        ({"latents": np.zeros((1, 7)), "space": "w+"}, "3 rows of 6 numbers, or one of 18"),
        ({"latents": np.zeros((1, 7)), "space": "w"}, "rows of 6 numbers"),
        ({"seeds": [1], "mix": [{"seed": 1}]}, "give one of seeds, count, latents and mix, not seeds and mix"),
        ({"latents": np.zeros((1, 8)), "noise": "random"}, "noise_seed: needed"),
    ):
        with pytest.raises(InvalidRequest, match=says):
            await draw(engine, "tiny-w", **arguments)
    with pytest.raises(InvalidRequest, match="space: tiny-rgb@1 has only z"):
        await draw(engine, "tiny-rgb", latents=np.zeros((1, 8)), space="w")
    with pytest.raises(TooLarge, match="mix"):
        await draw(engine, "tiny-w", mix=[[{"seed": 1}]] * 65)


async def test_noise_that_would_take_too_long_is_refused(engine, monkeypatch):
    monkeypatch.setattr(steered, "NOISE_MOST", 2 * STYLE_NOISE)
    await draw(engine, "tiny-w", seeds=[1, 2], noise="random")
    with pytest.raises(TooLarge, match="at most 2 in one request"):
        await draw(engine, "tiny-w", seeds=[1, 2, 3], noise="random")
    await draw(engine, "tiny-w", seeds=[1, 2, 3], noise="none")


async def test_a_point_is_mapped_once(engine):
    batcher = engine._repository.resolve("tiny-w").graphs["mapping"].batcher
    before = batcher.stats().rows_total
    mixes = [[{"seed": 201, "weight": t}, {"seed": 202, "weight": 1 - t}] for t in (0.1, 0.4, 0.6, 0.9)]
    await draw(engine, "tiny-w", mix=mixes, styles=[{"seed": 203, "layers": 1}])
    assert batcher.stats().rows_total == before + 3
    await draw(engine, "tiny-w", seeds=[201, 203], directions={"sefa_1": 1})
    assert batcher.stats().rows_total == before + 3


SEED = st.integers(0, 40)
STEERED = st.fixed_dictionaries(
    {"mix": st.lists(st.fixed_dictionaries({"seed": SEED, "weight": st.floats(0.1, 2)}), min_size=1, max_size=3)},
    optional={
        "styles": st.fixed_dictionaries({"seed": SEED, "layers": st.integers(0, 2)}).map(lambda one: [one]),
        "directions": st.dictionaries(st.sampled_from(NAMED), st.floats(-3, 3), max_size=2),
        "noise": st.sampled_from(["constant", "random", "none"]),
        "truncation_cutoff": st.integers(0, 3),
    },
)


def test_alone_or_among_others_the_bits_are_the_same(root):
    with asyncio.Runner() as runner:
        options = {"models": root, "providers": ("cpu",), "profile_s": 0, "poll_models_s": None, "lanes": 2}
        alone, crowd = Engine(EngineOptions(**options, max_batch=1)), Engine(EngineOptions(**options, max_batch=8))
        for engine in (alone, crowd):
            runner.run(engine.open())

        @settings(max_examples=40, deadline=None, derandomize=True, database=None)
        @given(st.lists(st.tuples(STEERED, st.sampled_from([0.0, 0.5, 1.0])), min_size=2, max_size=6))
        def promise(asked):
            async def all_at_once(engine):
                return await asyncio.gather(*(draw(engine, "tiny-w", truncation=t, **one) for one, t in asked))

            for one, other in zip(runner.run(all_at_once(crowd)), asked, strict=True):
                same(one, runner.run(draw(alone, "tiny-w", truncation=other[1], **other[0])))

        try:
            promise()
        finally:
            for engine in (alone, crowd):
                runner.run(engine.close())
