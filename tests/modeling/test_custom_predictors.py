"""Heads and predictors of other projects become SuperLoss ones without our knowing them."""

import copy
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, ROIHeads, StandardROIHeads
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage

from helpers.detectors import NUM_CLASSES, build, make_batch, roi_batch, run_losses, small_config
from sl_detectron.losses import SuperLoss
from sl_detectron.modeling import (
    PerRoILosses,
    SuperLossROIHeadsMixin,
    SuperLossStandardROIHeads,
    SuperLossTerm,
    superloss_roi_heads,
    to_superloss_output_layers,
)


class CustomPredictor(FastRCNNOutputLayers):
    """As projects write them: built by a config only, with losses() written anew."""

    def __init__(self, cfg, input_shape, **kwargs):
        super().__init__(cfg, input_shape, **kwargs)
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, x):
        scores, deltas = super().forward(x)
        return scores * self.scale, deltas

    def losses(self, predictions, proposals):
        scores, deltas = predictions
        gt_classes = torch.cat([p.gt_classes for p in proposals])
        boxes = torch.cat([p.proposal_boxes.tensor for p in proposals])
        gt_boxes = torch.cat(
            [(p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes).tensor for p in proposals]
        )
        return {
            "loss_cls": F.cross_entropy(scores, gt_classes),
            "loss_box_reg": self.box_reg_loss(boxes, gt_boxes, deltas, gt_classes),
        }

    classification_losses = PerRoILosses.classification_losses
    foreground_box_losses = PerRoILosses.foreground_box_losses


@ROI_HEADS_REGISTRY.register()
class CustomROIHeads(StandardROIHeads):
    """A head with a predictor, an argument and a config key of its own."""

    @configurable
    def __init__(self, *, temperature=1.0, **kwargs):
        super().__init__(**kwargs)
        self.temperature = temperature

    @classmethod
    def from_config(cls, cfg, input_shape):
        return {**super().from_config(cfg, input_shape), "temperature": 3.0}

    @classmethod
    def _init_box_head(cls, cfg, input_shape):
        ret = super()._init_box_head(cfg, input_shape)
        return {**ret, "box_predictor": CustomPredictor(cfg, ret["box_head"].output_shape)}


superloss_roi_heads(CustomROIHeads)


def custom_config(name, *opts):
    cfg = small_config("standard", superloss=False)
    cfg.MODEL.ROI_HEADS.NAME = name
    cfg.merge_from_list(list(opts))
    return cfg


@pytest.mark.parametrize("enabled", [True, False])
def test_custom_heads(enabled):
    node = "MODEL.SUPERLOSS.CLS"
    stock = build(custom_config("CustomROIHeads"))
    ours = build(custom_config("SuperLossCustomROIHeads", f"{node}.ENABLED", enabled))
    assert isinstance(ours.roi_heads, CustomROIHeads)
    assert isinstance(ours.roi_heads.box_predictor, CustomPredictor)
    assert ours.roi_heads.temperature == 3.0
    for key, value in stock.state_dict().items():
        assert torch.equal(value, ours.state_dict()[key]), key
    stock_losses, stock_grads, _ = run_losses(stock, make_batch())
    losses, grads, _ = run_losses(ours, make_batch())
    name = "roi_heads.box_predictor.scale"
    if enabled:
        assert losses.pop("loss_cls") != stock_losses.pop("loss_cls")
        assert grads[name] != stock_grads[name]
    else:
        assert torch.equal(grads[name], stock_grads[name])
    assert losses == stock_losses


def test_factory():
    heads = superloss_roi_heads(CustomROIHeads)
    assert superloss_roi_heads(CustomROIHeads) is heads
    assert ROI_HEADS_REGISTRY.get("SuperLossCustomROIHeads") is heads
    assert issubclass(heads, SuperLossROIHeadsMixin)
    assert heads.__module__ == CustomROIHeads.__module__
    assert superloss_roi_heads(SuperLossStandardROIHeads) is SuperLossStandardROIHeads
    for wrong in (FastRCNNOutputLayers, "StandardROIHeads"):
        with pytest.raises(TypeError, match="takes a subclass of ROIHeads; got"):
            superloss_roi_heads(wrong)


@ROI_HEADS_REGISTRY.register()
class ExtendedROIHeads(SuperLossStandardROIHeads):
    """The other way round: a head of one's own on top of ours, with a config of its own."""

    @configurable
    def __init__(self, *, temperature=1.0, **kwargs):
        super().__init__(**kwargs)
        self.temperature = temperature

    @classmethod
    def from_config(cls, cfg, input_shape):
        return {**super().from_config(cfg, input_shape), "temperature": 2.0}


