"""The page: one HTML file without scripts, fonts or anything else that a browser would have to fetch."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from .._drawing import svg
from . import plots
from .experiments import EXPERIMENTS, Experiment
from .points import CHOSEN_BY_TEST, TEST, WORDS, Panel, experiments, shown
from .records import Curve, Record, Said

HEADLINES = ("learning_rate", "initial_scale", "depth", "section_4_1")
"""Experiments whose first sentences stand at the top."""

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""The browser itself is told to fetch nothing."""


def html(record: Record) -> str:
    """The page of a record.

    Pictures are SVG files within it, with tables of the same numbers behind them.
    """
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    body = "\n".join(["".join(_opening(record)), *_sections(record), _lost(record), _repeat(record["meta"])])
    title = f"What batch normalisation changes: {record['meta']['data']}"
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f"<style>\n{style}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _opening(record: Record) -> Iterator[str]:
    meta, said = record["meta"], record["summary"]
    yield "<h1>What batch normalisation changes</h1>"
    yield (
        f'<p class="soft">{len(record["rows"])} trials on {escape(meta["data"])}, seeds {", ".join(map(str, meta["seeds"]))}, '
        f"{meta['steps']} steps, hidden layers of {meta['width']} units; bnengine {meta['versions']['bnengine']}, "
        f"{meta['date'][:10]}.</p>"
    )
    yield "<h2>In short</h2>"
    firsts = {(s["experiment"], s["text"].partition(":")[0]): s for s in reversed(said)}  # of each panel
    yield _list((s for s in reversed(firsts.values()) if s["experiment"] in HEADLINES), with_title=True)
    compared = [sentence for sentence in said if sentence["wins"] is not None]
    won = sum(sentence["wins"] is True for sentence in compared)
    same = sum("no difference is shown" in sentence["text"].lower() for sentence in compared)
    others = f'; in {same} no difference is shown. <a href="#lost">Where it does not win</a> is listed whole.'
    yield f"<p>Batch normalisation wins {won} of {len(compared)} comparisons{others if won < len(compared) else '.'}</p>"
    yield f'<p class="soft">{escape(TEST)} {escape(meta.get("chosen", CHOSEN_BY_TEST))}</p>'
    yield (
        f'<p class="soft">Usable: {escape(meta["usable"])}. Steps are counted to a test accuracy of '
        f"{meta['target']:g} at the steps looked at, which are a factor of the square root of two apart, within the "
        f"budget of {meta['steps']} steps (more where an experiment says so). "
        "Accuracies are means over the seeds, with the lowest and the highest seed in brackets. "
        f"Diverged: {escape(meta['diverged'])}.</p>"
    )
    names = dict.fromkeys(row["experiment"] for row in record["rows"])
    yield "<nav>" + " ".join(f'<a href="#{name}">{escape(EXPERIMENTS[name].title)}</a>' for name in names) + "</nav>"


def _lost(record: Record) -> str:
    """Every comparison that batch normalisation does not win."""
    lost = [sentence for sentence in record["summary"] if sentence["wins"] is False]
    if not lost:
        return ""
    return f'<section id="lost"><h2>Where it does not win</h2>{_list(lost, with_title=True)}</section>'


def _list(said: Iterable[Said], *, with_title: bool = False) -> str:
    items = []
    for sentence in said:
        kind = {True: ' class="won"', False: ' class="lost"', None: ""}[sentence["wins"]]
        title = f"{EXPERIMENTS[sentence['experiment']].title}, " if with_title else ""
        items.append(f"<li{kind}>{escape(title + sentence['text'])}</li>")
    return f"<ul>{''.join(items)}</ul>" if items else ""


def _sections(record: Record) -> Iterator[str]:
    for name, panels in experiments(record["rows"], record["curves"], record["meta"]["target"]).items():
        said = [sentence for sentence in record["summary"] if sentence["experiment"] == name]
        steps = max(row["steps"] for row in record["rows"] if row["experiment"] == name)
        yield _section(name, EXPERIMENTS[name], panels, said, steps)


