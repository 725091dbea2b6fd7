"""Losses that are not detectron2's, and terms that do not fit: found when a model is built."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import META_ARCH_REGISTRY, RetinaNet
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, fast_rcnn
from detectron2.utils.events import EventStorage, get_event_storage

from helpers.detectors import NUM_CLASSES, build, make_batch, roi_batch, run_losses, small_config
from sl_detectron.losses import SuperLoss
from sl_detectron.losses.classification import cross_entropy
from sl_detectron.modeling import (
    PerAnchorLosses,
    PerRoILosses,
    SuperLossRetinaNet,
    SuperLossTerm,
    to_superloss_output_layers,
)
from sl_detectron.modeling.fast_rcnn import SuperLossFastRCNNOutputLayers


def term(name):
    return SuperLossTerm(name, SuperLoss(1.0, 1e6))


def weighted_losses(self, predictions, proposals):
    """The usual way of people to weigh classes: detectron2's method, edited."""
    weights = torch.ones(self.num_classes + 1)
    weights[0] = 3
    gt_classes = torch.cat([p.gt_classes for p in proposals])
    losses = STOCK_LOSSES(self, predictions, proposals)
    return {**losses, "loss_cls": F.cross_entropy(predictions[0], gt_classes, weight=weights)}


STOCK_LOSSES = FastRCNNOutputLayers.losses
STOCK_BOX_LOSS = FastRCNNOutputLayers.box_reg_loss
STOCK_SIGMOID_LOSS = FastRCNNOutputLayers.sigmoid_cross_entropy_loss


def changed(change):
    """detectron2's losses with another classification loss, by per-RoI losses and their classes."""

    def losses(self, predictions, proposals):
        gt_classes = torch.cat([p.gt_classes for p in proposals])
        per_roi = F.cross_entropy(predictions[0], gt_classes, reduction="none")
        found = STOCK_LOSSES(self, predictions, proposals)
        return {**found, "loss_cls": change(self, per_roi, gt_classes)}

    return losses


def balanced(self, losses, gt_classes):
    counts = gt_classes.bincount(minlength=self.num_classes + 1).clamp(min=1)
    weights = (1 / counts)[gt_classes]
    return (losses * weights).sum() / weights.sum()


CHANGES = {
    "hard examples": lambda self, losses, _: losses.topk(min(512, len(losses))).values.mean(),
    "late": lambda self, losses, _: losses.mean() * (1 + (get_event_storage().iter > 1000)),
    "one class": lambda self, losses, gt: (losses * torch.where(gt == 1, 1.1, 1.0)).mean(),
    "by the counts of a batch": balanced,
    "a little focal": lambda self, losses, _: (losses * (1 - (-losses).exp()) ** 0.1).mean(),
    "attribute of an edited class": lambda self, losses, _: (losses * self.my_weight).mean(),
}


@pytest.mark.parametrize("num_classes", [2, 80, 1203])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changes_that_few_samples_or_steps_show_are_found(change, num_classes, monkeypatch):
    monkeypatch.setattr(FastRCNNOutputLayers, "losses", changed(change))
    transform = Box2BoxTransform((1.0,) * 4)
    predictor = FastRCNNOutputLayers(8, box2box_transform=transform, num_classes=num_classes)
    message = r"FastRCNNOutputLayers(\.losses\(\)| does not make .*loss_cls).*edited or patched"
    with pytest.raises(TypeError, match=message):
        to_superloss_output_layers(predictor, term("cls"), None)
    to_superloss_output_layers(predictor, None, None)


def test_smoothed_labels_of_a_patched_module_are_found(monkeypatch):
    """A change that is 0 in the mean over labels that no logit fits."""
    smoothed = partial(F.cross_entropy, label_smoothing=0.02)
    monkeypatch.setattr(fast_rcnn, "cross_entropy", smoothed)
    kwargs = {"box2box_transform": Box2BoxTransform((1.0,) * 4), "num_classes": NUM_CLASSES}
    with pytest.raises(TypeError, match="does not make detectron2's loss_cls"):
        to_superloss_output_layers(FastRCNNOutputLayers(8, **kwargs), term("cls"), None)


@pytest.mark.parametrize(
    ("maker", "key"), [("losses", "loss_cls"), ("box_reg_loss", "loss_box_reg")]
)
def test_losses_that_are_set_on_an_object_are_refused(maker, key):
    """They would hide the SuperLoss, or be replaced by it."""
    kwargs = {"box2box_transform": Box2BoxTransform((1.0,) * 4), "num_classes": NUM_CLASSES}
    predictor = FastRCNNOutputLayers(8, **kwargs)
    setattr(predictor, maker, lambda *args: {"loss_cls": torch.tensor(7.0)})
    terms = [term("cls"), None] if key == "loss_cls" else [None, term("box_reg")]
    message = rf"{maker}\(\) was set on an object of Fast.*may change {key}.*super{key} off"
    with pytest.raises(TypeError, match=message):
        to_superloss_output_layers(predictor, *terms)