def test_heads_on_top_of_ours():
    heads = build(custom_config("ExtendedROIHeads")).roi_heads
    assert heads.temperature == 2.0
    assert isinstance(heads.box_predictor.superloss_cls, SuperLossTerm)


def test_arguments_beside_the_config_reach_the_heads():
    cfg = custom_config("SuperLossCustomROIHeads")
    shapes = build(cfg).backbone.output_shape()
    heads = ROI_HEADS_REGISTRY.get("SuperLossCustomROIHeads")
    assert heads(cfg, shapes, temperature=5.0).temperature == 5.0
    with pytest.raises(ValueError, match=r"was given a config.*\['superloss_cls'\] beside it"):
        heads(cfg, shapes, superloss_cls=term("cls"))


def test_names_are_not_taken_twice():
    assert superloss_roi_heads(StandardROIHeads) is SuperLossStandardROIHeads
    other = type("CustomROIHeads", (StandardROIHeads,), {})
    with pytest.raises(ValueError, match="SuperLossCustomROIHeads is registered already"):
        superloss_roi_heads(other)


class SemiSupervisedROIHeads(StandardROIHeads):
    """Methods with arguments more than detectron2's, as other projects call them."""

    def label_and_sample_proposals(self, proposals, targets, branch=""):
        self.branch = branch
        return super().label_and_sample_proposals(proposals, targets)


def test_more_arguments_pass_through():
    built = build(custom_config("StandardROIHeads")).roi_heads
    heads = superloss_roi_heads(SemiSupervisedROIHeads)(
        superloss_cls=term("cls"),
        box_in_features=built.box_in_features,
        box_pooler=built.box_pooler,
        box_head=built.box_head,
        box_predictor=built.box_predictor,
        num_classes=NUM_CLASSES,
        batch_size_per_image=8,
        positive_fraction=0.5,
        proposal_matcher=built.proposal_matcher,
    )
    targets = [image["instances"] for image in make_batch()]
    proposals = [
        Instances(t.image_size, proposal_boxes=t.gt_boxes, objectness_logits=torch.zeros(len(t)))
        for t in targets
    ]
    with EventStorage():
        sampled = heads.label_and_sample_proposals(proposals, targets, branch="supervised")
    assert heads.branch == "supervised"
    assert all(s.has("gt_annotation_ids") for s in sampled)


@pytest.mark.parametrize("name", ["SuperLossCustomROIHeads", "SuperLossStandardROIHeads"])
def test_models_can_be_pickled_and_copied(name):
    """Also those of classes that were made at run time; observers stay behind."""
    model = build(custom_config(name, "MODEL.SUPERLOSS.BOX_REG.ENABLED", True))
    run_losses(model, make_batch())
    model.roi_heads.box_predictor.superloss_cls.observers.append(lambda *_: None)
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert type(other.roi_heads) is type(model.roi_heads)
        assert type(other.roi_heads.box_predictor) is type(model.roi_heads.box_predictor)
        assert not other.roi_heads.box_predictor.superloss_cls.observers
        expected, got = (
            run_losses(m, make_batch(seed=2))[0] for m in (copy.deepcopy(model), other)
        )
        assert got == expected


def test_heads_without_a_box_predictor_are_named():
    class BareROIHeads(ROIHeads):
        pass

    arguments = {"num_classes": 2, "batch_size_per_image": 8, "positive_fraction": 0.5}
    with pytest.raises(ValueError, match="SuperLossBareROIHeads has no box predictor derived"):
        superloss_roi_heads(BareROIHeads)(proposal_matcher=None, **arguments)


def test_heads_built_by_arguments_take_terms():
    """Without a config, as a LazyConfig builds them."""
    built = build(custom_config("StandardROIHeads")).roi_heads
    term = SuperLossTerm("cls", SuperLoss("ExpAvg", 0.25))
    heads = SuperLossStandardROIHeads(
        superloss_cls=term,
        box_in_features=built.box_in_features,
        box_pooler=built.box_pooler,
        box_head=built.box_head,
        box_predictor=built.box_predictor,
        num_classes=NUM_CLASSES,
        batch_size_per_image=8,
        positive_fraction=0.5,
        proposal_matcher=built.proposal_matcher,
    )
    assert heads.box_predictor.superloss_cls.superloss.lam == 0.25
    assert heads.box_predictor.superloss_cls is term
    assert heads.box_predictor.superloss_box_reg is None


class TwoStages(ROIHeads):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.stages = torch.nn.ModuleList([layers(FastRCNNOutputLayers) for _ in range(2)])


