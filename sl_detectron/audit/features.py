"""Features of annotated objects: crops of the images through the trunk of a detector, as in R-CNN.

Shape legend: G annotations, C channels of a feature map, D features of an annotation.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.modeling.backbone import Backbone
from detectron2.utils import comm
from torch import Tensor, nn
from torchvision.ops import roi_align

from ..data.formats.annotations import Record
from .image_pass import NO_ANNOTATION, each_image
from .scorers import scorer_of

__all__ = ["AnnotationFeatures", "crop_features", "pool_features", "trunk_of"]

# Pixels a side. The larger is the size of the images that classifiers are trained on; small objects
# would be blurred at it.
CROPS = (112, 224)
# Width and height of a crop, of those of its box; the middle third is half of the box then.
CONTEXT = 1.5
# More features are projected onto that many directions, which keeps their inner products.
MAX_FEATURES = 2048
# Crops of one pass through the trunk.
_BATCH = 32


class AnnotationFeatures(NamedTuple):
    """
    Args:
        values: (G, D) float32, D at most 2048
        ids: (G,) int64 annotation ids
        images: (G,) int64 position of their record
    """

    values: Tensor
    ids: Tensor
    images: Tensor


def trunk_of(backbone: nn.Module) -> Any:
    """What makes the features under an FPN, or the backbone itself.

    The FPN has seen the labels more closely: with its features wrong ones look more right.
    """
    trunk = getattr(backbone, "bottom_up", None)
    return trunk if isinstance(trunk, Backbone) else backbone


@torch.no_grad()
def pool_features(
    model: nn.Module, records: Sequence[Record], cfg: CfgNode
) -> AnnotationFeatures | None:
    """The :func:`crop_features` of every annotation that is no crowd.

    Where detectron2's ``launch`` started several processes, all of them call this, and each takes a
    share of the images. Images are cropped at their size on disk.

    Args:
        model: a :class:`GeneralizedRCNN` or a :class:`RetinaNet`, or derived from one
        records: from :meth:`~sl_detectron.data.annotation_ids.AnnotationTable.records`, the same
            in all processes
        cfg: of the model; ``INPUT.FORMAT`` and ``DATALOADER`` count

    Returns:
        on the CPU, of all images; None in other processes than the main one

    Raises:
        ValueError: the detector is of another kind, or there is no annotation
        BrokenImage: an image that ``BROKEN_IMAGES`` does not let be skipped
    """
    scorer_of(model)  # its check of the kind
    model.eval()
    # mypy: an attribute of a Module is a Tensor or a Module.
    detector: Any = model
    trunk = trunk_of(detector.backbone)
    parts: list[AnnotationFeatures] = []
    for position, image in each_image(records, cfg, progress=True, resize=False):
        if image is None or not len(image[1]):
            continue
        inputs, targets = image
        # Not preprocess_image: it pads, to a square for some backbones, which cuts large images.
        pixels = inputs["image"].to(detector.device, torch.float32)[None]
        pixels = (pixels - detector.pixel_mean) / detector.pixel_std
        boxes, ids = targets.gt_boxes.tensor.to(pixels), targets.gt_annotation_ids
        values = _projected(crop_features(trunk, pixels, boxes).cpu())
        parts.append(AnnotationFeatures(values, ids, torch.full_like(ids, position)))
    _projection.cache_clear()  # 126 MB for the trunk of a ResNet-50
    shares = comm.gather([*map(torch.cat, zip(*parts))])
    if not comm.is_main_process():
        return None
    shares = [share for share in shares if share]
    if not shares:
        raise ValueError(NO_ANNOTATION)
    return AnnotationFeatures(*map(torch.cat, zip(*shares)))


def crop_features(trunk: Backbone, pixels: Tensor, boxes: Tensor) -> Tensor:
    """Mean features of objects and of their middles, which small objects in loose boxes fill.

    Crops are warped to fixed sizes (Girshick et al. 2014), near to what the trunk was pretrained
    on: a detector's input shows most objects much smaller.

    Args:
        trunk: in evaluation mode; the strides of its features are smaller than a crop
        pixels: (1, 3, H, W) normalised image
        boxes: (G, 4) XYXY in pixels

    Returns:
        (G, D), for each size of a crop the mean over the object and over its middle, in whole
        cells, of each map that the trunk declares
    """
    centers, sizes = (boxes[:, :2] + boxes[:, 2:]) / 2, CONTEXT * (boxes[:, 2:] - boxes[:, :2])
    rois = torch.cat([centers - sizes / 2, centers + sizes / 2], dim=1)
    # Some trunks add maps of several strides, which must fit.
    unit = max(trunk.size_divisibility, 1)
    crop_sizes = [-(-size // unit) * unit for size in CROPS]
    values = []
    for part in rois.split(_BATCH):
        crops = (roi_align(pixels, [part], size, aligned=True) for size in crop_sizes)
        values.append(torch.cat([_means(trunk, x) for x in crops], dim=1))
    return torch.cat(values)


def _means(trunk: Any, crops: Tensor) -> Tensor:
    maps, parts = trunk(crops), []
    # Those that it declares: it may make other maps too.
    for name in trunk.output_shape():
        for share in (1 / CONTEXT, 1 / 3):
            size = maps[name].shape[-1]
            border = int(size * (1 - share) / 2)
            inner = slice(border, size - border)
            parts.append(maps[name][..., inner, inner].float().mean(dim=(2, 3)))
    return torch.cat(parts, dim=1)


def _projected(features: Tensor) -> Tensor:
    if features.shape[1] <= MAX_FEATURES:
        return features
    return features @ _projection(features.shape[1], MAX_FEATURES)


@cache
def _projection(rows: int, columns: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(rows, columns, generator=generator) / columns**0.5
