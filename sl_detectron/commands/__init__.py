"""What the tools do, and how they come to a config."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode

from ..engine.setup import setup_cfg
from ..model_zoo import find_config

__all__ = ["run_config"]


def run_config(
    args: argparse.Namespace, opts: Sequence[str], advice: str, eval_only: bool = False
) -> CfgNode:
    """The config of ``--from-run``, or of ``--config-file``, with ``--opts`` and those of a tool.

    Args:
        args: ``from_run``, ``config_file`` and ``opts`` of the tool
        opts: those of the tool, which win over those of the user
        advice: what to do about a LazyConfig, after "... is a LazyConfig, "
        eval_only: whether the training sets may be absent

    Raises:
        FileNotFoundError: the folder is not a run's
        ValueError: it is a LazyConfig, or as :func:`~sl_detectron.engine.setup_cfg` says
    """
    path = Path(find_config(args.config_file))
    if args.from_run:
        path = Path(args.from_run, "config.yaml")
        if not path.is_file():
            raise FileNotFoundError(
                f"{args.from_run} is not the output of a training run: no {path}"
            )
        opts = [*opts, "OUTPUT_DIR", args.from_run]
    # The second: what the training run of one left as config.yaml.
    if path.suffix == ".py" or "_target_:" in path.read_text("utf-8", "replace"):
        raise ValueError(f"{path} is a LazyConfig, {advice}")
    return setup_cfg(str(path), [*args.opts, *opts], eval_only)
