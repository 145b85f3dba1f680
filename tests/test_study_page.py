"""The committed record of the full study: its words, its page in a browser, and what the documentation says of it."""

from __future__ import annotations

import base64
import itertools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from libraries import need

from bnengine import study
from bnengine.study import page, points, summary
from bnengine.study.experiments import EXPERIMENTS

pytest.importorskip("matplotlib")

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "docs" / "_static" / "study"
RECORDED = set(EXPERIMENTS) - {"geometry"}
"""It was made before there was the last, and Dynamic Tanh."""


@pytest.fixture(scope="module")
def record():
    return json.loads((RECORD / "study.json").read_text(encoding="utf-8"))


def titled(sentence):
    return f"{EXPERIMENTS[sentence['experiment']].title}, {sentence['text']}"


def test_the_record_is_a_full_study(record):
    meta = record["meta"]
    assert meta["data"] == "fashion-mnist"
    assert {row["experiment"] for row in record["rows"]} == RECORDED
    assert {row["seed"] for row in record["rows"]} == set(meta["seeds"]) >= {0, 1, 2}
    assert min(row["steps"] for row in record["rows"]) == meta["steps"] >= 2000
    for point in points.points(record["rows"]):
        assert len(point.accuracies) == len(meta["seeds"])


def test_the_sentences_of_the_record_follow_from_its_rows(record):
    said = summary.sentences(record["rows"], record["curves"], record["meta"]["target"])
    assert said == record["summary"]


def test_the_committed_page_is_the_record_s(record):
    made = page.html(record)
    without_pictures = [
        re.sub(r"base64,[^\"]+", "", text) for text in (made, (RECORD / "study.html").read_text(encoding="utf-8"))
    ]
    assert without_pictures[0] == without_pictures[1]  # another version of matplotlib may draw otherwise
    assert page.html(record) == made


def pictures(text):
    """The SVG files within a page."""
    return [base64.b64decode(data).decode() for data in re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', text)]


def test_the_pictures_of_the_page_are_drawings_with_text(record):
    text = page.html(record)
    found = pictures(text)
    assert len(found) == text.count("<figure>") == text.count("<img alt=") > 10
    for picture in found:
        assert "<text" in picture
        assert "<image" not in picture
    (bias,) = [picture for picture in found if "without the bias" in picture]
    assert ">loss</text>" in bias


def test_a_study_is_written_anew_from_its_record(record, tmp_path):
    shutil.copy(RECORD / "study.json", tmp_path)
    study.rewrite(tmp_path)
    for name in ("study.json", "study.csv"):
        assert (tmp_path / name).read_bytes() == (RECORD / name).read_bytes()
    assert {path.stem for path in tmp_path.glob("*.png")} == RECORDED


def bullets(file, heading):
    """The items of the list in a section, each as one line."""
    text = (ROOT / file).read_text(encoding="utf-8")
    (found,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    items = re.split(r"^\* ", found, flags=re.MULTILINE)[1:]
    return [" ".join(item.split("\n\n")[0].split()) for item in items]


def test_the_documentation_says_what_the_record_says(record):
    every = [titled(sentence) for sentence in record["summary"]]
    lost = [titled(sentence) for sentence in record["summary"] if sentence["wins"] is False]
    assert bullets("docs/study.md", "Where it does not win") == lost
    for file, heading in (("docs/study.md", "What came out"), ("README.md", "What it changes")):
        assert len(bullets(file, heading)) > 2
        assert set(bullets(file, heading)) <= set(every)
    assert record["meta"]["command"] in (ROOT / "docs" / "study.md").read_text(encoding="utf-8")


def test_the_page_stands_alone():
    text = (RECORD / "study.html").read_text(encoding="utf-8")
    for mark in ("<script", "http://", "https://", "@import", "url("):
        assert mark not in text
    assert text.count("src=") == text.count('src="data:')


def test_text_from_outside_is_escaped(record):
    made = page.html({**record, "meta": {**record["meta"], "data": "<b>&.csv"}})
    assert "<b>&.csv" not in made
    assert "&lt;b&gt;&amp;.csv" in made


@pytest.fixture(scope="module")
def browser():
    sync = need("playwright.sync_api")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs the program chromium")
    with sync.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def test_the_page_in_a_browser(browser, record):
    tab = browser.new_page(viewport={"width": 390, "height": 844})
    requests, trouble = [], []
    tab.on("request", lambda request: requests.append(request.url))
    tab.on("console", lambda message: trouble.append(message.text))
    tab.on("pageerror", lambda error: trouble.append(str(error)))
    address = (RECORD / "study.html").as_uri()
    tab.goto(address)
    assert ([url for url in requests if not url.startswith("data:")], trouble) == ([address], [])
    assert tab.evaluate("[...document.images].every(image => image.naturalWidth > 100)")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390  # nothing is wider than a phone
    shown = tab.locator("caption").evaluate_all(
        """captions => captions.map(caption => [caption.closest('section').id, caption.textContent,
           [...caption.parentElement.querySelectorAll('tbody tr')].map(row => [...row.cells].map(c => c.textContent))])"""
    )
    tables = {(section, caption): cells for section, caption, cells in shown}
    panels = points.experiments(record["rows"], record["curves"], record["meta"]["target"]).values()
    for experiment, panel, group, *_ in itertools.chain(*panels):
        table = tables[experiment, panel]
        means = {}
        for row in record["rows"]:
            if (row["experiment"], row["panel"]) == (experiment, panel):
                key = (row["value"], row["norm"], row["learning_rate"])
                means.setdefault(key, []).append(row["test_accuracy"])
        assert [cells[-6] for cells in table] == [f"{np.mean(seeds):.4f}" for seeds in means.values()]
        assert [cells[-1] for cells in table] == ["yes" if point.usable else "no" for point in group]
    words = tab.inner_text("main")
    for sentence in record["summary"]:
        assert sentence["text"] in words
    for fact in (record["meta"]["command"], record["meta"]["versions"]["numpy"], "Seeds"):
        assert fact in words
    assert tab.locator("img[alt]:not([alt=''])").count() == len(tab.locator("figure").all()) > 5
    for scheme, ground in (("light", "rgb(255, 255, 255)"), ("dark", "rgb(20, 24, 30)")):
        tab.emulate_media(color_scheme=scheme)
        assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == ground
    tab.emulate_media(media="print", color_scheme="dark")  # paper stays white, and the tables are printed
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.locator("table").first.bounding_box()["height"] > 20
    tab.close()
