"""Recipes: typed changes, refusals that name the field, the way to JSON and back."""

import json

import pytest

from training.families import FAMILIES
from training.recipe import Recipe, RecipeError

ALL = [recipe for family in FAMILIES.values() for recipe in family.recipes.values()]


def test_json_round_trip():
    for recipe in ALL:
        assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


def test_parse_gives_typed_values():
    texts = ["r1_gamma=0.5", "mirror=yes", "batch_size=32", "objective=hinge", "augment=color,cutout", "notes="]
    changes = Recipe.parse(texts)
    assert changes == {
        "r1_gamma": 0.5, "mirror": True, "batch_size": 32, "objective": "hinge", "augment": "color,cutout", "notes": "",
    }  # fmt: skip
    changes.pop("notes")
    recipe = Recipe().replaced(**changes)
    assert (recipe.r1_gamma, recipe.mirror, recipe.batch_size) == (0.5, True, 32)
    assert Recipe().mirror is False  # frozen: the first one is untouched


def test_parse_takes_the_value_after_the_first_equals_sign():
    assert Recipe.parse(["augment=a=b"]) == {"augment": "a=b"}


@pytest.mark.parametrize(
    "text, message",
    [
        ("r1_gamma", "'r1_gamma': write FIELD=VALUE"),
        ("batch_size=ten", "batch_size is 'ten', must be a whole number"),
        ("batch_size=1.5", "batch_size is '1.5', must be a whole number"),
        ("r1_gamma=much", "r1_gamma is 'much', must be a number"),
        ("mirror=maybe", "mirror is 'maybe', must be true or false"),
    ],
)
def test_unreadable_assignments(text, message):
    with pytest.raises(RecipeError, match=message):
        Recipe.parse([text])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"r1_gama": 0.5}, "no field 'r1_gama'; did you mean r1_gamma"),
        ({"zzz": 1}, "no field 'zzz'$"),
        ({"batch_size": 1.5}, "batch_size is 1.5, must be of type int"),
        ({"batch_size": True}, "batch_size is True, must be of type int"),
        ({"r1_gamma": "0.5"}, "r1_gamma is '0.5', must be of type float"),
        ({"mirror": 1}, "mirror is 1, must be of type bool"),
        ({"notes": "none"}, "notes is 'none', must be of type Mapping"),
        ({"objective": "hing"}, "objective is 'hing', must be one of minimax, .*hinge"),
        ({"optimiser": "adamw"}, "optimiser is 'adamw', must be one of adam, rmsprop, sgd"),
        ({"precision": "fp16"}, "precision is 'fp16', must be one of fp32, bf16"),
        ({"size": 0}, "size is 0, must be at least 1"),
        ({"latent_dim": 0}, "latent_dim is 0"),
        ({"generator_width": 0}, "generator_width is 0"),
        ({"channels": 2}, r"channels is 2, must be 1 \(grey\) or 3 \(RGB\)"),
        ({"classes": -1}, "classes is -1"),
        ({"total_kimg": 0}, "total_kimg is 0, must be above 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0, must be above 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"total_kimg": float("inf")}, "total_kimg is inf"),
        ({"r1_gamma": -1.0}, "r1_gamma is -1.0"),
        ({"penalty_every": 0}, "penalty_every is 0, must be at least 1"),
        ({"discriminator_steps": 0}, "discriminator_steps is 0"),
        ({"dropout": 1.0}, r"dropout is 1.0, must be in \[0, 1\)"),
        ({"beta2": 1.0}, r"beta2 is 1.0, must be in \[0, 1\)"),
        ({"decay_from": 1.5}, r"decay_from is 1.5, must be in \[0, 1\]"),
        ({"microbatch": 48}, "microbatch is 48, must divide batch_size 64"),
        ({"microbatch": 128}, "microbatch is 128, must divide batch_size 64"),
        ({"microbatch": -8}, "microbatch is -8"),
        ({"discriminator_norm": "batch", "r1_gamma": 0.1}, "discriminator_norm is 'batch' beside a gradient penalty"),
        ({"discriminator_norm": "batch", "gp_lambda": 0.1}, "discriminator_norm is 'batch' beside a gradient penalty"),
        ({"objective": "hinge", "label_smoothing": 0.1}, "label_smoothing goes with minimax and non_saturating"),
    ],
)
def test_refusals_name_the_field(changes, message):
    with pytest.raises(RecipeError, match=message):
        Recipe().replaced(**changes)


def test_a_whole_number_stands_for_a_real_one():
    assert Recipe().replaced(total_kimg=900).total_kimg == 900


def test_every_field_has_a_docstring_or_speaks_for_itself():
    """A reason or a unit stands beside each default; checked in the source, for dataclasses drop it."""
    import ast
    import inspect
    import itertools

    body = ast.parse(inspect.getsource(Recipe)).body[0].body
    undocumented = {
        node.target.id
        for node, after in itertools.pairwise(body)
        if isinstance(node, ast.AnnAssign)
        and not (isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant))
    }
    assert undocumented <= {"optimiser", "decay_to"}
