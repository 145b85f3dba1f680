"""Titles of any text over pictures, also in letters that matplotlib's own font lacks; pytest makes a warning an error."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("matplotlib")
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg

from bnengine import _drawing
from bnengine.runs.curves import curves

FREE = "\ufdd0\ufdd1"
"""No font has these: they are no characters."""


def pixels(title):
    figure = _drawing.drawing()(figsize=(6, 2), layout="constrained", dpi=60)
    _drawing.set_title(figure, title)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def test_letters_of_no_font_are_left_out_and_the_others_stay():
    assert _drawing.drawable(f"a{FREE}b") == ("a\u2026b", "DejaVu Sans")
    assert _drawing.drawable("name\udcff\n.csv") == ("name\u2026.csv", "DejaVu Sans")
    assert _drawing.drawable("plain, Größe, \u03b1") == ("plain, Größe, \u03b1", "DejaVu Sans")
    assert (pixels(f"a{FREE}b") == pixels("a\u2026b")).all()


def test_a_font_that_has_the_letters_is_found_and_draws_them():
    (letter,) = map(chr, sorted(set(_letters("STIXGeneral")) - set(_letters("DejaVu Sans")))[:1])
    text, font = _drawing.drawable(f"a{letter}b")
    assert (text, font) == (f"a{letter}b", font)
    assert font != "DejaVu Sans"
    assert ord(letter) in _letters(font)
    assert (pixels(f"a{letter}b") != pixels("ab")).any()


def _letters(font):
    return font_manager.get_font(font_manager.findfont(font)).get_charmap()


@pytest.mark.parametrize("data", ["\u6570\u636e.csv", "$\\frac$.csv", "a\udcff.csv"])
def test_a_run_gets_its_picture_whatever_its_data_is_called(data):
    history = [{"epoch": epoch, "train_loss": 1 / epoch, "train_accuracy": 0.5} for epoch in (1, 2, 3)]
    about = {"test_accuracy": 0.5, "epochs": 3, "parameters": 10, "backend": "numpy", "dtype": "float32", "data": data}
    assert curves(history, about).startswith(b"\x89PNG")


def test_a_long_title_is_broken_into_lines_within_the_picture():
    drawn = pixels("a title that is a good deal longer than the picture over which it stands is wide: 2000 steps") < 128
    columns = np.flatnonzero(drawn[..., :3].any(axis=(0, 2)))
    assert columns.min() > 4
    assert columns.max() < drawn.shape[1] - 4
