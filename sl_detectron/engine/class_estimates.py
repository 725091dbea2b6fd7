"""The estimates of true classes between the rounds of a training, as files, and its configs.

docs/label_correction.md explains the rounds.
"""

import logging
import os
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils import comm
from torch import nn

from ..audit.few_classes import FewClasses
from ..audit.run import estimate_from_features, estimate_run
from ..audit.true_classes import TrueClasses
from ..checkpoint import read_checkpoint
from ..config import without_federated_loss
from ..data.annotation_ids import AnnotationTable
from ..files import replacing
from ..label_noise import noisy_dataset_dicts
from ..modeling.class_targets import ClassTargets, Distributions, attach_class_targets

__all__ = [
    "NODE",
    "TARGETS",
    "attach_targets",
    "forget_estimates",
    "is_estimated",
    "read_class_targets",
    "round_config",
    "write_class_targets",
    "write_first_targets",
]

logger = logging.getLogger(__name__)

NODE = "MODEL.SUPERLOSS.CORRECTION"
TARGETS = "class_targets.pth"


def attach_targets(model: nn.Module, targets: ClassTargets | None) -> None:
    """Let a model train on class targets, or on its labels again where they are None.

    Raises:
        ValueError: its heads take none
    """
    if not attach_class_targets(model, targets):
        raise ValueError(
            f"{NODE} needs SuperLoss heads or SuperLossRetinaNet; set MODEL.ROI_HEADS.NAME or "
            "MODEL.META_ARCHITECTURE to a SuperLoss one"
        )


def read_class_targets(path: str | os.PathLike, annotations: AnnotationTable) -> Distributions:
    """What :func:`write_class_targets` wrote: the class distributions of annotations by their ids.

    Raises:
        FileNotFoundError: there is no such file
        ValueError: they are of other annotations
    """
    state = read_checkpoint(path)
    if state.get("fingerprint") != annotations.fingerprint:
        raise ValueError(
            f"{path} does not match the annotations of the training sets with their label noise"
        )
    probabilities: Distributions | dict[str, Any] = state["probabilities"]
    return FewClasses(**probabilities) if isinstance(probabilities, dict) else probabilities


def forget_estimates(cfg: CfgNode) -> None:
    """Remove the estimates that an earlier run with this ``OUTPUT_DIR`` left.

    If a new run is killed and then resumed, it would take them for those of its rounds.
    """
    node = cfg.MODEL.SUPERLOSS.CORRECTION
    for number in range(0 if node.FROM_FEATURES else 1, node.ROUNDS):
        path = Path(round_config(cfg, number).OUTPUT_DIR, TARGETS)
        if not (node.TARGETS and path.resolve() == Path(node.TARGETS).resolve()):
            path.unlink(missing_ok=True)


def round_config(cfg: CfgNode, number: int) -> CfgNode:
    """The config of a training round from 1 to ``CORRECTION.ROUNDS``.

    The last one writes to ``OUTPUT_DIR``, those before it to a folder in it. Round 0 is the
    estimate of ``CORRECTION.FROM_FEATURES``, without training.
    """
    node = cfg.MODEL.SUPERLOSS.CORRECTION
    if node.ROUNDS == 1 and not node.FROM_FEATURES:
        return cfg
    first, output = 0 if node.FROM_FEATURES else 1, Path(cfg.OUTPUT_DIR)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.SUPERLOSS.CORRECTION.ROUNDS = 1
    cfg.MODEL.SUPERLOSS.CORRECTION.FROM_FEATURES = False
    if number < node.ROUNDS:
        cfg.OUTPUT_DIR = str(output / f"round_{number}")
    if number > first:
        cfg.MODEL.SUPERLOSS.CORRECTION.TARGETS = str(output / f"round_{number - 1}" / TARGETS)
        if node.LATER_LOSS == "plain":
            # Not ENABLED False: the term also feeds the tracker.
            cfg.MODEL.SUPERLOSS.CLS.FIXED_SIGMA = 1.0
            cfg.MODEL.SUPERLOSS.BOX_REG.ENABLED = False
    cfg.freeze()
    return cfg


def is_estimated(cfg: CfgNode) -> bool:
    """Whether the round of this config is done, with its :func:`write_class_targets`."""
    return Path(cfg.OUTPUT_DIR, TARGETS).is_file()


def write_first_targets(cfg: CfgNode) -> None:
    """Before the first round: estimate the true classes from pretrained features.

    All processes share the images of the pass; the main one writes, as after a round.

    Raises:
        ValueError: the model takes no targets; as :func:`estimate_from_features`
    """
    # Fails before the pass, not after it.
    attach_targets(build_model(without_federated_loss(cfg)), None)
    table = AnnotationTable.of(noisy_dataset_dicts(cfg))
    if comm.is_main_process():
        table.write(cfg.OUTPUT_DIR)
    _write(cfg, table, estimate_from_features(cfg, table))


def write_class_targets(cfg: CfgNode) -> None:
    """After a round: estimate the true classes of its annotations, for the next one.

    All processes share the images of the pass; the main one writes.
    """
    comm.synchronize()  # the main process has written what the others read now
    table = AnnotationTable.read(cfg.OUTPUT_DIR)
    _write(cfg, table, estimate_run(cfg, cfg.OUTPUT_DIR, table))


def _write(cfg: CfgNode, table: AnnotationTable, estimate: TrueClasses | None) -> None:
    path = Path(cfg.OUTPUT_DIR, TARGETS)
    if estimate is not None:
        probabilities = estimate.probabilities
        # Few classes as plain tensors, which can be read without running code.
        plain = vars(probabilities) if isinstance(probabilities, FewClasses) else probabilities
        state: dict[str, Any] = {"probabilities": plain, "fingerprint": table.fingerprint}
        state["noise_rate"] = estimate.noise_rate
        with replacing(path) as partial:
            torch.save(state, partial)
        labels = torch.tensor(table.labels())
        best, classes = probabilities.topk(1, dim=1)
        changed = classes[:, 0] != labels
        logger.info(
            "About %.0f %% of the labels are wrong; %d of %d annotations get another class, "
            "about %d of these correctly: %s",
            100 * estimate.noise_rate,
            int(changed.sum()),
            len(labels),
            int(best[changed].sum()),
            path,
        )
    comm.synchronize()
