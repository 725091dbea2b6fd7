"""A sweep as a small YAML file: detectors x methods x label noise x seeds.

The file's keys::

    noise: [0.0, 0.4]           # fractions of wrong labels
    seeds: [0, 1, 2]            # SEED and DATASETS.LABEL_NOISE.SEED
    opts: [KEY, VALUE, ...]     # optional: config options of all runs
    source: text                # optional: where the `paper` numbers are from
    baseline: NAME              # optional: method that the others of a detector are paired with
    controls: [NAME, ...]       # optional: more such methods
    detectors:
      DETECTOR:
        METHOD:
          config: Toy/faster_rcnn.yaml    # a shipped config by name, or a path
          opts: [KEY, VALUE, ...]         # optional: after those of all runs
          clean_opts: [KEY, VALUE, ...]   # optional: where noise is 0, after opts
          paper: {AP50: [81.4±0.0, ...]}  # optional: published numbers in the order of `noise`
"""

import difflib
import os
import re
from pathlib import Path
from typing import Any, NoReturn

import yaml

from ..files import load_yaml
from ..model_zoo import find_config
from .grid import METRICS, Grid, Method, PaperValue, Run, slug

__all__ = ["read_grid"]

GRID_KEYS = ("noise", "seeds", "opts", "source", "baseline", "controls", "detectors")
METHOD_KEYS = ("config", "opts", "clean_opts", "paper")
# A run sets these itself, so that a value in the file would have no effect.
RUN_KEYS = ("SEED", "DATASETS.LABEL_NOISE.SEED", "DATASETS.LABEL_NOISE.RATE", "OUTPUT_DIR")


def read_grid(path: str | os.PathLike, opts: list[str] | None = None) -> Grid:
    """Read a grid file.

    Args:
        path: of the YAML file, or the name of a shipped one, ``Sweep/toy.yaml``; its keys are
            described at the top of this module
        opts: more options of all runs ``[KEY, VALUE, ...]``, after those of the file; with any the
            published numbers, which are those of the file's schedule, are left out

    Returns:
        the grid; whether its configs exist is not looked at

    Raises:
        ValueError: there is no such file, or a key is missing, unknown or has a bad value; the
            message names it
    """
    own = _checked_opts("options", opts or [])
    try:
        text = Path(find_config(str(path))).read_text(encoding="utf-8")
        data = load_yaml(text, _UniqueKeys)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: not a YAML file: {reason}") from error
    return _Parser(str(path)).grid(text, data, own)


