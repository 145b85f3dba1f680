"""The study's words against rows made by hand, also where batch normalisation loses."""

from __future__ import annotations

import numpy as np
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
            "steps_to_target": step,
            "diverged": (norm, value) in diverged,
        }
        for (norm, value), seeds in accuracies.items()
        for seed, (accuracy, step) in enumerate(zip(seeds, (steps or {}).get((norm, value), [None] * 9), strict=False))
    ]


def said(made, curves=(), target=0.8):
    return {sentence["text"]: sentence["wins"] for sentence in summary.sentences(made, curves, target)}


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
        "learning_rate",
        {("batch", 0.1): [0.9], ("none", 0.1): [0.9]},
        steps={("batch", 0.1): [13], ("none", 0.1): [13]},
    )
    curve = {"experiment": "learning_rate", "panel": "p", "norm": "batch", "step": [13, 19]}
    words = "after at most 13 steps with batch normalisation (learning rate 0.1) and after at most 13 steps without it"
    found = {text: wins for text, wins in said(made, [curve]).items() if words in text}
    assert list(found.values()) == [None]
    seeds = {("batch", 0.1): [0.9] * 5, ("none", 0.1): [0.9] * 5}
    later = rows("learning_rate", seeds, steps={("batch", 0.1): [13] * 5, ("none", 0.1): [19] * 5})
    assert [wins for text, wins in said(later, [curve]).items() if "after at most 13 steps with" in text] == [True]


def test_words_for_a_result_where_batch_normalisation_wins():
    steps = {("batch", 0.1): (90, 100, 110), ("batch", 1.0): (45, 50, 55), ("none", 0.1): (190, 200, 210)}
    made = {("batch", 0.1): (0.86, 0.87, 0.86), ("batch", 1.0): (0.88, 0.88, 0.87), ("none", 0.1): (0.82, 0.83, 0.83)}
    made |= {("none", 1.0): (0.1, 0.1, 0.1)}
    assert said(rows("learning_rate", made, steps=steps, diverged={("none", 1.0)})) == {
        "p: usable learning rates with batch normalisation: 2 of 2, 0.1 to 1 (1.0 decades); without it: none of 2. "
        "No verdict from 3 seeds.": None,
        "p: test accuracy 0.8 is reached after 50 steps with batch normalisation (learning rate 1) and after 200 steps "
        "without it (learning rate 0.1), 4.0 times as many (Welch's 95% interval 3.3 to 4.9).": True,
        "p: best mean test accuracy 0.877 [0.870, 0.880] with batch normalisation (learning rate 1), "
        "0.827 [0.820, 0.830] without it (learning rate 0.1): higher with it by 5.0 points (Welch's 95% interval "
        "+3.7 to +6.3).": True,
        "p: runs that diverged: 0 of 6 with batch normalisation, 3 of 6 without it.": None,
    }


def test_words_for_a_result_where_batch_normalisation_loses():
    swapped = {("none" if norm == "batch" else "batch", value): 3 * seeds[:2] for (norm, value), seeds in WIDE.items()}
    swapped["none", 0.01] = (0.88, 0.87, 0.88, 0.87, 0.88, 0.87)
    steps = {("batch", 0.1): range(200, 206), ("none", 0.1): range(50, 56)}
    made = said(rows("learning_rate", swapped, steps=steps))
    assert made == {
        "p: usable learning rates with batch normalisation: none of 3; without it: 2 of 3, 0.01 to 0.1 (1.0 decades). "
        "Batch normalisation does not widen the range here.": False,
        "p: test accuracy 0.8 is reached after 202 steps with batch normalisation (learning rate 0.1) and after 52 "
        "steps without it (learning rate 0.1), 0.3 times as many (Welch's 95% interval 0.2 to 0.3). Batch normalisation "
        "is slower here.": False,
        "p: best mean test accuracy 0.840 [0.830, 0.850] with batch normalisation (learning rate 0.1), "
        "0.875 [0.870, 0.880] without it (learning rate 0.01): lower with it by 3.5 points (Welch's 95% interval -4.7 to "
        "-2.3), batch normalisation does not win.": False,
    }


def test_seeds_that_lie_apart_by_chance_win_nothing():
    few = rows("matched", {("batch", 0.1): (0.86, 0.90), ("none", 0.1): (0.80, 0.84)})
    assert all(wins is not True for wins in said(few).values())
    one = said(rows("matched", {("batch", 0.1): (0.9,), ("none", 0.1): (0.5,)}))
    assert not any(one.values())
    assert any("(too few seeds for an interval" in text for text in one)


def test_the_interval_is_welch_s():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    for ours, other in ((2, 2), (3, 3), (3, 7), (12, 5)):
        a, b = rng.normal(0.8, 0.01, ours), rng.normal(0.79, 0.05, other)
        expected = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
        np.testing.assert_allclose(points.interval(list(a), list(b)), tuple(expected), rtol=1e-9)
    assert points.interval([0.9] * 3, [0.5] * 3) == (-np.inf, np.inf)
    assert points.interval([0.9] * 5, [0.5] * 5) == pytest.approx((0.4, 0.4))
    assert points.interval([0.1] * 3, [0.1] * 3) == (0, 0)