def _section(name: str, experiment: Experiment, panels: Sequence[Panel], said: Sequence[Said], steps: int) -> str:
    drawn = [plot for panel in panels for plot in plots.plots_of(panel)]
    tables = [_points_table(panel) if steps else _layers_table(panel) for panel in panels]
    if name == "section_4_1":
        tables += [_steps_table(panel.curves) for panel in panels]
    reading = " ".join(
        [f"{steps} steps." if steps else "Before any step.", *dict.fromkeys(plot.reading for plot in drawn)]
    )
    return (
        f'<section id="{name}"><h2>{escape(experiment.title)}</h2>'
        f'<p class="question">{escape(experiment.question)} {escape(reading)}</p>'
        f'<div class="charts">{"".join(map(_figure, drawn))}</div>{_list(said)}'
        f'<details><summary>The numbers</summary><div class="scroll">{"".join(tables)}</div></details></section>'
    )


def _figure(plot: plots.Plot) -> str:
    picture = base64.b64encode(svg(plots.picture([plot]))).decode()
    image = f'<img alt="{escape(plot.alternative)}" src="data:image/svg+xml;base64,{picture}">'
    return f"<figure><figcaption>{escape(plot.title)}</figcaption>{image}</figure>"


def _points_table(panel: Panel) -> str:
    varies = WORDS[EXPERIMENTS[panel.experiment].varies]
    single = varies == WORDS["learning_rate"]
    heads = [varies, *([] if single else ["learning rate"]), "normalisation", "mean", "lowest", "highest"]
    rows = []
    for p in panel.points:
        cells = [shown(p.value), *([] if single else [f"{p.learning_rate:g}"])]
        cells += [p.norm, *(f"{value:.4f}" for value in (p.mean, p.low, p.high))]
        steps = f"{p.mean_steps:.0f}" if None not in p.steps_to_target else "not all seeds"
        rows.append([*cells, steps, f"{p.diverged} of {len(p.accuracies)}", "yes" if p.usable else "no"])
    return table(panel.name, [*heads, "steps to target", "diverged", "usable"], rows)


def _steps_table(curves: Sequence[Curve]) -> str:
    """The mean test accuracy of each arm over the steps that every seed reached."""
    steps = sorted(set.intersection(*(set(curve["step"]) for curve in curves)))
    rows = []
    for step in steps:
        cells = [f"{step}"]
        for norm in ("batch", "none"):
            seen = [c["test_accuracy"][c["step"].index(step)] for c in curves if c["norm"] == norm]
            cells.append(f"{sum(seen) / len(seen):.4f}")
        rows.append(cells)
    return table("Mean test accuracy over the steps", ["step", "with BN", "without"], rows)


def _layers_table(panel: Panel) -> str:
    """Rank, and angle of two rows and of the row that is furthest, in the mean of the seeds, by layer."""
    heads, columns = ["layer"], []
    for norm in panel.norms():
        own = [curve for curve in panel.curves if curve["norm"] == norm]
        middle = [[angle for _, angle, _ in curve["angle_percentiles"]] for curve in own]
        for name, values in (
            ("rank", [curve["rank"] for curve in own]),
            ("median angle", middle),
            ("furthest row", [curve["furthest"] for curve in own]),
        ):
            heads.append(f"{name}, {plots.NAMES[norm]}")
            columns.append([f"{sum(each) / len(each):.1f}" for each in zip(*values, strict=True)])
    shown_layers = [n for n in range(len(columns[0])) if n <= 2 or n % 5 == 0]
    return table(panel.name, heads, [[f"{n}", *(column[n] for column in columns)] for n in shown_layers])


def table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table of text."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _repeat(meta: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in meta["versions"].items())
    facts = {
        "Seeds": ", ".join(map(str, meta["seeds"])),
        "Made": f"{meta['date']}, in {meta['run_seconds'] / 60:.0f} minutes of all processes together",
        "Versions": versions,
        "Commit": meta["commit"] or "unknown",
        "Machine": f"{meta['processor']}, {meta['cores']} processors, {meta['system']}, {meta['blas']}",
    }
    entries = "".join(f"<dt>{name}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    return (
        f'<section id="repeat"><h2>Repeat it</h2><pre>{escape(meta["command"])}</pre><dl>{entries}</dl>'
        '<p class="soft">study.json and study.csv, written beside this page, hold a row for each trial.</p></section>'
    )