class _UniqueKeys(yaml.SafeLoader):
    """A method given twice would silently replace the first."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=deep) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is there twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


class _Parser:
    """Turns the file's data into a grid; every error says file, method and key."""

    def __init__(self, path: str):
        self.path = path

    def grid(self, text: str, data: Any, opts: tuple[str, ...]) -> Grid:
        self._keys("", data, GRID_KEYS, ("noise", "seeds", "detectors"))
        noise = self._list("", data, "noise", "fractions in [0, 1]", _is_fraction)
        seeds = self._list("", data, "seeds", "integers of at least 0", _is_seed)
        shared = self._opts("", data, "opts")
        detectors = data["detectors"]
        if not isinstance(detectors, dict) or not detectors:
            self._fail("detectors", "must be {detector: {method: {config: ...}}}")
        methods = [
            self._method(_name(detector), _name(name), row, (shared, opts), len(noise))
            for detector, rows in detectors.items()
            for name, row in self._methods(detector, rows)
        ]
        self._check_folders([Run(m, float(x), 0) for m in methods for x in noise])
        references = self._references(data, methods)
        source = str(data.get("source", ""))
        levels = tuple(float(level) for level in noise)
        return Grid(text, levels, tuple(seeds), tuple(methods), references, source, opts)

    def _references(self, data: dict, methods: list[Method]) -> tuple[str, ...]:
        names = {method.name for method in methods}
        baseline, controls = data.get("baseline"), data.get("controls", [])
        if not isinstance(controls, list):
            self._fail("controls", f"must be a list of names; got {controls!r}")
        references = controls if baseline is None else [baseline, *controls]
        for name in references:
            if isinstance(name, (list, dict)):
                self._fail("baseline, controls", f"must be names of methods; got {name!r}")
            # As methods are: YAML reads the names 1 and yes as other than text.
            if _name(name) not in names:
                near = _near(_name(name), names)
                self._fail("baseline, controls", f"no method has the name {_name(name)!r}{near}")
        rows = {(method.detector, method.name) for method in methods}
        for method in methods:
            # It would have no differences, without a word.
            if baseline is not None and (method.detector, _name(baseline)) not in rows:
                self._fail("baseline", f"{method.detector} has no method {_name(baseline)!r}")
        return tuple(map(_name, references))

    def _method(
        self, detector: str, name: str, row: Any, shared: tuple[tuple[str, ...], ...], levels: int
    ) -> Method:
        where = f"{detector}, {name}"
        self._keys(where, row, METHOD_KEYS, ("config",))
        if not isinstance(row["config"], str) or not row["config"]:
            self._fail(f"{where}, config", f"must be a name or path; got {row['config']!r}")
        before, after = shared
        own = self._opts(where, row, "opts")
        clean = self._opts(where, row, "clean_opts")
        # The command line has the last word, also over clean_opts.
        clean = (*clean, *after) if clean else ()
        opts = (*before, *own, *after)
        paper = self._paper(where, row, levels)
        return Method(detector, name, row["config"], opts, clean, {} if after else paper)

    def _paper(self, where: str, row: dict, levels: int) -> dict[str, tuple[PaperValue, ...]]:
        paper = row.get("paper", {})
        self._keys(f"{where}, paper", paper, METRICS, ())
        numbers = {}
        for metric, values in paper.items():
            key = f"{where}, paper, {metric}"
            if not isinstance(values, list) or len(values) != levels:
                self._fail(key, f"must have one value for each of the {levels} noise levels")
            numbers[metric] = tuple(self._paper_value(key, value) for value in values)
        return numbers

    def _paper_value(self, key: str, value: Any) -> PaperValue:
        match = re.fullmatch(r"\s*([\d.]+)\s*(?:±\s*([\d.]+)\s*)?", str(value))
        try:
            mean, spread = match.groups() if match else ("", None)
            return float(mean), None if spread is None else float(spread)
        except ValueError:
            self._fail(key, f"must be a number or 54.9±0.5; got {value!r}")

    def _methods(self, detector: Any, rows: Any) -> list[tuple[Any, Any]]:
        if not isinstance(rows, dict) or not rows:
            self._fail(str(detector), "must be {method: {config: ...}}")
        return list(rows.items())

    def _keys(self, where: str, data: Any, known: tuple, needed: tuple) -> None:
        if not isinstance(data, dict):
            self._fail(where, f"must be a mapping with the keys {', '.join(known)}")
        for key in data:
            if key not in known:
                hint = _near(str(key), known) or f"; known are {', '.join(known)}"
                self._fail(where, f"unknown key {key!r}{hint}")
        for key in needed:
            if key not in data:
                self._fail(where, f"has no key {key!r}")

    def _list(self, where: str, data: dict, key: str, what: str, fits: Any) -> list:
        values = data[key]
        good = isinstance(values, list) and values and all(map(fits, values))
        if not good or len(set(values)) != len(values):
            self._fail(key, f"must be a list of different {what}; got {values!r}")
        return values

    def _opts(self, where: str, data: dict, key: str) -> tuple[str, ...]:
        values = data.get(key, [])
        return _checked_opts(f"{self.path}: {where}{', ' if where else ''}{key}", values)

    def _check_folders(self, runs: list[Run]) -> None:
        seen: dict[Path, Run] = {}
        for run in runs:
            method, other = run.method, seen.setdefault(run.folder, run)
            if other.method is method and other is not run:
                self._fail("noise", f"{other.noise} and {run.noise} are too near to each other")
            if other is not run or not (slug(method.detector) and slug(method.name)):
                self._fail(
                    str(method), f"needs a name of its own in letters a-z; cf. {other.method}"
                )

    def _fail(self, where: str, message: str) -> NoReturn:
        raise ValueError(f"{self.path}: {f'{where}: ' if where else ''}{message}")


def _checked_opts(where: str, values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or len(values) % 2:
        raise ValueError(f"{where}: must be [KEY, VALUE, KEY, VALUE, ...]; got {values!r}")
    for name in values[::2]:
        if name in RUN_KEYS:
            raise ValueError(f"{where}: {name} is set by the grid itself; leave it out")
    return tuple(map(str, values))


def _name(value: Any) -> str:
    """In one line, as in a table."""
    return " ".join(str(value).split())


def _is_fraction(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1


def _is_seed(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _near(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