def test_each_predictor_of_heads_built_by_arguments_has_its_own_tau():
    given = SuperLossTerm("cls", SuperLoss("ExpAvg", 0.25))
    sizes = {"num_classes": NUM_CLASSES, "batch_size_per_image": 8, "positive_fraction": 0.5}
    heads = superloss_roi_heads(TwoStages)(superloss_cls=given, proposal_matcher=None, **sizes)
    first, second = (stage.superloss_cls for stage in heads.stages)
    assert first is given
    assert second is not given
    first.superloss(torch.tensor([3.0]))
    assert first.superloss.tau == 3
    assert second.superloss.tau.isnan()
    assert second.superloss.lam == 0.25


class ScaledBoxLoss(FastRCNNOutputLayers):
    def box_reg_loss(self, *args):
        return 100 * super().box_reg_loss(*args)


class SmoothedLabels(FastRCNNOutputLayers):
    smoothing = 0.1

    def losses(self, predictions, proposals):
        losses = super().losses(predictions, proposals)
        gt_classes = torch.cat([p.gt_classes for p in proposals])
        smooth = F.cross_entropy(predictions[0], gt_classes, label_smoothing=self.smoothing)
        return {**losses, "loss_cls": smooth}


class SmoothedLabelsPerRoI(SmoothedLabels):
    def classification_losses(self, scores, gt_classes):
        return F.cross_entropy(scores, gt_classes, label_smoothing=self.smoothing, reduction="none")


class OtherKeys(FastRCNNOutputLayers):
    def losses(self, predictions, proposals):
        return {"loss": super().losses(predictions, proposals)["loss_cls"]}


class CustomFederated(SmoothedLabels):
    use_fed_loss = True


def layers(cls):
    return cls(8, box2box_transform=Box2BoxTransform((1.0,) * 4), num_classes=NUM_CLASSES)


def term(name):
    return SuperLossTerm(name, SuperLoss(1.0, 1e6))


@pytest.mark.parametrize(
    ("cls", "maker", "key", "method"),
    [
        (ScaledBoxLoss, "box_reg_loss", "loss_box_reg", "foreground_box_losses"),
        (SmoothedLabels, "losses", "loss_cls", "classification_losses"),
        (SmoothedLabels, "losses", "loss_box_reg", "foreground_box_losses"),
        (OtherKeys, "losses", "loss_cls", "classification_losses"),
        (CustomFederated, "losses", "loss_cls", "classification_losses"),
    ],
)
def test_restated_losses_are_not_replaced_unnoticed(cls, maker, key, method):
    """Decided by the class, before any batch: equal numbers on one would not show the next."""
    terms = {"loss_cls": (term("cls"), None), "loss_box_reg": (None, term("box_reg"))}
    predictor = layers(cls)
    name = next(c.__name__ for c in cls.__mro__ if maker in vars(c))
    message = rf"{name}\.{maker}\(\) may change {key}.* a method {method}\(.*switch super{key} off"
    with pytest.raises(TypeError, match=message):
        to_superloss_output_layers(predictor, *terms[key])
    assert type(predictor) is cls


def test_a_term_leaves_the_other_loss_alone():
    predictions, proposals = roi_batch()
    with EventStorage():
        expected = layers(ScaledBoxLoss).losses(predictions, proposals)
        swapped = to_superloss_output_layers(layers(ScaledBoxLoss), term("cls"), None)
        losses = swapped.losses(predictions, proposals)
    assert isinstance(swapped, ScaledBoxLoss)
    assert losses["loss_box_reg"] == expected["loss_box_reg"]
    assert losses["loss_cls"] != expected["loss_cls"]


def test_a_class_can_say_what_its_losses_are():
    """lambda -> inf is the plain loss minus tau for the five of twelve RoIs in scope (Lemma 1)."""
    predictions, proposals = roi_batch(num_rois=12, num_foreground=5)
    with EventStorage():
        expected = layers(SmoothedLabels).losses(predictions, proposals)["loss_cls"]
        ours = to_superloss_output_layers(layers(SmoothedLabelsPerRoI), term("cls"), None)
        loss = ours.losses(predictions, proposals)["loss_cls"]
    torch.testing.assert_close(loss, expected - 5 / 12, rtol=1e-4, atol=1e-5)


class RestatedOnTop(SmoothedLabelsPerRoI):
    """What the class below says of its losses is not what this one makes of them."""

    def losses(self, predictions, proposals):
        losses = super().losses(predictions, proposals)
        return {**losses, "loss_cls": 2 * losses["loss_cls"]}


class WeightedPerRoI(ScaledBoxLoss):
    """The loss of a RoI on top of detectron2's."""

    def foreground_box_losses(self, *args):
        return 100 * super().foreground_box_losses(*args)


