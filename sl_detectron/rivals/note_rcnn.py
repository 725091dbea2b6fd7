"""NOTE-RCNN: an ensemble of class heads of which one sees clean seed images only.

Shape legend: R RoIs of a batch, K classes (class K is background), F features of a RoI.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.structures import Instances
from torch import Tensor, nn

from ..config import IS_SEED
from ..losses.ranks import num_processes, sum_over_ranks
from ..modeling import SuperLossStandardROIHeads, to_superloss_output_layers
from ..modeling.class_targets import LossOf
from ..modeling.fast_rcnn import SuperLossFastRCNNOutputLayers
from ..modeling.matched_annotations import UNMATCHED
from .method import METHOD_REGISTRY, Method, check_key, start_of

__all__ = ["NoteRCNN", "NoteRCNNOutputLayers", "NoteRCNNROIHeads"]

HEADS = "NoteRCNNROIHeads"


class NoteRCNNOutputLayers(SuperLossFastRCNNOutputLayers):
    """Box predictor with a second class head for seeds and a third that is distilled from it.

    In evaluation the scores are the logarithm of the mean probabilities of the first two heads.
    """

    class_targets: "NoteRCNN | None"
    seed_score: nn.Linear | None
    distilled_score: nn.Linear | None
    # (R, K+1) scores of the other heads for the RoIs of the running forward.
    _others: "list[Tensor]"

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """As the base class."""
        scores, deltas = super().forward(x)
        if self.seed_score is None:
            return scores, deltas
        x = x.flatten(1)
        if self.training:
            heads = [self.seed_score, self.distilled_score]
            self._others = [head(x) for head in heads if head is not None]
            return scores, deltas
        both = torch.stack([s.float().log_softmax(dim=1) for s in (scores, self.seed_score(x))])
        return both.logsumexp(dim=0) - math.log(2), deltas

    def losses(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances], *args: Any
    ) -> dict[str, Tensor]:
        """As the base class, by the weights of the method, with the losses of the other heads.

        Raises:
            ValueError: no method is attached
        """
        if self.class_targets is None:
            raise ValueError(f"{HEADS} are trained by MODEL.METHOD.NAME 'NoteRCNN'")
        self.class_targets.see(proposals)
        losses = super().losses(predictions, proposals, *args)
        others, self._others = self._others, []
        labels = torch.cat([p.gt_classes for p in proposals])
        return {**losses, **self.class_targets.losses_of_others(others, labels)}

    def box_reg_loss(self, boxes: Tensor, gt_boxes: Tensor, deltas: Tensor, labels: Tensor) -> Any:
        """The stock loss with the RoIs of other images than seeds weighted."""
        weight, from_seed = self.class_targets.box_weight(), self.class_targets.from_seed  # type: ignore[union-attr]
        loss = super().box_reg_loss
        if weight == 1:
            return loss(boxes, gt_boxes, deltas, labels)
        # Those left out as background: the divisor stays.
        of_seeds = torch.where(from_seed, labels, self.num_classes)
        seeds = loss(boxes, gt_boxes, deltas, of_seeds)
        if weight == 0:
            return seeds
        return weight * loss(boxes, gt_boxes, deltas, labels) + (1 - weight) * seeds


@ROI_HEADS_REGISTRY.register()
class NoteRCNNROIHeads(SuperLossStandardROIHeads):
    """:class:`SuperLossStandardROIHeads` with the class heads of NOTE-RCNN.

    Built by arguments it takes ``seed_head`` and ``distillation_head``, whether it has them.
    """

    def __init__(
        self,
        *args: Any,
        seed_head: bool = True,
        distillation_head: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        cfg = kwargs.get("cfg", args[0] if args else None)
        if isinstance(cfg, CfgNode):
            node = cfg.MODEL.METHOD.NOTE_RCNN
            seed_head, distillation_head = node.SEED_HEAD > 0, node.DISTILLATION > 0
        predictor: Any = self.box_predictor
        if not isinstance(predictor, SuperLossFastRCNNOutputLayers):
            to_superloss_output_layers(predictor, None, None)
        is_own = type(predictor) is not SuperLossFastRCNNOutputLayers
        if is_own or getattr(predictor, "use_sigmoid_ce", False):
            raise ValueError(
                f"{HEADS} need detectron2's softmax box predictor; got {type(predictor).__name__}"
                f"{'' if is_own else ' with USE_SIGMOID_CE'}"
            )
        # In place, as to_superloss_output_layers(): the first head starts as it does alone.
        predictor.__class__ = NoteRCNNOutputLayers
        predictor._others = []
        with torch.random.fork_rng(devices=[]):
            for name, is_there in (
                ("seed_score", seed_head),
                ("distilled_score", seed_head and distillation_head),
            ):
                setattr(predictor, name, _like(predictor.cls_score) if is_there else None)


def _like(layer: nn.Linear) -> nn.Linear:
    """A class head, initialised as detectron2's."""
    new = nn.Linear(layer.in_features, layer.out_features)
    nn.init.normal_(new.weight, std=0.01)
    nn.init.zeros_(new.bias)
    return new


