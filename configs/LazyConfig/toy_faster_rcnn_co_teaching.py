"""The toy Faster R-CNN of toy_faster_rcnn_superloss.py twice, trained by Co-teaching."""

from copy import deepcopy

from detectron2.config import LazyCall as L

from sl_detectron.losses import FixedConfidence
from sl_detectron.rivals import CoTeaching, PairedRCNN

from .toy_faster_rcnn_superloss import dataloader, lr_multiplier, model, optimizer, train

# The plain loss, by which the methods of other papers stand; the audit works for it too.
model.roi_heads.superloss_cls.superloss = L(FixedConfidence)(sigma=1.0)
second = deepcopy(model)
model._target_ = PairedRCNN
model.second = second

# MODEL.METHOD in small letters; start, here the ramp, is in iterations. A method that learns for
# every annotation has num_annotations=None, which takes their number from the loader.
method = L(CoTeaching)(rate=0.4, ramp=50)

__all__ = ["dataloader", "lr_multiplier", "method", "model", "optimizer", "train"]
