"""Config keys of the SuperLoss, of label noise and of evaluation, beside those of detectron2."""

from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode as CN
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch.dense_detector import DenseDetector

__all__ = [
    "add_superloss_config",
    "check_has_keys",
    "config_keys",
    "has_pretrained_trunk",
    "is_dense_detector",
    "needs_masks",
    "num_classes_key",
    "num_classes_of",
    "train_sets",
    "without_federated_loss",
]

# Of a record and of what its mapper makes: whether DATASETS.LABEL_NOISE.CLEAN_SHARE keeps it clean.
IS_SEED = "is_clean_seed"
_RENAMED = 'MODEL.BACKBONE.NAME is "build_frozen_trunk_fpn_backbone".'


def add_superloss_config(cfg: CN) -> None:
    """Add every key of sl_detectron with its default to a detectron2 config, in place.

    The keys change nothing by themselves: ``MODEL.SUPERLOSS`` is read by the SuperLoss heads and
    meta-architectures only, ``DATASETS`` and ``TEST.EVALUATOR`` by
    :class:`~sl_detectron.SuperLossTrainer`. Values are checked when they are built.

    Example:
        >>> from detectron2.config import get_cfg
        >>> cfg = get_cfg()
        >>> add_superloss_config(cfg)
        >>> cfg.MODEL.SUPERLOSS.CLS.TAU
        'ExpAvg'
    """
    cfg.MODEL.SUPERLOSS = CN()
    # TAU "ExpAvg": share of the old tau that each forward keeps. A trainer that accumulates the
    # gradients of N forwards per step needs 0.9 ** (1 / N) for 0.9 per step.
    cfg.MODEL.SUPERLOSS.MOMENTUM = 0.9
    # Warm-up: train on the plain loss for this many iterations while tau is estimated.
    cfg.MODEL.SUPERLOSS.WARMUP_ITERS = 0

    # Collect statistics of every annotation during training, and write label_audit.json at the end.
    # A step takes under 0.5 % longer. Memory and checkpoints grow by at most 128 bytes per
    # annotation: 4 * (K + 10) bytes up to 22 classes, which keeps all of them, and 126 bytes for
    # more classes, which keeps the most probable ones. Skipped if that exceeds 4 GiB.
    cfg.MODEL.SUPERLOSS.TRACK_ANNOTATIONS = True

    # The classification loss: one value per RoI (softmax or summed sigmoid cross-entropy) or per
    # anchor (focal loss summed over classes).
    cfg.MODEL.SUPERLOSS.CLS = CN()
    # False: the head trains on LOSS itself, without a confidence.
    cfg.MODEL.SUPERLOSS.CLS.ENABLED = True
    # Loss per RoI of softmax heads: "cross_entropy", "generalized_cross_entropy",
    # "symmetric_cross_entropy", "hard_bootstrapping", "soft_bootstrapping", "focal_loss", "lncis",
    # "truncated_generalized_cross_entropy", "self_paced", "forward_correction", "curriculum_loss"
    # or "data_params", a learned temperature per annotation. The SuperLoss is computed from it;
    # with ENABLED False it is the training loss.
    cfg.MODEL.SUPERLOSS.CLS.LOSS = "cross_entropy"
    # Fraction of the iterations trained on the cross-entropy before LOSS takes its place. A loss
    # that drops suspect samples needs a detector that already predicts objects.
    cfg.MODEL.SUPERLOSS.CLS.LOSS_START = 0.0
    # Fraction of wrong labels assumed by "forward_correction" and "curriculum_loss"; below 0.0: the
    # first estimates the confusion matrix, the second prunes nothing.
    cfg.MODEL.SUPERLOSS.CLS.NOISE_RATE = -1.0
    # "logC": log of the number of softmax outcomes; "Avg": mean of all losses so far; "ExpAvg":
    # exponential running average of the losses; or a quoted number in nats, such as "1.5".
    cfg.MODEL.SUPERLOSS.CLS.TAU = "ExpAvg"
    # Regularisation lambda > 0, in units of the loss: only (loss - tau) / lambda matters. The paper
    # uses 1.0 on clean and 0.25 on noisy labels; for focal losses 0.02 was better in our trials.
    cfg.MODEL.SUPERLOSS.CLS.LAMBDA = 0.25
    # Samples that the SuperLoss weighs and tau averages: "foreground" or "all". With "all" the easy
    # background pulls an averaged tau below the loss of correct but hard foreground.
    cfg.MODEL.SUPERLOSS.CLS.SCOPE = "foreground"
    # C of "logC": "K+1" counts background as an outcome, "K" does not.
    cfg.MODEL.SUPERLOSS.CLS.NUM_OUTCOMES = "K+1"
    # Unit that gets one confidence: "sample", a RoI or an anchor; "instance", all RoIs or anchors
    # matched to one annotation, by their mean loss; "class", one (anchor, class) entry of a
    # RetinaNet's focal loss.
    cfg.MODEL.SUPERLOSS.CLS.GRANULARITY = "sample"
    # Above 0.0: every sample in SCOPE gets this confidence, without the SuperLoss. This control
    # separates the effect of a larger loss from that of weighing samples differently.
    cfg.MODEL.SUPERLOSS.CLS.FIXED_SIGMA = 0.0
    # Divide by the running mean of sigma over SCOPE. The classification loss then keeps its weight
    # relative to the box losses.
    cfg.MODEL.SUPERLOSS.CLS.NORMALIZE = False

    # Temperatures of the loss "data_params", one per training annotation.
    cfg.MODEL.SUPERLOSS.DATA_PARAMS = CN()
    # Learning rate of the temperatures; SGD without momentum.
    cfg.MODEL.SUPERLOSS.DATA_PARAMS.LR = 1.0
    # Regularisation: LAMBDA * log(temperature)^2 is added to the loss; 0.0 for none.
    cfg.MODEL.SUPERLOSS.DATA_PARAMS.LAMBDA = 0.0
    # Number of training annotations. SuperLossTrainer counts them; 0 is enough for evaluation.
    cfg.MODEL.SUPERLOSS.DATA_PARAMS.NUM_ANNOTATIONS = 0

    # Label correction: estimate the true class of each annotation, and train on the estimates.
    cfg.MODEL.SUPERLOSS.CORRECTION = CN()
    # Number of training rounds; 1 means no correction. Every round but the last trains in
    # OUTPUT_DIR/round_N and ends with an estimate of the true classes; the next round trains on it
    # from scratch.
    cfg.MODEL.SUPERLOSS.CORRECTION.ROUNDS = 1
    # Estimate the true classes before the first round too, from features of the pretrained weights
    # in MODEL.WEIGHTS or of a frozen trunk. It takes one pass over the images, and no round more.
    cfg.MODEL.SUPERLOSS.CORRECTION.FROM_FEATURES = False
    # Loss of the rounds that train on estimates: "plain", which learns better from corrected
    # labels, or "superloss", that of the config.
    cfg.MODEL.SUPERLOSS.CORRECTION.LATER_LOSS = "plain"
    # Path of the class_targets.pth of an earlier run; "" for none. Set by ROUNDS and FROM_FEATURES.
    cfg.MODEL.SUPERLOSS.CORRECTION.TARGETS = ""
    # Correction within one training run: fraction of the iterations after which targets are
    # estimated from the statistics so far; 1.0 for never.
    cfg.MODEL.SUPERLOSS.CORRECTION.START = 1.0
    # Correction within one training run: iterations between two estimates.
    cfg.MODEL.SUPERLOSS.CORRECTION.PERIOD = 500
    # "hard": the most probable class; "soft": the two most probable with their probabilities.
    cfg.MODEL.SUPERLOSS.CORRECTION.FORM = "soft"
    # Annotations without a class of at least this probability get no classification loss.
    cfg.MODEL.SUPERLOSS.CORRECTION.MIN_PROBABILITY = 0.0

    # Methods of other papers, which change class targets and weights; see docs/rivals.md. They need
    # SuperLoss heads. CLS.FIXED_SIGMA 1.0 gives them the plain loss, as in their papers.
    cfg.MODEL.METHOD = CN()
    # "" for none, "CoTeaching", "CABBC", "CLC", "EMATeacher", "NoteRCNN", "SDLocNet", or a custom
    # method registered by your project.
    cfg.MODEL.METHOD.NAME = ""
    # Warm-up on the given labels, as a fraction of the iterations. Co-teaching drops more and more
    # samples during it, up to NOISE_RATE.
    cfg.MODEL.METHOD.START = 0.1
    # Fraction of wrong labels, for Co-teaching. Below 0.0: estimated each time that a
    # fraction START of the iterations has passed.
    cfg.MODEL.METHOD.NOISE_RATE = -1.0
    # With META_ARCHITECTURE "PairedRCNN" or "PairedRetinaNet": two heads on one trunk, instead of
    # two detectors. CABBC needs this.
    cfg.MODEL.METHOD.SHARED_TRUNK = False
    cfg.MODEL.METHOD.CO_TEACHING = CN()
    # Keep the smallest losses of each given class. False keeps the smallest of all classes, which
    # can drop whole classes that are learned late.
    cfg.MODEL.METHOD.CO_TEACHING.BY_CLASS = False
    # CA-BBC: soft labels and, with ALPHA above 0.0, corrected boxes.
    cfg.MODEL.METHOD.CA_BBC = CN()
    # Temperature of the soft labels; near 0.0 they become the most probable class.
    cfg.MODEL.METHOD.CA_BBC.TEMPERATURE = 0.4
    # Step size of the box correction; the paper uses 0, 100 and 200 for 0, 20 and 40 % box noise.
    cfg.MODEL.METHOD.CA_BBC.ALPHA = 0.0
    # Weight of the background's probability in the objective of the box correction.
    cfg.MODEL.METHOD.CA_BBC.BACKGROUND = 0.1
    # Share of the heads' mean box deltas by which a box moves after the step.
    cfg.MODEL.METHOD.CA_BBC.REFINEMENT = 0.5
    # CLC of DN-TOD.
    cfg.MODEL.METHOD.CLC = CN()
    # "drop" leaves a suspect sample out of the class loss; "relabel" replaces its class.
    cfg.MODEL.METHOD.CLC.FORM = "drop"
    # NOTE-RCNN, with MODEL.ROI_HEADS.NAME "NoteRCNNROIHeads" and DATASETS.LABEL_NOISE.CLEAN_SHARE.
    cfg.MODEL.METHOD.NOTE_RCNN = CN()
    # Weight of the class loss of background in images that are not seeds; 0.0 masks it.
    cfg.MODEL.METHOD.NOTE_RCNN.BACKGROUND = 0.0
    # Weight of the box loss in images that are not seeds; 0.0 regresses boxes on seeds only.
    cfg.MODEL.METHOD.NOTE_RCNN.BOXES = 0.0
    # Weight of the loss of a class head that is trained on the seeds alone; 0.0 removes it.
    cfg.MODEL.METHOD.NOTE_RCNN.SEED_HEAD = 1.0
    # Weight of the loss of a class head that is distilled from the seed head; 0.0 removes it.
    cfg.MODEL.METHOD.NOTE_RCNN.DISTILLATION = 1.0
    # Soft targets from an exponential average of the weights.
    cfg.MODEL.METHOD.TEACHER = CN()
    # Share of the old weights that a step keeps.
    cfg.MODEL.METHOD.TEACHER.DECAY = 0.999
    # Share of the teacher's prediction in the target; the rest is the given label.
    cfg.MODEL.METHOD.TEACHER.SHARE = 0.5

    # The box regression loss: one value per foreground RoI or anchor, summed over coordinates.
    cfg.MODEL.SUPERLOSS.BOX_REG = CN()
    # Off by default: wrong class labels leave the boxes right; the term cost AP on noisy labels.
    cfg.MODEL.SUPERLOSS.BOX_REG.ENABLED = False
    # "Avg", "ExpAvg" or a quoted number such as "1.5"; "logC" is undefined for boxes.
    cfg.MODEL.SUPERLOSS.BOX_REG.TAU = "ExpAvg"
    cfg.MODEL.SUPERLOSS.BOX_REG.LAMBDA = 0.25
    # Boxes are regressed on foreground only, so "all" and "foreground" mean the same here.
    cfg.MODEL.SUPERLOSS.BOX_REG.SCOPE = "foreground"
    # "sample" or "instance".
    cfg.MODEL.SUPERLOSS.BOX_REG.GRANULARITY = "sample"
    cfg.MODEL.SUPERLOSS.BOX_REG.FIXED_SIGMA = 0.0
    cfg.MODEL.SUPERLOSS.BOX_REG.NORMALIZE = False

    # RoIAlign as products of matrices, equal but for rounding: faster to train with on a CPU where
    # features are small, as those of images of 256 pixels.
    cfg.MODEL.ROI_HEADS.MATRIX_ROI_ALIGN = False

    # The backbone "build_frozen_trunk_fpn_backbone": a pretrained trunk under an FPN.
    # MODEL.BACKBONE.FREEZE_AT 5 freezes the trunk as a whole.
    cfg.MODEL.FROZEN_TRUNK = CN()
    # "mobilenet_v2", "efficientnet_lite0", or a custom trunk registered by your project.
    cfg.MODEL.FROZEN_TRUNK.NAME = "mobilenet_v2"
    # ImageNet weights: a file, or for torchvision's models a name such as "IMAGENET1K_V1", which is
    # downloaded. Empty: random weights, or those of MODEL.WEIGHTS.
    cfg.MODEL.FROZEN_TRUNK.WEIGHTS = ""
    # Folder that stores the features of a fully frozen trunk, on a CPU. Each image is computed once
    # for all runs and processes that use the folder, in training and evaluation. Empty: no store.
    cfg.MODEL.FROZEN_TRUNK.STORE = ""
    # Maximum size of the folder, in GiB. A full folder is read, and nothing is added.
    cfg.MODEL.FROZEN_TRUNK.STORE_GIB = 10.0
    # "float32", which leaves all losses unchanged, or "float16", which halves the size.
    cfg.MODEL.FROZEN_TRUNK.STORE_DTYPE = "float32"
    cfg.register_renamed_key("MODEL.MOBILENET_V2", "MODEL.FROZEN_TRUNK", _RENAMED)
    cfg.register_renamed_key("MODEL.MOBILENET_V2.WEIGHTS", "MODEL.FROZEN_TRUNK.WEIGHTS", _RENAMED)
    cfg.register_renamed_key(
        "MODEL.MOBILENET_V2.CACHE_IMAGES", "MODEL.FROZEN_TRUNK.STORE, a folder", _RENAMED
    )

    # Label noise added to the training sets; test sets never change.
    cfg.DATASETS.LABEL_NOISE = CN()
    # Class that replaces a corrupted label. "symmetric": any other class; "symmetric_inclusive":
    # any class, including the true one; "asymmetric": a class from a map of confusable classes; or
    # a custom noise registered by your project. For the mistakes of a detector, write a manifest
    # with sl-inject-noise --type instance, and set MANIFEST.
    cfg.DATASETS.LABEL_NOISE.TYPE = "symmetric"
    # Fraction of annotations, in [0, 1]; 0.0 is off.
    cfg.DATASETS.LABEL_NOISE.RATE = 0.0
    # Random seed; selects which annotations are corrupted.
    cfg.DATASETS.LABEL_NOISE.SEED = 0
    # "bernoulli": each annotation is drawn independently; "exact": round(RATE * number) annotations
    # of each dataset are corrupted.
    cfg.DATASETS.LABEL_NOISE.MODE = "bernoulli"
    # YAML file {class: {other class: probability}} for "asymmetric"; `cat: dog` and
    # `cow: [horse, sheep]` are short forms. Empty: VOC's confusable pairs.
    cfg.DATASETS.LABEL_NOISE.CONFUSION = ""
    # A manifest written by sl-inject-noise, used in place of the rates.
    cfg.DATASETS.LABEL_NOISE.MANIFEST = ""
    # Share of the images that no noise changes, in [0, 1], chosen by SEED: the clean seed set of
    # "NoteRCNN". The rates apply to the annotations of the other images.
    cfg.DATASETS.LABEL_NOISE.CLEAN_SHARE = 0.0

    # Noise that moves boxes.
    cfg.DATASETS.LABEL_NOISE.BOX_JITTER = CN()
    # Fraction of annotations, in [0, 1]; 0.0 is off.
    cfg.DATASETS.LABEL_NOISE.BOX_JITTER.RATE = 0.0
    # Each coordinate moves uniformly by up to this fraction of the box's width or height.
    cfg.DATASETS.LABEL_NOISE.BOX_JITTER.MAGNITUDE = 0.1
    # Random seed; selects which boxes are moved, and how.
    cfg.DATASETS.LABEL_NOISE.BOX_JITTER.SEED = 0

    # Noise that drops annotations.
    cfg.DATASETS.LABEL_NOISE.MISSING = CN()
    # Fraction of annotations, in [0, 1]; 0.0 is off.
    cfg.DATASETS.LABEL_NOISE.MISSING.RATE = 0.0
    # Random seed; selects which annotations are dropped.
    cfg.DATASETS.LABEL_NOISE.MISSING.SEED = 0

    # Noise that adds boxes without an object.
    cfg.DATASETS.LABEL_NOISE.SPURIOUS = CN()
    # Number of added boxes, as a fraction of the number of annotations; 0.0 is off.
    cfg.DATASETS.LABEL_NOISE.SPURIOUS.RATE = 0.0
    # Random seed; selects which boxes are added.
    cfg.DATASETS.LABEL_NOISE.SPURIOUS.SEED = 0

    # For images that are missing or truncated, do not have 8 bits per channel, or differ in size
    # from the annotation. "error" stops and names the image. "skip" warns, replaces it by another
    # image in training, and leaves it out of tests, audits and pictures.
    cfg.DATALOADER.BROKEN_IMAGES = "error"
    # For flawed boxes and images in VOC and COCO files. "error" stops at the start and names up to
    # 20 of them; "skip" leaves them out and warns with their number.
    cfg.DATASETS.BAD_ANNOTATIONS = "error"

    # Number of folds that the training images are divided into, by their ids, for cross-fitting. 1
    # trains on all images. sl-audit --folds sets both keys.
    cfg.DATASETS.FOLDS = 1
    # Fold that is left out of training, from 0.
    cfg.DATASETS.HELD_OUT_FOLD = 0

    # Custom VOC-style datasets: [{"NAME": ..., "ROOT": ..., "SPLIT": ..., "CLASSES": [...]}, ...];
    # ROOT holds Annotations/, ImageSets/Main/SPLIT.txt and JPEGImages/, and may begin with
    # $DETECTRON2_DATASETS, the folder of detectron2's datasets. Optional: CLASSES, by default VOC's
    # 20; YEAR, 2007 for VOC07's 11-point AP; OTHER_CLASSES, "error" or "ignore", for objects of
    # classes that are not in CLASSES.
    cfg.DATASETS.CUSTOM_VOC = []
    # Custom COCO datasets: [{"NAME": ..., "JSON_FILE": ..., "IMAGE_ROOT": ...}, ...], the arguments
    # of detectron2's register_coco_instances.
    cfg.DATASETS.CUSTOM_COCO = []

    # Evaluation of VOC datasets: "voc" or "coco".
    cfg.TEST.EVALUATOR = "voc"
    # Classes without an object in a VOC test set: "skip" leaves them out of the mean; "zero" counts
    # them as 0, as detectron2 does.
    cfg.TEST.ABSENT_CLASSES = "skip"