def test_settings_are_chosen_by_validation_rows_and_reported_by_test_rows():
    made = rows("learning_rate", WIDE, steps=dict.fromkeys(WIDE, (100, 100)))
    for row in made:  # of the validation rows each arm's lowest rate is the best and the fastest
        row["validation_accuracy"] = 0.9 if row["value"] == 0.01 else 0.5
        row["validation_steps_to_target"] = 10 if row["value"] == 0.01 else None
    assert {point.value for point in points.points(made) if point.usable} == {0.01}
    (best,) = [text for text in said(made) if "best mean" in text]
    assert "accuracy 0.830 [0.800, 0.860] with batch normalisation (learning rate 0.01), 0.835" in best
    (fastest,) = [text for text in said(made) if "is reached" in text]
    assert "after 100 steps with batch normalisation (learning rate 0.01)" in fastest


def test_steps_count_only_where_every_seed_arrives():
    made = rows("learning_rate", WIDE, steps={("batch", 0.1): (100, 100), ("batch", 1.0): (50, 50)})
    next(row for row in made if (row["norm"], row["value"]) == ("batch", 1.0))["steps_to_target"] = None
    fastest = next(text for text in said(made) if "is reached" in text)
    assert (
        "after 100 steps with batch normalisation (learning rate 0.1) and not by every seed without it. No verdict from 2 seeds."
        in fastest
    )


def test_words_for_depth_where_batch_normalisation_loses():
    made = {("batch", 2): 0.85, ("batch", 50): 0.3, ("none", 2): 0.84, ("none", 50): 0.81}
    texts = said(rows("depth", {key: [accuracy] * 5 for key, accuracy in made.items()}))
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
    (matched,) = [text for text in texts if "at the matched" in text]
    assert matched.startswith(
        "p: at the matched learning rate 0.1: 0.860 [0.860, 0.860] with batch normalisation, 0.860 [0.855, 0.865] "
        "without it: no difference is shown (Welch's 95% interval -"
    )
    assert matched.endswith(" points), batch normalisation does not win.")
    assert texts[matched] is False
    assert any(text.startswith("p: each at its largest usable learning rate: 0.865 [0.860, 0.870]") for text in texts)


def test_words_for_small_batches_and_positions():
    made = {("batch", 2): 0.3, ("batch", 8): 0.8, ("none", 2): 0.7, ("none", 8): 0.6}
    texts = said(rows("batch_size", {key: [accuracy] * 5 for key, accuracy in made.items()}))
    assert texts["p: batch normalisation loses with this many rows in a batch: 2 (0.300 with, 0.700 without)."] is False
    made = {("batch", "pre"): [0.84] * 5, ("batch", "post"): [0.86] * 5, ("none", "none"): [0.7] * 5}
    expected = (
        "p: normalised before the activation 0.840 [0.840, 0.840] (learning rate 0.1), after it 0.860 [0.860, 0.860] "
        "(learning rate 0.1): after is higher by 2.0 points (Welch's 95% interval +2.0 to +2.0)."
    )
    assert said(rows("norm_position", made))[expected] is None


def test_words_for_dynamic_tanh():
    dyt = {("dyt", 0.01): [0.82] * 5, ("dyt", 0.1): [0.81] * 5, ("dyt", 1.0): [0.1] * 5}
    both = {key: seeds[:1] * 5 for key, seeds in WIDE.items()}
    made = rows("learning_rate", both | dyt, diverged={("dyt", 1.0)})
    texts = said(made)
    best = (
        "p: with Dynamic Tanh in the place of batch normalisation: best mean test accuracy 0.820 [0.820, 0.820] "
        "(learning rate 0.01), 5 of 15 runs diverged: batch normalisation is higher by 4.0 points (Welch's 95% interval "
        "-4.0 to -4.0)."
    )
    usable = "p: usable learning rates with Dynamic Tanh: none of 3."
    assert [text for text in texts if "Tanh" in text] == [best, usable]
    without = said(rows("learning_rate", both))
    assert {text: wins for text, wins in texts.items() if "Tanh" not in text} == without
    depths = {
        ("batch", 2): 0.7,
        ("batch", 5): 0.7,
        ("none", 2): 0.7,
        ("none", 5): 0.7,
        ("dyt", 2): 0.85,
        ("dyt", 5): 0.5,
    }
    made = rows("depth", {key: [accuracy] * 5 for key, accuracy in depths.items()})
    last = "p: deepest network whose mean test accuracy reaches 0.8 with Dynamic Tanh: 2 hidden layers."
    assert said(made)[last] is None


def test_words_for_the_geometry():
    made = rows("geometry", {("batch", 50): [0.1, 0.1], ("none", 50): [0.1, 0.1]})
    curves = [
        {"experiment": "geometry", "panel": "p", "norm": norm, "seed": seed, "layer": [0, 1], "rank": [20.0, rank]}
        | {"angle_percentiles": [[70, 90, 95], [1, angle, 3]], "furthest": [91, furthest]}
        for norm, seed, rank, angle, furthest in (
            *(("batch", 0, 3, 10, 80), ("batch", 1, 4, 20, 90)),
            *(("none", 0, 1.0, 1, 2), ("none", 1, 1.2, 2, 3)),
        )
    ]
    assert said(made, curves) == {
        "p: a mini-batch of rank 20.0, with a median angle of 90 degrees between two rows, has rank 3.5 and angle 15 after "
        "1 layers with batch normalisation, its furthest row 85 degrees from the others.": None,
        "p: a mini-batch of rank 20.0, with a median angle of 90 degrees between two rows, has rank 1.1 and angle 2 after "
        "1 layers without it, its furthest row 2 degrees from the others.": None,
    }


def test_every_experiment_has_something_said_of_it():
    assert summary.SAID.keys() == EXPERIMENTS.keys()
