"""configs/Toy/faster_rcnn_superloss.yaml as a LazyConfig: every part is an object, no yacs key.

tools/train_net.py trains it; so does detectron2's own tools/lazyconfig_train_net.py after
``import sl_detectron``.
"""

import torch
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.data import (
    DatasetMapper,
    build_detection_test_loader,
    get_detection_dataset_dicts,
)
from detectron2.data import transforms as T
from detectron2.solver import WarmupParamScheduler
from detectron2.solver.build import get_default_optimizer_params
from fvcore.common.param_scheduler import MultiStepParamScheduler

from sl_detectron import SuperLossStandardROIHeads, VOCEvaluator
from sl_detectron.engine import LabelCorrection
from sl_detectron.label_noise import SymmetricNoise, build_noisy_train_loader, noisy_sets
from sl_detectron.losses import SuperLoss
from sl_detectron.modeling import SuperLossTerm

NUM_CLASSES = 10

model = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model
model.pixel_std = [57.375, 57.12, 58.395]

stages = model.backbone.bottom_up.stages
stages.depth, stages.norm = 18, "BN"
del stages["stride_in_1x1"]
model.backbone.bottom_up.stem.norm = "BN"
model.backbone.bottom_up.freeze_at = 0
model.backbone.out_channels = 64

rpn = model.proposal_generator
rpn.in_features = ["p2", "p3", "p4", "p5"]
rpn.head.in_channels, rpn.head.num_anchors = 64, 2
rpn.anchor_generator.sizes = [[16], [24], [36], [54]]
rpn.anchor_generator.aspect_ratios = [1.0, 2.0]
rpn.anchor_generator.strides = [4, 8, 16, 32]
rpn.batch_size_per_image, rpn.pre_nms_topk, rpn.post_nms_topk = 64, (300, 200), (200, 100)

heads = model.roi_heads
heads._target_ = SuperLossStandardROIHeads
# The SuperLoss in two lines; superloss_box_reg takes the same.
heads.superloss_cls = L(SuperLossTerm)(
    name="cls",
    superloss=L(SuperLoss)(tau="logC", lam=0.25, num_outcomes=NUM_CLASSES + 1),
    scope="foreground",
)
heads.num_classes, heads.batch_size_per_image = NUM_CLASSES, 64
heads.box_in_features = ["p2", "p3", "p4"]
heads.box_pooler.scales = [1 / 4, 1 / 8, 1 / 16]
heads.box_head.input_shape.channels = 64
heads.box_head.fc_dims = [256, 256]
heads.box_predictor.input_shape.channels = 256
for key in ("mask_in_features", "mask_pooler", "mask_head"):
    del heads[key]

resize = L(T.ResizeShortestEdge)(short_edge_length=128, max_size=1333)
dataloader = {
    # With ids of annotations: the run ranks them in label_audit.json. detectron2's
    # build_detection_train_loader with a NoisyLabelMapper would train on the same labels.
    "train": L(build_noisy_train_loader)(
        sets=L(noisy_sets)(names="toy_digits_train", noises=[L(SymmetricNoise)(rate=0.4, seed=0)]),
        mapper=L(DatasetMapper)(is_train=True, augmentations=[resize], image_format="BGR"),
        total_batch_size=8,
        num_workers=0,
    ),
    "test": L(build_detection_test_loader)(
        dataset=L(get_detection_dataset_dicts)(names="toy_digits_test", filter_empty=False),
        mapper=L(DatasetMapper)(is_train=False, augmentations=[resize], image_format="BGR"),
        num_workers=0,
    ),
    "evaluator": L(VOCEvaluator)(dataset_name="toy_digits_test"),
}

# Corrects nothing as it stands; label_correction.start=0.5 corrects from half of the training on.
label_correction = L(LabelCorrection)(start=1.0, period=50)

optimizer = L(torch.optim.SGD)(
    params=L(get_default_optimizer_params)(weight_decay_norm=0.0),
    lr=0.02,
    momentum=0.9,
    weight_decay=1e-4,
)
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(
        values=[1.0, 0.1, 0.01], milestones=[350, 450], num_updates=500
    ),
    warmup_length=50 / 500,
    warmup_factor=0.001,
)

train = model_zoo.get_config("common/train.py").train
train.device, train.seed = "cpu", 0
train.max_iter, train.eval_period, train.checkpointer.period = 500, 500, 250
