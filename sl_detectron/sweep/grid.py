"""The runs of a sweep: detectors x methods x label noise x seeds."""

import re
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

__all__ = ["METRICS", "Run", "Grid", "Method", "PaperValue", "slug"]

METRICS = ("AP", "AP50", "AP75")

PaperValue = tuple[float, float | None]


@dataclass(frozen=True)
class Method:
    """What a sweep compares: a config, by name or path, with options ``(KEY, VALUE, ...)``.

    Attributes:
        clean_opts: after ``opts``, where noise is 0
        paper: {metric: one (mean, standard deviation or None) in percent for each noise level}
    """

    detector: str
    name: str
    config: str
    opts: tuple[str, ...] = ()
    clean_opts: tuple[str, ...] = ()
    paper: dict[str, tuple[PaperValue, ...]] = field(default_factory=dict, hash=False)

    def __str__(self) -> str:
        return f"{self.detector}, {self.name}"


@dataclass(frozen=True)
class Run:
    """One training: a method at one noise level (a fraction) with one seed."""

    method: Method
    noise: float
    seed: int

    @property
    def folder(self) -> Path:
        """Where its files are, relative to the sweep's folder."""
        names = (slug(self.method.detector), slug(self.method.name))
        return Path(*names, f"noise_{self.noise:g}", f"seed_{self.seed}")

    @property
    def method_opts(self) -> tuple[str, ...]:
        """Those of its method at this noise level."""
        return self.method.opts + (self.method.clean_opts if self.noise == 0 else ())

    @property
    def run_opts(self) -> tuple[str, ...]:
        """Those that tell it from others of its method; keys that every config has."""
        seeds = ("SEED", str(self.seed), "DATASETS.LABEL_NOISE.SEED", str(self.seed))
        return (*seeds, "DATASETS.LABEL_NOISE.RATE", str(self.noise))

    def __str__(self) -> str:
        return f"{self.method}, {100 * self.noise:g} % noise, seed {self.seed}"


@dataclass(frozen=True)
class Grid:
    """The contents of a grid file, in its order.

    Attributes:
        text: the file as it is
        noise: fractions of wrong labels
        references: names of the baseline and the controls, the baseline first
        baseline: its name; empty if the file has none
        source: of the published numbers
        opts: ``[KEY, VALUE, ...]`` of all runs that are not in the file; the methods have them too
        scale: of the schedule of all runs, see :mod:`.schedule`
    """

    text: str
    noise: tuple[float, ...]
    seeds: tuple[int, ...]
    methods: tuple[Method, ...]
    references: tuple[str, ...] = ()
    source: str = ""
    opts: tuple[str, ...] = ()
    scale: float = 1.0
    baseline: str = ""

    @property
    def runs(self) -> list[Run]:
        """All runs. The first seed of every method comes first: a whole, if rough, table."""
        return [
            Run(method, noise, seed)
            for seed in self.seeds
            for noise in self.noise
            for method in self.methods
        ]

    @property
    def pairs(self) -> list[tuple[Method, Method]]:
        """(method, reference of the same detector); of two references the later one comes first."""
        return [
            (method, other)
            for method in self.methods
            for name in takewhile(method.name.__ne__, self.references)
            for other in self.methods
            if (other.detector, other.name) == (method.detector, name)
        ]


def slug(name: str) -> str:
    """A name as a folder: ``"Faster R-CNN"`` is ``"faster_r_cnn"``."""
    return re.sub(r"[^a-z0-9.]+", "_", name.lower()).strip("_.")
