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

import dataclasses
import os
import re
from pathlib import Path
from typing import Any, NoReturn

import yaml

from ..cli import did_you_mean
from ..files import load_yaml
from ..model_zoo import find_config
from .grid import METRICS, Grid, Method, PaperValue, Run, slug
from .schedule import check_scale

__all__ = ["read_grid"]

GRID_KEYS = ("noise", "seeds", "opts", "source", "baseline", "controls", "detectors")
METHOD_KEYS = ("config", "opts", "clean_opts", "paper")
PAPER_VALUE = re.compile(r"\s*(\d*\.?\d+)\s*(?:±\s*(\d*\.?\d+)\s*)?")
# A run sets these itself, so that a value in the file would have no effect.
RUN_KEYS = ("SEED", "DATASETS.LABEL_NOISE.SEED", "DATASETS.LABEL_NOISE.RATE", "OUTPUT_DIR")


def read_grid(path: str | os.PathLike, opts: list[str] | None = None, scale: float = 1.0) -> Grid:
    """Read a grid file; whether its configs exist is not checked.

    Args:
        path: of the YAML file, or the name of a shipped one, ``Sweep/toy.yaml``; its keys are
            described at the top of this module
        opts: more options of all runs ``[KEY, VALUE, ...]``, after those of the file; with any the
            published numbers, which are those of the file's schedule, are left out
        scale: of the schedule of all runs, in (0, 1]; below 1 the published numbers are left out

    Raises:
        ValueError: there is no such file, or a key is missing, unknown or has a bad value
    """
    more = _opts("options", opts or [])
    check_scale(scale)
    file = find_config(str(path))
    try:
        text = Path(file).read_text(encoding="utf-8")
        return _grid(text, load_yaml(text, _UniqueKeys), more, scale)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: not a YAML file: {reason}") from error
    except ValueError as error:  # names method and key
        raise ValueError(f"{path}: {error}") from error