PATCHES = {
    "losses": weighted_losses,
    "box_reg_loss": lambda self, *args: 1.01 * STOCK_BOX_LOSS(self, *args),
    "sigmoid_cross_entropy_loss": lambda self, *args: STOCK_SIGMOID_LOSS(self, *args) / 2,
}


@pytest.mark.parametrize("num_classes", [1, NUM_CLASSES, 1203])
@pytest.mark.parametrize(
    ("patched", "key"),
    [
        ("losses", "loss_cls"),
        ("box_reg_loss", "loss_box_reg"),
        ("sigmoid_cross_entropy_loss", "loss_cls"),
    ],
)
def test_detectron2_that_was_changed_is_found_at_build(patched, key, num_classes, monkeypatch):
    """Not replaced by unchanged losses; a term of the other loss is built all the same."""
    terms = {"loss_cls": (term("cls"), None), "loss_box_reg": (None, term("box_reg"))}
    other = {"loss_cls": "loss_box_reg", "loss_box_reg": "loss_cls"}[key]
    sigmoid = {"use_sigmoid_ce": True} if patched.startswith("sigmoid") else {}

    def new(cls, **kwargs):
        transform = Box2BoxTransform((1.0,) * 4)
        return cls(8, box2box_transform=transform, num_classes=num_classes, **sigmoid, **kwargs)

    to_superloss_output_layers(new(FastRCNNOutputLayers), *terms[key])
    monkeypatch.setattr(FastRCNNOutputLayers, patched, PATCHES[patched])
    message = rf"does not make detectron2's {key}: .*{patched}\(\).*switch super{key} off"
    predictor = new(FastRCNNOutputLayers)
    with pytest.raises(TypeError, match=message):
        to_superloss_output_layers(predictor, *terms[key])
    assert type(predictor) is FastRCNNOutputLayers
    with pytest.raises(TypeError, match=message):
        new(SuperLossFastRCNNOutputLayers, **{key.replace("loss", "superloss"): term("cls")})
    to_superloss_output_layers(predictor, *terms[other])
    assert type(predictor) is SuperLossFastRCNNOutputLayers


def test_a_changed_retinanet_is_found_at_build(monkeypatch):
    cfg = small_config("retinanet", superloss=True)
    build(cfg)
    stock = RetinaNet.losses

    def patched(self, *args):
        return {k: 2 * v if k == "loss_cls" else v for k, v in stock(self, *args).items()}

    monkeypatch.setattr(RetinaNet, "losses", patched)
    with pytest.raises(TypeError, match=r"RetinaNet does not make detectron2's loss_cls.*losses\("):
        build(cfg)
    cfg.MODEL.SUPERLOSS.CLS.ENABLED, cfg.MODEL.SUPERLOSS.BOX_REG.ENABLED = False, True
    build(cfg)


@pytest.mark.parametrize("name", ["standard", "cascade", "retinanet", "standard_sigmoid"])
def test_the_comparison_at_build_leaves_no_trace(name):
    """Weights and the random state are those of the stock model; no normalizer is left."""
    states = []
    for superloss in (False, True):
        model = build(small_config(name, superloss))
        states.append((torch.get_rng_state(), hasattr(model, "loss_normalizer")))
    assert torch.equal(states[0][0], states[1][0])
    assert not states[1][1]


class QualityRetinaNet(RetinaNet):
    """Losses restated, and one more."""

    def losses(self, *args):
        losses = super().losses(*args)
        return {**losses, "loss_cls": 5 * losses["loss_cls"], "loss_quality": losses["loss_cls"]}


class QualityPerAnchor(QualityRetinaNet):
    def classification_losses(self, logits, labels):
        return 5 * super().classification_losses(logits, labels)

    foreground_box_losses = PerAnchorLosses.foreground_box_losses


class AuxiliaryRetinaNet(RetinaNet):
    """Detectron2's losses as they are, and one more."""

    def losses(self, *args):
        losses = super().losses(*args)
        return {**losses, "loss_quality": losses["loss_cls"] / 2}


class AuxiliarySaidSo(AuxiliaryRetinaNet):
    classification_losses = PerAnchorLosses.classification_losses


for _base in (QualityRetinaNet, QualityPerAnchor, AuxiliaryRetinaNet, AuxiliarySaidSo):
    _name = f"SuperLoss{_base.__name__}"
    META_ARCH_REGISTRY.register(type(_name, (SuperLossRetinaNet, _base), {}))