def check_has_keys(cfg: CN) -> None:
    """Raise KeyError where :func:`add_superloss_config` was not called."""
    if "SUPERLOSS" not in cfg.MODEL:
        raise KeyError(
            "the config has no MODEL.SUPERLOSS: call sl_detectron.add_superloss_config(cfg) "
            "right after get_cfg()"
        )


def train_sets(cfg: CN) -> tuple[str, ...]:
    """The names of ``DATASETS.TRAIN``, which is a string where a comma is missing: ``("name")``.

    A name may come twice: the images of that set are then seen twice as often.
    """
    names = cfg.DATASETS.TRAIN
    return (names,) if isinstance(names, str) else tuple(names)


def is_dense_detector(cfg: CN) -> bool:
    """Whether ``MODEL.META_ARCHITECTURE`` is a RetinaNet or another detector without ROI heads.

    Raises:
        ValueError: no meta-architecture is registered under that name
    """
    name = cfg.MODEL.META_ARCHITECTURE
    if name not in META_ARCH_REGISTRY:
        known = sorted(key for key, _ in META_ARCH_REGISTRY)
        raise ValueError(f"MODEL.META_ARCHITECTURE must be one of {known}; got {name!r}")
    return issubclass(META_ARCH_REGISTRY.get(name), DenseDetector)