@METHOD_REGISTRY.register()
class NoteRCNN(Method):
    """NOTE-RCNN (Gao, Wang, Dai, Li and Nevatia, ICCV 2019, arXiv 1812.00124, section 3).

    **It has information that the other methods do not have**: the images that
    ``DATASETS.LABEL_NOISE.CLEAN_SHARE`` keeps clean, and which they are. Compare it with methods
    that were trained with the same share of clean images, and say so.

    Its three parts, with "mined" for the images that are no seeds:

    1. An ensemble of class heads on one box head: the first is trained on all images, the second
       on seeds alone, and a distillation head on soft targets of a teacher that saw seeds alone.
    2. The class loss of background RoIs is masked in mined images, whose objects may be missing.
    3. Boxes are regressed on seeds only.

    The paper mines boxes for images with labels of the image, over several rounds; here mined
    images have boxes with noisy labels, in one training run, as in CA-BBC's comparison. Ours is
    also: the teacher of the distillation head is the seed head of the same step, without gradient
    (the paper's is a detector trained on the seeds first); the predictions are the mean
    probabilities of the first two heads; the loss of the seed head is the mean over the RoIs of
    seeds in the batch of all processes, 0 without any; the distillation loss is the mean over all
    RoIs of the cross-entropy with soft targets; all weights are 1; first head and boxes keep
    detectron2's divisor R; RPN, masks and keypoints learn from all images; before ``START`` only
    the seed head differs from plain training. Which images are seeds comes with the images, in the
    key ``is_clean_seed`` that the training loader gives them.

    Args:
        background: weight of background RoIs in mined images
        boxes: weight of the box loss in mined images
        seed_head: weight of the loss of the second head
        distillation: weight of the loss of the third
        start: iterations before anything is masked or distilled
    """

    def __init__(
        self,
        background: float = 0.0,
        boxes: float = 0.0,
        seed_head: float = 1.0,
        distillation: float = 1.0,
        start: int = 0,
    ) -> None:
        super().__init__(start)
        for key, value in (("BACKGROUND", background), ("BOXES", boxes)):
            check_key(0 <= value <= 1, f"NOTE_RCNN.{key}", value, "in [0, 1]")
        for key, value in (("SEED_HEAD", seed_head), ("DISTILLATION", distillation)):
            check_key(value >= 0, f"NOTE_RCNN.{key}", value, "0.0 or above")
        fits = seed_head > 0 or distillation == 0
        check_key(fits, "NOTE_RCNN.DISTILLATION", distillation, "0.0 without a SEED_HEAD")
        self.background = background
        self.boxes = boxes
        self.weights = {"cls": seed_head, "distillation": distillation}
        self._is_seed: list[bool] = []
        # (R,) bool of the batch.
        self.from_seed = torch.zeros(0, dtype=torch.bool)

    @classmethod
    def from_config(cls, cfg: CfgNode, num_annotations: int) -> "NoteRCNN":
        node = cfg.MODEL.METHOD.NOTE_RCNN
        weights = node.BACKGROUND, node.BOXES, node.SEED_HEAD, node.DISTILLATION
        return cls(*weights, start_of(cfg))

    @classmethod
    def check(cls, cfg: CfgNode) -> None:
        cls.from_config(cfg, 0)
        if not cfg.DATASETS.LABEL_NOISE.CLEAN_SHARE > 0:
            raise ValueError(
                "MODEL.METHOD.NAME 'NoteRCNN' needs clean seeds: set "
                "DATASETS.LABEL_NOISE.CLEAN_SHARE to the share of images that are clean, as 0.1"
            )
        _check_box_loss(cfg.MODEL.SUPERLOSS.BOX_REG.ENABLED)
        if cfg.MODEL.ROI_HEADS.NAME != HEADS:
            name = cfg.MODEL.ROI_HEADS.NAME
            raise ValueError(
                f"MODEL.METHOD.NAME 'NoteRCNN' needs MODEL.ROI_HEADS.NAME {HEADS!r}; got {name!r}"
            )

    def attach(self, model: nn.Module) -> None:
        """To a detector of :class:`NoteRCNNROIHeads`."""
        heads = getattr(model, "roi_heads", None)
        if not isinstance(heads, NoteRCNNROIHeads):
            raise ValueError(f"NoteRCNN needs {HEADS}; got {type(heads or model).__name__}")
        predictor: Any = heads.box_predictor
        _check_box_loss(predictor.superloss_box_reg is not None)
        super().attach(model)
        model.register_forward_pre_hook(self._look)

    def _look(self, model: nn.Module, args: tuple[Any, ...]) -> None:
        """Before a forward: which of its images are seeds."""
        if not model.training:
            return
        missing = [item.get("image_id") for item in args[0] if IS_SEED not in item]
        if missing:
            raise ValueError(
                f"image {missing[0]!r} comes without {IS_SEED!r}, the key that marks clean "
                "seeds: use a training loader of build_noisy_train_loader with CLEAN_SHARE, and a "
                "mapper that passes the keys of a record on"
            )
        self._is_seed = [bool(item[IS_SEED]) for item in args[0]]

    def see(self, proposals: list[Instances]) -> None:
        """Note which RoIs are of a seed."""
        self.from_seed = torch.cat(
            [
                torch.full_like(p.gt_classes, is_seed, dtype=torch.bool)
                for p, is_seed in zip(proposals, self._is_seed, strict=True)
            ]
        )

    def box_weight(self) -> float:
        """Of the box losses in mined images, in this step."""
        return self.boxes if self.is_active else 1.0

    def expected_losses(
        self, loss_of: LossOf, ids: Tensor, labels: Tensor, probabilities: Any = None
    ) -> tuple[Tensor, Tensor]:
        """The plain losses, with the weight of background in mined images."""
        losses = loss_of(labels)
        is_masked = (ids == UNMATCHED) & ~self.from_seed & self.is_active
        return losses, torch.where(is_masked, self.background, 1.0).to(losses.dtype)

    def losses_of_others(self, scores: list[Tensor], labels: Tensor) -> dict[str, Tensor]:
        """Losses of the seed head and of the distillation head.

        Args:
            scores: (R, K+1) of each head that there is
            labels: (R,) in [0, K]

        Returns:
            {"second_loss_cls": of the seed head, "second_loss_distillation"}, as far as they are
            there
        """
        if not scores:
            return {}
        seeds = scores[0].float()
        counts = self.from_seed.to(seeds)
        plain = F.cross_entropy(seeds, labels, reduction="none")
        total, processes = counts.sum(), 1
        if torch.is_grad_enabled():  # else it may be a forward of one process
            # Gradients are averaged over the processes, some of which may be without a seed.
            total, processes = sum_over_ranks(total), num_processes()
        mean = processes * (plain * counts).sum() / total.clamp_min(1)
        losses = {"second_loss_cls": self.weights["cls"] * mean}
        if len(scores) > 1:
            target = seeds.detach().softmax(dim=1)
            soft = -(target * scores[1].float().log_softmax(dim=1)).sum(dim=1)
            weight = self.weights["distillation"] if self.is_active else 0.0
            losses["second_loss_distillation"] = weight * soft.sum() / max(len(soft), 1)
        return losses


def _check_box_loss(is_superloss: bool) -> None:
    if is_superloss:
        raise ValueError(
            "MODEL.METHOD.NAME 'NoteRCNN' weighs detectron2's box loss: set "
            "MODEL.SUPERLOSS.BOX_REG.ENABLED False, or leave superloss_box_reg out of a LazyConfig"
        )
