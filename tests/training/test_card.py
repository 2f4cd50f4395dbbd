"""The card says what was recorded, and nothing that was not."""

from tinytraining import facts_of, shrunk

from service.manifest import Task
from training import card


def rendered(family="cgan", recipe="modern", evaluation=None, **facts):
    chosen = shrunk(family, recipe)
    recorded = {**facts_of(chosen, family), **facts}
    return card.render("model-8", recorded, chosen, "arXiv:1 Title", 1_234_500, 3660.0, evaluation)


def test_facts():
    text = rendered(seed=7, commit="abc123")
    assert text.startswith("# model-8\n")
    for fact in ("8 x 8 px, grey, 3 classes: class 0, class 1, class 2", "Family**: cgan, recipe `modern`",
                 "objective `relativistic`", "arXiv:1 Title", "noise, 24 images (CC0-1.0); 0 held out",
                 "61 minutes", "1 CPU thread shared", "seed 7", "source abc123", "one row per class"):  # fmt: skip
        assert fact in text, fact
    assert "1,234 kimg" in text or "1,235 kimg" in text
    assert "Not evaluated." in text and "Departures" not in text


def test_unconditional_in_colour():
    text = rendered("dcgan")
    assert "RGB, unconditional." in text and "one row per class" not in text


def test_departures_from_the_paper_are_listed():
    text = rendered("cgan", "paper")
    assert "## Departures from the paper" in text and "- schedule: linear decay" in text


def test_evaluation_is_quoted():
    text = rendered(evaluation={"samples": 5000, "table": "| | KID |\n|---|---|\n| this model | 0.01 |\n"})
    assert "5,000 samples at truncation 1" in text and "| this model | 0.01 |" in text and "Not evaluated" not in text


def test_unsettled_licences_are_not_passed_on():
    data = {**facts_of(shrunk("cgan"), "cgan")["data"], "license": "unknown"}
    text = rendered(data=data)
    assert "unknown; settle it before you pass the weights on." in text and "same terms" not in text


def test_another_device_is_named():
    text = rendered(device="cuda")
    assert "wall-clock time on cuda, seed" in text and "CPU thread" not in text


def test_what_it_began_from_is_named():
    assert "; begun from `faces-32@5`." in rendered(started_from={"images": 0, "seconds": 1.0, "model": "faces-32@5"})
    assert "begun from `" not in rendered(started_from={"images": 5, "seconds": 1.0}) + rendered(started_from=None)


def test_what_was_before_is_told_apart():
    text = rendered(started_from={"images": 1_000_000, "seconds": 3000.0})  # of 1,234,500 and 3,660
    assert "234 kimg, 11 minutes of" in text and ", after 1,000 kimg and 50 minutes of what it was begun from," in text
    adopted = rendered(started_from={"images": 1_000_000, "seconds": 0.0, "model": "faces-32@5"})
    assert "234 kimg, 61 minutes of" in adopted and ", after 1,000 kimg of what it was begun from," in adopted
    assert "1,234 kimg, 61 minutes of" in rendered() and "after" not in rendered().split("## ")[0]


def test_drawn_faces_are_called_drawings():
    data = {**facts_of(shrunk("cgan"), "cgan")["data"], "name": "faces"}
    assert "not photographs of people" in rendered(data=data) and "photographs" not in rendered()


def test_minutes_are_those_of_the_runs_clock():
    assert "minutes of CPU time on" in rendered(clock="cpu") and "minutes of wall-clock time on" in rendered(
        clock="wall"
    )


def test_a_cycles_columns_are_named():
    chosen = shrunk("gan", cycle_weight=5.0)
    text = card.render("x", facts_of(chosen, "cyclegan"), chosen, "paper", 1, 1.0, None, task=Task.TRANSLATE)
    assert "an image of one set, translated, and back again" in text