def num_classes_of(cfg: CN) -> int:
    """K, the number of foreground classes that a config's detector has."""
    return (cfg.MODEL.RETINANET if is_dense_detector(cfg) else cfg.MODEL.ROI_HEADS).NUM_CLASSES


def has_pretrained_trunk(cfg: CN) -> bool:
    """Whether the backbone is one of ``MODEL.FROZEN_TRUNK`` that loads weights by itself."""
    is_trunk = cfg.MODEL.BACKBONE.NAME == "build_frozen_trunk_fpn_backbone"
    return is_trunk and bool(cfg.MODEL.FROZEN_TRUNK.WEIGHTS)


def needs_masks(cfg: CN) -> bool:
    """Whether the detector has a mask head; a dense detector has none, whatever the key is."""
    return bool(cfg.MODEL.MASK_ON) and not is_dense_detector(cfg)


def without_federated_loss(cfg: CN) -> CN:
    """The config for a detector that is not trained.

    A federated loss would ask for the class counts of training sets, which are not read then.
    """
    if not cfg.MODEL.ROI_BOX_HEAD.get("USE_FED_LOSS", False):
        return cfg
    plain = cfg.clone()
    plain.defrost()
    plain.MODEL.ROI_BOX_HEAD.USE_FED_LOSS = False
    if cfg.is_frozen():
        plain.freeze()
    return plain


def num_classes_key(cfg: CN) -> str:
    """The key that :func:`num_classes_of` reads."""
    head = "RETINANET" if is_dense_detector(cfg) else "ROI_HEADS"
    return f"MODEL.{head}.NUM_CLASSES"


def config_keys(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{dotted name: value} of every key of a nested config, of nodes as well as values.

    Example:
        >>> config_keys({"SOLVER": {"MAX_ITER": 1}, "SEED": 0})
        {'SOLVER': {'MAX_ITER': 1}, 'SOLVER.MAX_ITER': 1, 'SEED': 0}
    """
    keys = {}
    for key, value in node.items():
        keys[f"{prefix}{key}"] = value
        if isinstance(value, Mapping):
            keys |= config_keys(value, f"{prefix}{key}.")
    return keys