META_ARCH_REGISTRY.register(QualityRetinaNet)


@pytest.mark.parametrize(("node", "key"), [("CLS", "loss_cls"), ("BOX_REG", "loss_box_reg")])
def test_a_retinanet_that_restates_losses_is_refused(node, key):
    cfg = small_config("retinanet", superloss=True)
    cfg.MODEL.META_ARCHITECTURE = "SuperLossQualityRetinaNet"
    cfg.MODEL.SUPERLOSS.CLS.ENABLED = node == "CLS"
    cfg.MODEL.SUPERLOSS.BOX_REG.ENABLED = node == "BOX_REG"
    message = rf"QualityRetinaNet\.losses\(\) may change {key}.* each anchor.*switch super{key} off"
    with pytest.raises(TypeError, match=message):
        build(cfg)


def test_a_retinanet_that_adds_a_loss_says_so_by_a_line():
    """A refusal does not claim that it changes losses, and what it advises is enough."""
    cfg = small_config("retinanet", superloss=True)
    cfg.MODEL.SUPERLOSS.CLS.TAU, cfg.MODEL.SUPERLOSS.CLS.LAMBDA = "0", 1e6
    cfg.MODEL.META_ARCHITECTURE = "SuperLossAuxiliaryRetinaNet"
    line = r"classification_losses = PerAnchorLosses\.classification_losses"
    with pytest.raises(TypeError, match=rf"\.losses\(\) may change loss_cls.* adds .*{line}"):
        build(cfg)
    cfg.MODEL.META_ARCHITECTURE = "SuperLossAuxiliarySaidSo"
    losses = run_losses(build(cfg), make_batch())[0]
    stock = run_losses(build(small_config("retinanet", superloss=False)), make_batch())[0]
    stock["loss_quality"] = stock["loss_cls"] / 2
    assert losses.keys() == stock.keys()
    torch.testing.assert_close(losses, stock, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("cls", [False, True])
@pytest.mark.parametrize("box_reg", [False, True])
@pytest.mark.parametrize(
    "names",
    [("QualityRetinaNet", "SuperLossQualityPerAnchor"), ("RetinaNet", "SuperLossRetinaNet")],
)
def test_a_retinanet_can_say_what_its_losses_are(cls, box_reg, names):
    """Of a flat SuperLoss the loss is that of the class; what is off stays bit for bit."""
    cfg = small_config("retinanet", superloss=False)
    cfg.MODEL.RETINANET.FOCAL_LOSS_ALPHA, cfg.MODEL.RETINANET.FOCAL_LOSS_GAMMA = 0.4, 1.5
    cfg.MODEL.RETINANET.SMOOTH_L1_LOSS_BETA = 0.3
    cfg.MODEL.META_ARCHITECTURE = names[0]
    stock = build(cfg)
    cfg.MODEL.META_ARCHITECTURE = names[1]
    for node, enabled in (("CLS", cls), ("BOX_REG", box_reg)):
        cfg.MODEL.SUPERLOSS[node].ENABLED = enabled
        cfg.MODEL.SUPERLOSS[node].TAU, cfg.MODEL.SUPERLOSS[node].LAMBDA = "0", 1e6
    ours = build(cfg)
    for seed in range(2):  # the normalizer moves once a step
        expected, losses = (run_losses(m, make_batch(seed=seed))[0] for m in (stock, ours))
        assert ours.loss_normalizer == stock.loss_normalizer
        assert losses.keys() == expected.keys()
        torch.testing.assert_close(losses, expected, rtol=2e-5, atol=1e-6)
        off = ["loss_cls"] * (not cls)
        if names[0] != "RetinaNet":  # of that one a box loss that is off is summed by us
            off += ["loss_quality", *(["loss_box_reg"] * (not box_reg))]
        assert all(losses[key] == expected[key] for key in off)


@pytest.mark.parametrize("sigmoid", [False, True])
def test_scores_of_another_number_of_classes(sigmoid):
    """A vocabulary that changes: trained as in detectron2, and no annotation is tracked by it."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(12, NUM_CLASSES + 4, generator=generator)
    (_, deltas), proposals = roi_batch(num_rois=12, num_foreground=5)
    proposals[0].gt_annotation_ids = torch.arange(12)
    kwargs = {"box2box_transform": Box2BoxTransform((1.0,) * 4), "num_classes": NUM_CLASSES}
    kwargs |= {"use_sigmoid_ce": True} if sigmoid else {}
    with EventStorage():
        expected = FastRCNNOutputLayers(8, **kwargs).losses((scores, deltas), proposals)
        flat = SuperLossTerm("cls", SuperLoss(0.0, 1e6))
        flat.observers.append(lambda *_: pytest.fail("an observer was called"))
        ours = to_superloss_output_layers(FastRCNNOutputLayers(8, **kwargs), flat, None)
        losses = ours.losses((scores, deltas), proposals)
    torch.testing.assert_close(losses, expected, rtol=2e-5, atol=1e-6)


def test_an_off_term_touches_nothing():
    """With the box term alone no score is read, and the federated classes are drawn once."""
    narrow = torch.randn(12, NUM_CLASSES + 1)[:, :1], roi_batch()[0][1]
    frequencies = torch.ones(NUM_CLASSES)
    kwargs = {"box2box_transform": Box2BoxTransform((1.0,) * 4), "num_classes": NUM_CLASSES}
    federated = {"use_sigmoid_ce": True, "use_fed_loss": True, "fed_loss_num_classes": 4}
    federated["get_fed_loss_cls_weights"] = lambda: frequencies

    class OneScore(FastRCNNOutputLayers):
        def losses(self, predictions, proposals):
            return {"loss_cls": predictions[0].mean(), "loss_box_reg": predictions[1].mean()}

        foreground_box_losses = PerRoILosses.foreground_box_losses

    with EventStorage():
        one = to_superloss_output_layers(OneScore(8, **kwargs), None, term("box_reg"))
        losses = one.losses(narrow, roi_batch()[1])
        assert losses["loss_cls"] == narrow[0].mean()
        states = []
        for box_term in (None, term("box_reg")):
            layers = FastRCNNOutputLayers(8, **kwargs, **federated)
            layers = to_superloss_output_layers(layers, None, box_term)
            torch.manual_seed(5)
            value = layers.losses(roi_batch(num_foreground=2)[0], roi_batch(num_foreground=2)[1])
            states.append((value["loss_cls"], torch.get_rng_state()))
    assert states[0][0] == states[1][0]
    assert torch.equal(states[0][1], states[1][1])


@pytest.mark.parametrize("path", ["swap", "constructor"])
@pytest.mark.parametrize(
    ("loss", "kwargs", "message"),
    [
        (
            "cls",
            {},
            r"'cls' has tau 'logC' of num_outcomes=81, .*num_classes=5.* must be 6, .*or 5",
        ),
        ("cls", {"use_sigmoid_ce": True}, "'cls' has tau 'logC', which is defined for softmax"),
        ("box_reg", {}, "'box_reg' has tau 'logC', which is defined for softmax"),
        (
            "loss",
            {"use_sigmoid_ce": True},
            "cross_entropy.* is a loss of softmax logits, but .*use_s",
        ),
    ],
)
def test_arguments_are_checked_as_a_config_is(loss, kwargs, message, path):
    """What a LazyConfig gives: 81 outcomes that were left over, no softmax, a softmax loss."""
    argument = f"superloss_{loss}" if loss != "loss" else "classification_loss"
    value = cross_entropy if loss == "loss" else SuperLossTerm(loss, SuperLoss("logC", 0.25, 81))
    kwargs = {"box2box_transform": Box2BoxTransform((1.0,) * 4), "num_classes": 5, **kwargs}
    given = {"superloss_cls": None, "superloss_box_reg": None, argument: value}
    if path == "swap":
        make = partial(to_superloss_output_layers, FastRCNNOutputLayers(8, **kwargs), **given)
    else:
        make = partial(SuperLossFastRCNNOutputLayers, 8, **kwargs, **given)
    with pytest.raises(ValueError, match=message):
        make()
    for num_outcomes in (5, 6):
        good = SuperLossTerm("cls", SuperLoss("logC", 0.25, num_outcomes))
        kwargs.pop("use_sigmoid_ce", None)
        to_superloss_output_layers(FastRCNNOutputLayers(8, **kwargs), good, None)


@pytest.mark.parametrize("name", ["cls", "box_reg"])
def test_a_retinanet_built_by_arguments_has_no_logc(name):
    arguments = SuperLossRetinaNet.from_config(small_config("retinanet", superloss=True))
    arguments[f"superloss_{name}"] = SuperLossTerm(name, SuperLoss("logC", 0.25, NUM_CLASSES))
    with pytest.raises(ValueError, match=f"'{name}' has tau 'logC', which is defined for softmax"):
        SuperLossRetinaNet(**arguments)
    arguments["superloss_cls"] = None
    arguments["superloss_box_reg"] = SuperLossTerm("box_reg", SuperLoss(), granularity="class")
    with pytest.raises(ValueError, match="granularity 'class' is for the classification term"):
        SuperLossRetinaNet(**arguments)
