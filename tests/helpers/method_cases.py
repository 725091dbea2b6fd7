"""Methods of other papers: the options that switch each on, and those that make it neutral."""

import torch

from helpers.detectors import OBJECTS, build, make_batch, small_config
from sl_detectron.config import IS_SEED
from sl_detectron.modeling.matched_annotations import FIELD
from sl_detectron.rivals import build_method

NUM_ANNOTATIONS = 9
# (S, ) ids of a batch of OBJECTS.
IDS = torch.tensor([5, 0, 3, 4])
NODE = "MODEL.METHOD."
# {name: options}; START is 0 unless given.
METHODS = {
    "CoTeaching": (NODE + "NOISE_RATE", 0.4),
    "CoTeaching, one trunk": (NODE + "NOISE_RATE", 0.4, NODE + "SHARED_TRUNK", True),
    "CoTeaching, by class": (NODE + "NOISE_RATE", 0.4, NODE + "CO_TEACHING.BY_CLASS", True),
    "CABBC": (NODE + "SHARED_TRUNK", True, NODE + "CA_BBC.ALPHA", 100.0),
    "CLC": (),
    "CLC, relabelled": (NODE + "CLC.FORM", "relabel"),
    "EMATeacher": (NODE + "TEACHER.DECAY", 0.5),
    "NoteRCNN": (
        *("MODEL.ROI_HEADS.NAME", "NoteRCNNROIHeads"),
        *("DATASETS.LABEL_NOISE.CLEAN_SHARE", 0.5),
    ),
    "SDLocNet": (),
}
# With these a method's losses are the plain head's.
NEUTRAL = {
    "CoTeaching": (NODE + "NOISE_RATE", 0.0),
    "CoTeaching, one trunk": (NODE + "NOISE_RATE", 0.0),
    "CoTeaching, by class": (NODE + "NOISE_RATE", 0.0),
    # The labels outweigh what untrained heads predict.
    "CABBC": (NODE + "CA_BBC.ALPHA", 0.0, NODE + "CA_BBC.TEMPERATURE", 1e-3),
    # They have no switch but their start.
    "CLC": (NODE + "START", 0.5),
    "CLC, relabelled": (NODE + "START", 0.5),
    "EMATeacher": (NODE + "TEACHER.SHARE", 0.0),
    "NoteRCNN": (
        *(NODE + "NOTE_RCNN.BACKGROUND", 1.0, NODE + "NOTE_RCNN.BOXES", 1.0),
        *(NODE + "NOTE_RCNN.SEED_HEAD", 0.0, NODE + "NOTE_RCNN.DISTILLATION", 0.0),
    ),
    "SDLocNet": (NODE + "START", 0.5),
}
PAIRED = ("CoTeaching", "CABBC")
SHARED = ("CoTeaching, one trunk", "CABBC")
ONE_HEAD = ("CABBC", "NoteRCNN")
# The plain loss, term by term as a method's.
PLAIN = ("MODEL.SUPERLOSS.CLS.FIXED_SIGMA", 1.0)
CASES = [
    (name, detector)
    for name in METHODS
    for detector in ("standard", "cascade", "retinanet")
    if detector == "standard" or name not in ONE_HEAD
]


def options(name, detector, *opts):
    """Options of a method for a detector."""
    method = name.partition(",")[0]
    pair = "PairedRetinaNet" if detector == "retinanet" else "PairedRCNN"
    arch = ("MODEL.META_ARCHITECTURE", pair) if method in PAIRED else ()
    return [*PLAIN, NODE + "NAME", method, NODE + "START", 0.0, *METHODS[name], *arch, *opts]


def detector_with(name, detector="standard", *opts):
    """A detector and the method that it trains by."""
    cfg = small_config(detector, superloss=True)
    cfg.merge_from_list(options(name, detector, *opts))
    model = build(cfg)
    return model, build_method(cfg, model, NUM_ANNOTATIONS)


def plain_detector(detector="standard"):
    cfg = small_config(detector, superloss=True)
    cfg.merge_from_list(list(PLAIN))
    return build(cfg)


def numbered_batch(objects=OBJECTS, seed=0):
    """A batch whose annotations have ids; every second image, the first too, is a clean seed."""
    batch, start = make_batch(objects, seed), 0
    for i, image in enumerate(batch):
        image[IS_SEED] = i % 2 == 0
        num = len(image["instances"])
        image["instances"].set(FIELD, IDS[start : start + num])
        start += num
    return batch