class _UniqueKeys(yaml.SafeLoader):
    """A method given twice would silently replace the first."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        named = [key for key, _ in node.value if not key.tag.endswith(":merge")]
        keys = [self.construct_object(key, deep=deep) for key in named]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.MarkedYAMLError(
                    None, None, f"key {key!r} is there twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


def _grid(text: str, data: Any, more: tuple[str, ...], scale: float) -> Grid:
    _check_keys("", data, GRID_KEYS, ("noise", "seeds", "detectors"))
    noise = _list("noise", data["noise"], "fractions in [0, 1]", (int, float), 1)
    seeds = _list("seeds", data["seeds"], "integers of at least 0", (int,), float("inf"))
    shared = (_opts("opts", data.get("opts", [])), more)
    methods = tuple(
        _method(_name(detector), _name(name), keys, shared, len(noise))
        for detector, group in _items("detectors", data["detectors"], "{detector: {method: ...}}")
        for name, keys in _items(str(detector), group, "{method: {config: ...}}")
    )
    if scale != 1:
        methods = tuple(dataclasses.replace(method, paper={}) for method in methods)
    levels = tuple(map(float, noise))
    _check_folders([Run(method, level, 0) for method in methods for level in levels])
    references = _references(data.get("baseline"), data.get("controls", []), methods)
    return Grid(
        *(text, levels, tuple(seeds), methods, references, str(data.get("source") or "")),
        *(more, scale),
        baseline=references[0] if data.get("baseline") is not None else "",
    )


def _method(
    detector: str, name: str, keys: Any, shared: tuple[tuple[str, ...], ...], num_levels: int
) -> Method:
    where, (before, after) = f"{detector}, {name}", shared
    _check_keys(where, keys, METHOD_KEYS, ("config",))
    config, paper = keys["config"], keys.get("paper", {})
    if not isinstance(config, str) or not config:
        _fail(f"{where}, config", f"must be a name or path; got {config!r}")
    opts = (*before, *_opts(f"{where}, opts", keys.get("opts", [])), *after)
    clean = _opts(f"{where}, clean_opts", keys.get("clean_opts", []))
    # The command line has the last word, also over clean_opts.
    clean = (*clean, *after) if clean else ()
    _check_keys(f"{where}, paper", paper, METRICS)
    paper = {m: _paper(f"{where}, paper, {m}", v, num_levels) for m, v in paper.items()}
    return Method(detector, name, config, opts, clean, {} if after else paper)


def _paper(where: str, values: Any, num_levels: int) -> tuple[PaperValue, ...]:
    if not isinstance(values, list) or len(values) != num_levels:
        _fail(where, f"must have one value for each of the {num_levels} noise levels")
    numbers = []
    for value in values:
        match = PAPER_VALUE.fullmatch(str(value))
        if match is None:
            _fail(where, f"must be a number or 54.9±0.5; got {value!r}")
        numbers.append((float(match[1]), float(match[2]) if match[2] else None))
    return tuple(numbers)


def _references(baseline: Any, controls: Any, methods: tuple[Method, ...]) -> tuple[str, ...]:
    """Names of the baseline and the controls."""
    if not isinstance(controls, list):
        _fail("controls", f"must be a list of names; got {controls!r}")
    references = [*([] if baseline is None else [baseline]), *controls]
    for name in references:
        if isinstance(name, (list, dict)):
            _fail("baseline, controls", f"must be names of methods; got {name!r}")
    # As methods are: YAML reads the names 1 and yes as other than text.
    names = tuple(dict.fromkeys(map(_name, references)))
    known = {method.name for method in methods}
    for name in names:
        if name not in known:
            hint = did_you_mean(repr(name), map(repr, known))
            _fail("baseline, controls", f"no method has the name {name!r}{hint}")
    if baseline is not None:
        # A detector without it would have no differences, without a word.
        having = {method.detector for method in methods if method.name == names[0]}
        for method in methods:
            if method.detector not in having:
                _fail("baseline", f"{method.detector} has no method {names[0]!r}")
    return names


def _check_folders(runs: list[Run]) -> None:
    seen: dict[Path, Run] = {}
    for run in runs:
        method, other = run.method, seen.setdefault(run.folder, run)
        if other.method is method and other is not run:
            _fail("noise", f"{other.noise} and {run.noise} are too near to each other")
        if other is not run or not (slug(method.detector) and slug(method.name)):
            _fail(str(method), f"needs a unique name in letters a-z; compare {other.method}")


def _check_keys(
    where: str, data: Any, known: tuple[str, ...], needed: tuple[str, ...] = ()
) -> None:
    if not isinstance(data, dict):
        _fail(where, f"must be a mapping with the keys {', '.join(known)}")
    for key in data:
        if key not in known:
            hint = did_you_mean(repr(key), map(repr, known))
            _fail(where, f"unknown key {key!r}{hint or '; known are ' + ', '.join(known)}")
    for key in needed:
        if key not in data:
            _fail(where, f"has no key {key!r}")


def _items(where: str, data: Any, form: str) -> list[tuple[Any, Any]]:
    if not isinstance(data, dict) or not data:
        _fail(where, f"must be {form}")
    return list(data.items())


def _list(where: str, values: Any, form: str, types: tuple[type, ...], largest: float) -> list:
    # By type, as True is an int.
    if (
        not isinstance(values, list)
        or not all(type(value) in types and 0 <= value <= largest for value in values)
        or len(set(values)) != max(len(values), 1)
    ):
        _fail(where, f"must be a list of different {form}; got {values!r}")
    return values


def _opts(where: str, values: Any) -> tuple[str, ...]:
    if not isinstance(values, list) or len(values) % 2:
        _fail(where, f"must be [KEY, VALUE, KEY, VALUE, ...]; got {values!r}")
    for name in values[::2]:
        if name in RUN_KEYS:
            _fail(where, f"{name} is set by the grid itself; leave it out")
    return tuple(map(str, values))


def _name(value: Any) -> str:
    """In one line, as in a table."""
    return " ".join(str(value).split())


def _fail(where: str, message: str) -> NoReturn:
    raise ValueError(f"{where}: {message}" if where else message)
