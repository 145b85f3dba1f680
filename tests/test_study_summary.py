"""The study's words against rows made by hand, also where batch normalisation loses."""

from __future__ import annotations

import pytest

from bnengine.study import points, summary
from bnengine.study.experiments import EXPERIMENTS


def rows(experiment, accuracies, *, panel="p", rates=None, steps=None, diverged=()):
    """A row for each seed of {(norm, value): accuracies of the seeds}."""
    return [
        {
            "experiment": experiment,
            "panel": panel,
            "norm": norm,
            "value": value,
            "learning_rate": (rates or {}).get((norm, value), 0.1) if experiment != "learning_rate" else value,
            "seed": seed,
            "test_accuracy": accuracy,
            "steps_to_target": (steps or {}).get((norm, value)),
            "diverged": (norm, value) in diverged,
        }
        for (norm, value), seeds in accuracies.items()
        for seed, accuracy in enumerate(seeds)
    ]


def said(made, curves=(), target=0.8):
    return {sentence.text: sentence.wins for sentence in summary.sentences(made, curves, target)}


WIDE = {
    ("batch", 0.01): (0.80, 0.86),
    ("batch", 0.1): (0.86, 0.86),
    ("batch", 1.0): (0.84, 0.84),
    ("none", 0.01): (0.83, 0.84),
    ("none", 0.1): (0.85, 0.83),
    ("none", 1.0): (0.1, 0.1),
}


def test_usable_is_within_two_points_of_the_best_mean_of_both_arms():
    found = {(point.norm, point.value): point for point in points.points(rows("learning_rate", WIDE))}
    usable = {key for key, point in found.items() if point.usable}
    assert usable == {("batch", 0.1), ("batch", 1.0), ("none", 0.1)}  # 0.84 is still within two points of 0.86
    assert found["batch", 0.01].mean == pytest.approx(0.83)
    assert (found["batch", 0.01].low, found["batch", 0.01].high) == (0.80, 0.86)


def test_usable_is_asked_in_each_panel_by_itself():
    made = rows("learning_rate", {("batch", 1.0): [0.9], ("none", 1.0): [0.5]}) + rows(
        "learning_rate", {("batch", 1.0): [0.4], ("none", 1.0): [0.5]}, panel="q"
    )
    assert [point.usable for point in points.points(made)] == [True, False, False, True]


def test_what_was_there_at_the_first_look_is_no_win_and_no_loss():
    made = rows(
        "learning_rate", {("batch", 0.1): [0.9], ("none", 0.1): [0.9]}, steps={("batch", 0.1): 13, ("none", 0.1): 13}
    )
    curve = {"experiment": "learning_rate", "panel": "p", "norm": "batch", "step": [13, 19]}
    words = "after at most 13 steps with batch normalisation (learning rate 0.1) and after at most 13 steps without it"
    found = {text: wins for text, wins in said(made, [curve]).items() if words in text}
    assert list(found.values()) == [None]
    later = rows(
        "learning_rate", {("batch", 0.1): [0.9], ("none", 0.1): [0.9]}, steps={("batch", 0.1): 13, ("none", 0.1): 19}
    )
    assert [wins for text, wins in said(later, [curve]).items() if "after at most 13 steps with" in text] == [True]


def test_words_for_a_result_where_batch_normalisation_wins():
    steps = {("batch", 0.1): 100, ("batch", 1.0): 50, ("none", 0.1): 200}
    made = rows("learning_rate", WIDE | {("batch", 0.01): (0.85, 0.87)}, steps=steps, diverged={("none", 1.0)})
    assert said(made) == {
        "p: usable learning rates with batch normalisation: 3 of 3, 0.01 to 1 (2.0 decades); "
        "without it: 1 of 3, 0.1 (0.0 decades).": True,
        "p: test accuracy 0.8 is reached after 50 steps with batch normalisation (learning rate 1) and after 200 steps "
        "without it (learning rate 0.1), 4.0 times as many.": True,
        "p: best mean test accuracy 0.860 [0.850, 0.870] with batch normalisation (learning rate 0.01), "
        "0.840 [0.830, 0.850] without it (learning rate 0.1): the seeds overlap, batch normalisation does not win.": False,
        "p: runs that diverged: 0 of 6 with batch normalisation, 2 of 6 without it.": None,
    }


