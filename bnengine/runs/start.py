"""What a run that fine-tunes begins with: the network of a finished run, some of whose layers may be frozen."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from ..arguments import ConfigError
from ..backends import Backend
from ..checkpoints import Loaded
from ..data.shards import Parts
from ..layers import BatchNorm, Layer
from ..networks import Sequential
from ..optimizers.freezing import within
from .config import Config
from .predict import load_network


class Beginning(NamedTuple):
    """The network of a finished run, ready to be trained."""

    net: Sequential
    """With the frozen batch normalisations on running statistics."""
    frozen: tuple[str, ...]
    """Names of the layers whose parameters stay as they are."""
    loaded: Loaded

    @property
    def target(self) -> tuple[float, float]:
        """Mean and standard deviation of the targets that it has learned."""
        return self.loaded.metadata["target_mean"], self.loaded.metadata["target_std"]


def load_beginning(config: Config, parts: Parts, backend: Backend) -> Beginning:
    """The network that the configuration starts from, refused where the data have other classes or columns."""
    assert config.start is not None
    loaded = load_network(config.start, backend)
    for name in ("task", "classes", "columns", "features"):
        now = getattr(parts.dataset, name)
        was, now = loaded.metadata[name], list(now) if isinstance(now, tuple) else now
        if was != now:
            raise ConfigError(f"start: the network of {config.start} has {name} {was!r}, {config.data} has {now!r}")
    net, frozen = _freeze(loaded.net, config.freeze.split(",") if config.freeze else [])
    return Beginning(net, frozen, loaded)


def in_its_scale(parts: Parts, target: tuple[float, float]) -> Parts:
    """The rows with training and validation targets in the scale of the targets that the network has learned."""
    (mean, std), (its_mean, its_std) = parts.target, target

    def scaled(y: Any) -> Any:
        return (y * std + mean - its_mean) / its_std

    if parts.dataset.task == "classification" or parts.target == target:
        return parts
    dataset = dataclasses.replace(parts.dataset, y_train=scaled(parts.dataset.y_train))
    held = parts.validation and (parts.validation[0], scaled(parts.validation[1]))
    return Parts(dataset, held, target)


def _freeze(net: Sequential, words: Sequence[str]) -> tuple[Sequential, tuple[str, ...]]:
    """The network with layers of these positions or kinds frozen, and the names of those that have parameters."""
    named = dict(net.named())
    of_word = {word: [n for n in named if within(n, word) or type(named[n]).__name__ == word] for word in words}
    learned = [name for name, layer in named.items() if layer.shapes.params]
    for word, found in of_word.items():
        if not set(found) & set(learned):
            words = ", ".join(f"{name} ({named[name]})" for name in learned)
            raise ConfigError(f"freeze: {word!r} is no layer with parameters; those are {words}")
    frozen = [name for name in named if any(name in found for found in of_word.values())]
    if set(learned) <= set(frozen):
        raise ConfigError("freeze: expected some layers with parameters to be left for training, got all of them")
    names = iter(named)

    def changed(layer: Layer) -> Layer:
        name = next(names)
        if not isinstance(layer, BatchNorm):
            return layer
        return dataclasses.replace(layer, statistics="running" if name in frozen else "batch")

    return net.map(changed), tuple(name for name in frozen if name in learned)