def test_a_class_is_asked_that_restates_last():
    with pytest.raises(TypeError, match=r"RestatedOnTop\.losses\(\) may change loss_cls"):
        to_superloss_output_layers(layers(RestatedOnTop), term("cls"), None)


def test_losses_per_roi_may_build_on_detectron2s():
    predictions, proposals = roi_batch(num_rois=12, num_foreground=5)
    with EventStorage():
        expected = layers(WeightedPerRoI).losses(predictions, proposals)["loss_box_reg"]
        flat = SuperLossTerm("box_reg", SuperLoss(1.0, 1e9))
        ours = to_superloss_output_layers(layers(WeightedPerRoI), None, flat)
        loss = ours.losses(predictions, proposals)["loss_box_reg"]
    torch.testing.assert_close(loss, expected - 5 / 12, rtol=1e-4, atol=1e-4)


class OtherKeysPerRoI(OtherKeys):
    classification_losses = PerRoILosses.classification_losses


class InheritsPerRoI(FastRCNNOutputLayers, PerRoILosses):
    """To inherit detectron2's losses per RoI does not say that the class keeps to them."""

    def losses(self, predictions, proposals):
        return {k: 5 * v for k, v in super().losses(predictions, proposals).items()}


class WrongOrder(PerRoILosses, FastRCNNOutputLayers):
    pass


def test_losses_per_roi_that_are_only_inherited_say_nothing():
    with pytest.raises(TypeError, match=r"InheritsPerRoI\.losses\(\) may change loss_cls"):
        to_superloss_output_layers(layers(InheritsPerRoI), term("cls"), None)
    with pytest.raises(TypeError, match="WrongOrder must have PerRoILosses after"):
        to_superloss_output_layers(layers(WrongOrder), term("cls"), None)


class ScaledROIHeads(CustomROIHeads):
    """A from_config with an argument more than the config and the shapes."""

    @configurable
    def __init__(self, *, extra=0, **kwargs):
        super().__init__(**kwargs)
        self.extra = extra

    @classmethod
    def from_config(cls, cfg, input_shape, scale=1):
        return {**super().from_config(cfg, input_shape), "extra": 2 * scale}


def test_from_config_takes_what_that_of_the_heads_takes():
    cfg = custom_config("ScaledROIHeads")
    shapes = build(custom_config("CustomROIHeads")).backbone.output_shape()
    heads = superloss_roi_heads(ScaledROIHeads)(cfg, shapes, scale=3, temperature=5.0)
    assert (heads.extra, heads.temperature) == (6, 5.0)
    assert isinstance(heads.box_predictor.superloss_cls, SuperLossTerm)


def test_a_loss_that_is_not_there_is_named():
    predictions, proposals = roi_batch()
    predictor = to_superloss_output_layers(layers(OtherKeysPerRoI), term("cls"), None)
    message = r"OtherKeysPerRoI has \['loss'\] and no \['loss_cls'\]"
    with EventStorage(), pytest.raises(TypeError, match=message):
        predictor.losses(predictions, proposals)


class LateROIHeads(StandardROIHeads):
    """As projects wrote heads before @configurable: a predictor that no from_config knows."""

    def __init__(self, cfg, input_shape):
        super().__init__(cfg, input_shape)
        self.box_predictor = CustomPredictor(cfg, self.box_head.output_shape)


def test_a_predictor_that_is_built_late_gets_the_terms_too():
    superloss_roi_heads(LateROIHeads)
    cfg = custom_config("SuperLossLateROIHeads")
    model = build(cfg)
    by_keyword = superloss_roi_heads(LateROIHeads)(
        cfg=cfg, input_shape=model.backbone.output_shape()
    )
    for heads in (model.roi_heads, by_keyword):
        assert isinstance(heads.box_predictor, CustomPredictor)
        assert isinstance(heads.box_predictor.superloss_cls, SuperLossTerm)


class HoldsALock(FastRCNNOutputLayers):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.lock = threading.Lock()

    def __getstate__(self):
        return {k: v for k, v in vars(self).items() if k != "lock"}


def test_a_class_says_what_its_copies_keep():
    predictor = to_superloss_output_layers(layers(HoldsALock), term("cls"), None)
    assert not hasattr(copy.deepcopy(predictor), "lock")


def test_dense_granularity_is_refused():
    dense = SuperLossTerm("cls", SuperLoss(1.0, 1.0), granularity="class")
    with pytest.raises(ValueError, match="'class' is for dense detectors"):
        to_superloss_output_layers(layers(FastRCNNOutputLayers), dense, None)
