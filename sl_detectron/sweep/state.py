"""What is on disk of a run: its result, its failure, the config that it ran with.

A run's files are in its folder beside those of the training, of which ``config.yaml`` counts
here. A result or failure appears whole or not at all.
"""

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode

from ..config import config_keys
from ..engine.class_estimates import round_config
from ..engine.setup import merge_cfg
from ..files import write_text

__all__ = [
    "differences",
    "fingerprint",
    "has_checkpoint",
    "read_result",
    "rounds_of",
    "same_config",
]

GRID_FILE = "grid.yaml"
OPTIONS_FILE = "options.json"  # those of the command line, and --scale-schedule
RESULT = "result.json"
FAILED = "failed.json"
BEGUN = "begun.json"  # the fingerprint of a training as it starts
LOCK = ".lock"
RUN_LOG = "run.log"
# Which checkpoints of a finished run stay.
KEEP = ("all", "final", "none")
ABSENT = "(no such key)"


def fingerprint(cfg: CfgNode) -> str:
    """A hash of all values of a config, except its output folder.

    Example:
        >>> first, second = (CfgNode({"SEED": 1, "OUTPUT_DIR": folder}) for folder in ("a", "b"))
        >>> fingerprint(first) == fingerprint(second)
        True
        >>> second.SEED = 2
        >>> fingerprint(first) == fingerprint(second)
        False
    """
    return hashlib.sha256(json.dumps(_flat(cfg), sort_keys=True).encode()).hexdigest()


def read_result(folder: Path) -> dict[str, Any] | None:
    """The result in a run's folder, or None if there is none yet; refuses a damaged one."""
    path = folder / RESULT
    try:
        result = json.loads(path.read_text())
        if isinstance(result["fingerprint"], str) and isinstance(result["metrics"], dict):
            return result
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, ValueError):
        pass
    raise ValueError(f"{path} is not a result of this sweep; remove it to train the run again")


def has_checkpoint(folder: Path) -> bool:
    """Whether the training in a run's folder can go on, in its last round or an earlier one."""
    return any((part / "last_checkpoint").is_file() for part in rounds_of(folder))


def rounds_of(folder: Path) -> list[Path]:
    """A run's folder, and those of its earlier rounds of label correction."""
    return [folder, *sorted(folder.glob("round_*"))]


def same_config(cfg: CfgNode, folder: Path) -> bool:
    """Whether what a run's folder holds, finished or half done, was trained with this config."""
    recorded = read_result(folder)
    with contextlib.suppress(OSError, KeyError, TypeError, ValueError):  # not there, or not ours
        recorded = recorded or json.loads((folder / BEGUN).read_text())
        if recorded["fingerprint"] == fingerprint(cfg):
            return True
    if not differences(cfg, folder):
        return True
    # Of several rounds of label correction config.yaml is that of the last.
    rounds = cfg.get("MODEL", {}).get("SUPERLOSS", {}).get("CORRECTION")
    return bool(rounds) and not differences(round_config(cfg, rounds.ROUNDS), folder)


def differences(cfg: CfgNode, folder: Path) -> dict[str, tuple[Any, Any]]:
    """{key: (old value, new value)} where a config differs from the one a run was trained with.

    A key that this version of the software added counts only if it is not at its default: at its
    default nothing changed for the run.
    """
    path = folder / "config.yaml"
    try:
        old, new = _flat(yaml.safe_load(path.read_text())), _flat(cfg)
    except FileNotFoundError:
        return {str(path): ("(no such file)", "cannot be compared")}
    except (yaml.YAMLError, AttributeError, KeyError, UnicodeDecodeError):
        return {str(path): ("(cut off or damaged)", "cannot be compared")}
    default = _flat(merge_cfg("", []))
    return {
        key: (old.get(key, ABSENT), new.get(key, ABSENT))
        for key in sorted(old | new)
        if old.get(key, default.get(key)) != new.get(key, ABSENT)
    }


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write a file that is there as a whole or not at all."""
    write_text(path, json.dumps(data, indent=1) + "\n")


def _flat(cfg: dict[str, Any]) -> dict[str, Any]:
    """{"SECTION.KEY": value} with lists for tuples, as a YAML file has them."""
    keys = config_keys(json.loads(json.dumps(cfg)))
    del keys["OUTPUT_DIR"]
    return {key: value for key, value in keys.items() if not isinstance(value, dict)}
