"""A shorter schedule for all runs of a grid, scaled as a whole."""

from itertools import pairwise
from typing import Any

from detectron2.config import CfgNode

__all__ = ["check_scale", "scaled_options"]

# Keys in iterations. Fractions of the schedule, as MODEL.METHOD.START, scale by themselves.
LENGTHS = (
    *("SOLVER.MAX_ITER", "SOLVER.WARMUP_ITERS", "SOLVER.CHECKPOINT_PERIOD", "TEST.EVAL_PERIOD"),
    *("MODEL.SUPERLOSS.WARMUP_ITERS", "MODEL.SUPERLOSS.CORRECTION.PERIOD"),
)
STEPS = "SOLVER.STEPS"


def check_scale(scale: float) -> None:
    """Refuse a factor that shortens nothing, ValueError."""
    if not 0 < scale <= 1:
        raise ValueError(f"--scale-schedule must be above 0 and at most 1; got {scale!r}")


def scaled_options(cfg: CfgNode, scale: float) -> tuple[str, ...]:
    """``(KEY, VALUE, ...)`` that make the schedule of a config ``scale`` times as long.

    Iterations, steps of the learning rate, warm-ups and the periods of checkpoints, evaluations
    and corrections are multiplied and rounded; the learning rate itself stays. They are options of
    the run as any other, so that a run with another scale is another run.

    Raises:
        ValueError: a length that is not 0 becomes 0, or a step meets another one, the end of the
            warm-up or the end, which it did not before
    """
    if scale == 1:
        return ()
    lengths = {key: _get(cfg, key) for key in LENGTHS}
    scaled = {key: round(value * scale) for key, value in lengths.items()}
    for key, value in lengths.items():
        if value > 0 and scaled[key] < 1:
            raise ValueError(f"--scale-schedule {scale}: {key} {value} would be 0")
    given, end = _get(cfg, STEPS), "SOLVER.MAX_ITER"
    steps = tuple(round(step * scale) for step in given)
    before = [lengths["SOLVER.WARMUP_ITERS"], *given, lengths[end]]
    after = [scaled["SOLVER.WARMUP_ITERS"], *steps, scaled[end]]
    for (first, second), (new_first, new_second) in zip(pairwise(before), pairwise(after)):
        if first < second and new_first >= new_second:
            raise ValueError(
                f"--scale-schedule {scale}: {STEPS} {given} of {lengths[end]} iterations become "
                f"{steps} of {scaled[end]}, where {first} and {second} fall together: take a "
                "larger scale"
            )
    return (*(str(part) for pair in scaled.items() for part in pair), STEPS, str(steps))


def _get(cfg: CfgNode, key: str) -> Any:
    value: Any = cfg
    for part in key.split("."):
        value = value[part]
    return value
