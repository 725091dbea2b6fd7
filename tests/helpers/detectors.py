"""Small detectors and batches, and jobs on several ranks."""

from argparse import Namespace

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances, Keypoints, PolygonMasks
from detectron2.utils.events import EventStorage

from helpers.forked import forked_ranks
from sl_detectron.engine.launch import launch_job
from sl_detectron.model_zoo import get_config

IMAGE_SIZE = (96, 128)
NUM_CLASSES = 5
NUM_KEYPOINTS = 3
# Annotations of the images of a batch.
OBJECTS = (3, 1)

# Detectors by name: the stock one of detectron2 and what makes it a SuperLoss detector.
DETECTORS = {
    "standard": "SuperLossStandardROIHeads",
    "standard_masks": "SuperLossStandardROIHeads",
    "standard_keypoints": "SuperLossStandardROIHeads",
    "standard_sigmoid": "SuperLossStandardROIHeads",
    "c4": "SuperLossRes5ROIHeads",
    "c4_masks": "SuperLossRes5ROIHeads",
    "cascade": "SuperLossCascadeROIHeads",
    "retinanet": "SuperLossRetinaNet",
}


def small_config(detector: str, superloss: bool) -> CfgNode:
    """A detector over ``NUM_CLASSES`` classes on a ResNet-50 of a quarter of its width.

    A step takes half of the time of one of the toy configs' ResNet-18.
    """
    cfg = get_config("Toy/retinanet.yaml" if detector == "retinanet" else "Toy/faster_rcnn.yaml")
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 50, 16
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 16
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.RETINANET.NUM_CLASSES = NUM_CLASSES
    cfg.MODEL.MASK_ON = detector.endswith("masks")
    if detector.endswith("keypoints"):
        cfg.MODEL.KEYPOINT_ON = True
        cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = NUM_KEYPOINTS
        cfg.MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS = (16,)
    elif detector.endswith("sigmoid"):
        require_sigmoid_classification(cfg)
        cfg.MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE = True
    if detector.startswith("c4"):
        cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
        cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.ROI_HEADS.IN_FEATURES = ["res4"]
        cfg.MODEL.RPN.IN_FEATURES = ["res4"]
        cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16, 32]]
        cfg.MODEL.ROI_HEADS.NAME = "Res5ROIHeads"
    elif detector == "cascade":
        cfg.MODEL.ROI_HEADS.NAME = "CascadeROIHeads"
        cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = True
    if superloss and detector == "retinanet":
        cfg.MODEL.META_ARCHITECTURE = DETECTORS[detector]
    elif superloss:
        cfg.MODEL.ROI_HEADS.NAME = DETECTORS[detector]
    return cfg


def on_resnet_18(cfg: CfgNode) -> CfgNode:
    """The config on the ResNet-18 of the toy configs; not for the C4 detectors.

    It is wide enough for group norm. Untrained, its scores and deltas are near 0, so that some
    proposals are foreground beside the objects themselves.
    """
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 64
    return cfg


def run_ranks(
    job, num: int, *args, timeout: float = 120, debug: bool = True, torn_down: bool = False
) -> None:
    """Call ``job(*args)`` in as many processes, as the trainings are started.

    Args:
        job, num, args: what to call, by how many ranks, and its arguments
        timeout: in seconds, of a rank that waits for another
        debug: as the tools' ``--debug``
        torn_down: for :func:`helpers.forked.forked_ranks`
    """
    how = {"num_gpus": num, "dist_timeout": timeout, "debug": debug}
    where = {"num_machines": 1, "machine_rank": 0, "dist_url": "auto"}
    with forked_ranks(torn_down):
        launch_job(_call, (job, args), Namespace(**how, **where))


def _call(job_and_args, _):
    job, args = job_and_args
    job(*args)


def require_sigmoid_classification(cfg: CfgNode) -> None:
    """Skip a test where detectron2 is older than its sigmoid and federated losses."""
    if "USE_SIGMOID_CE" not in cfg.MODEL.ROI_BOX_HEAD:
        pytest.skip("this detectron2 has no USE_SIGMOID_CE")


def build(cfg: CfgNode, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return build_model(cfg).train()


def make_batch(num_objects: tuple[int, ...] = OBJECTS, seed: int = 0) -> list[dict]:
    """One image for each entry of ``num_objects``: that many boxes with class, mask, keypoints."""
    generator = torch.Generator().manual_seed(seed)
    height, width = IMAGE_SIZE
    batch = []
    for count in num_objects:
        corner = torch.rand(count, 2, generator=generator) * torch.tensor([width / 2, height / 2])
        size = 16 + torch.rand(count, 2, generator=generator) * 30
        boxes = torch.cat([corner, corner + size], dim=1)
        instances = Instances(IMAGE_SIZE, gt_boxes=Boxes(boxes))
        instances.gt_classes = torch.randint(NUM_CLASSES, (count,), generator=generator)
        instances.gt_masks = PolygonMasks(
            [[torch.stack([b[[0, 2, 2, 0]], b[[1, 1, 3, 3]]], 1).flatten().numpy()] for b in boxes]
        )
        points = (boxes[:, None, :2] + boxes[:, None, 2:]) / 2
        visible = torch.full((count, 1, 1), 2.0)
        keypoints = torch.cat([points, visible], dim=2).repeat(1, NUM_KEYPOINTS, 1)
        instances.gt_keypoints = Keypoints(keypoints)
        image = torch.randint(0, 256, (3, *IMAGE_SIZE), generator=generator).float()
        batch.append({"image": image, "instances": instances, "height": height, "width": width})
    return batch


def run_losses(
    model: torch.nn.Module, batch: list[dict], seed: int = 1, start_iter: int = 0
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], EventStorage]:
    """One forward and backward: (losses, gradients by parameter name, what was logged)."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(seed)
    with EventStorage(start_iter) as storage:
        losses = model(batch)
        sum(losses.values()).backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {k: v.detach() for k, v in losses.items()}, gradients, storage


def random_boxes(count, generator):
    corner = torch.rand(count, 2, generator=generator) * 50
    return torch.cat([corner, corner + 5 + torch.rand(count, 2, generator=generator) * 40], 1)


def roi_batch(num_rois=12, num_foreground=5):
    """Predictions and proposals of one image; the first RoIs are foreground."""
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(num_rois, NUM_CLASSES + 1, generator=generator, requires_grad=True)
    deltas = torch.randn(num_rois, NUM_CLASSES * 4, generator=generator, requires_grad=True)
    proposals = Instances((100, 100))
    proposals.proposal_boxes = Boxes(random_boxes(num_rois, generator))
    proposals.gt_boxes = Boxes(random_boxes(num_rois, generator))
    proposals.gt_classes = torch.randint(NUM_CLASSES, (num_rois,), generator=generator)
    proposals.gt_classes[num_foreground:] = NUM_CLASSES
    return (scores, deltas), [proposals]