def test_words_for_a_result_where_batch_normalisation_loses():
    swapped = {("none" if norm == "batch" else "batch", value): seeds for (norm, value), seeds in WIDE.items()}
    swapped["none", 0.01] = (0.88, 0.87)
    steps = {("batch", 0.1): 200, ("none", 0.1): 50}
    made = said(rows("learning_rate", swapped, steps=steps))
    assert made == {
        "p: usable learning rates with batch normalisation: none of 3; without it: 2 of 3, 0.01 to 0.1 (1.0 decades). "
        "Batch normalisation does not widen the range here.": False,
        "p: test accuracy 0.8 is reached after 200 steps with batch normalisation (learning rate 0.1) and after 50 "
        "steps without it (learning rate 0.1), 0.2 times as many. Batch normalisation is not faster here.": False,
        "p: best mean test accuracy 0.840 [0.830, 0.850] with batch normalisation (learning rate 0.1), "
        "0.875 [0.870, 0.880] without it (learning rate 0.01): lower with it by 3.5 points, batch normalisation does "
        "not win.": False,
    }


def test_steps_count_only_where_every_seed_arrives():
    made = rows("learning_rate", WIDE, steps={("batch", 0.1): 100, ("batch", 1.0): 50})
    next(row for row in made if (row["norm"], row["value"]) == ("batch", 1.0))["steps_to_target"] = None
    fastest = next(text for text in said(made) if "is reached" in text)
    assert "after 100 steps with batch normalisation (learning rate 0.1) and not by every seed without it." in fastest


def test_words_for_depth_where_batch_normalisation_loses():
    made = rows(
        "depth",
        {("batch", 2): [0.85], ("batch", 50): [0.3], ("none", 2): [0.84], ("none", 50): [0.81]},
        rates={},
    )
    texts = said(made)
    assert (
        texts[
            "p: deepest network whose mean test accuracy reaches 0.8: 2 hidden layers with batch normalisation, "
            "50 hidden layers without it. Batch normalisation does not train a deeper one here."
        ]
        is False
    )
    assert texts["p: batch normalisation loses with this many hidden layers: 50 (0.300 with, 0.810 without)."] is False


def test_words_for_the_matched_and_the_largest_learning_rates():
    usable = {("batch", 0.01): (0.85, 0.86), ("none", 0.01): (0.85, 0.85), ("none", 0.1): (0.855, 0.865)}
    made = rows("learning_rate", WIDE | usable | {("batch", 1.0): (0.86, 0.87)})
    texts = said([row | {"experiment": "matched"} for row in made])
    assert (
        texts[
            "p: at the matched learning rate 0.1: 0.860 [0.860, 0.860] with batch normalisation, 0.860 [0.855, 0.865] "
            "without it: the seeds overlap, batch normalisation does not win."
        ]
        is False
    )
    assert any(text.startswith("p: each at its largest usable learning rate: 0.865 [0.860, 0.870]") for text in texts)


def test_words_for_small_batches_and_positions():
    texts = said(rows("batch_size", {("batch", 2): [0.3], ("batch", 8): [0.8], ("none", 2): [0.7], ("none", 8): [0.6]}))
    assert texts["p: batch normalisation loses with this many rows in a batch: 2 (0.300 with, 0.700 without)."] is False
    made = rows("norm_position", {("batch", "pre"): [0.84], ("batch", "post"): [0.86], ("none", "none"): [0.7]})
    expected = (
        "p: normalised before the activation 0.840 [0.840, 0.840] (learning rate 0.1), after it 0.860 [0.860, 0.860] "
        "(learning rate 0.1): after is higher by 2.0 points."
    )
    assert said(made)[expected] is None


def test_every_experiment_has_something_said_of_it():
    assert summary.SAID.keys() == EXPERIMENTS.keys()
