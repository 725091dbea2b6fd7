"""One pass of a stock detector over its training set."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from fvcore.nn import sigmoid_focal_loss
from PIL import Image

from helpers.detectors import NUM_CLASSES, build, on_resnet_18, run_ranks, small_config
from sl_detectron.audit.score_annotations import score_annotations
from sl_detectron.data.images import BrokenImage

HEIGHT, WIDTH = 120, 160


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Two images with two and no annotations, and one with a crowd region beside one."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    boxes = [[(10, 10, 50, 60), (60, 20, 150, 100)], [], [(5, 5, 80, 90), (20, 20, 140, 110)]]
    records, next_id = [], 0
    for i, image_boxes in enumerate(boxes):
        path = folder / f"{i}.png"
        Image.fromarray(rng.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(path)
        annotations = []
        for k, box in enumerate(image_boxes):
            crowd = {"iscrowd": 1} if (i, k) == (2, 1) else {}
            annotations.append(
                {
                    "bbox": list(box),
                    "bbox_mode": 0,
                    "category_id": (i + 2 * k) % NUM_CLASSES,
                    "annotation_id": next_id,
                    **crowd,
                }
            )
            next_id += 1
        records.append({"file_name": str(path), "image_id": i, "annotations": annotations})
    return records


def model_of(detector: str, **opts):
    cfg = small_config(detector, superloss=False)
    if detector == "standard":
        cfg = on_resnet_18(cfg)
    cfg.INPUT.MIN_SIZE_TEST = HEIGHT  # boxes stay where they are
    for key, value in opts.items():
        cfg.MODEL.ROI_BOX_HEAD[key] = value
    return build(cfg).eval(), cfg


def features_of(model, record):
    pixels = np.asarray(Image.open(record["file_name"]))[:, :, ::-1].transpose(2, 0, 1)
    images = model.preprocess_image([{"image": torch.tensor(pixels.copy())}])
    return images, model.backbone(images.tensor)


@pytest.mark.parametrize("detector", ["standard", "c4", "cascade"])
def test_roi_heads(detector, records):
    model, cfg = model_of(detector)
    answers = score_annotations(model, records, cfg, detect=True)
    assert answers.ids.tolist() == [0, 1, 2]
    assert answers.probabilities.shape == (3, NUM_CLASSES)
    torch.testing.assert_close(answers.probabilities.sum(dim=1), torch.ones(3))
    assert len(answers.detections) == len(records)
    # The first image by hand, as detectron2's heads compute it.
    _, features = features_of(model, records[0])
    boxes = Boxes(torch.tensor([a["bbox"] for a in records[0]["annotations"]]).float())
    labels = torch.tensor([a["category_id"] for a in records[0]["annotations"]])
    heads = model.roi_heads
    with torch.no_grad():
        if detector == "c4":
            x = heads._shared_roi_transform([features["res4"]], [boxes]).mean(dim=[2, 3])
            scores = [heads.box_predictor(x)[0]]
        elif detector == "standard":
            x = heads.box_pooler([features[f] for f in heads.box_in_features], [boxes])
            scores = [heads.box_predictor(heads.box_head(x))[0]]
        else:
            scores, boxes_of_stages = cascade_scores(heads, features, boxes)
    background = torch.stack([s.softmax(dim=1)[:, -1] for s in scores]).mean(0)
    torch.testing.assert_close(answers.background[:2], background)
    if detector != "cascade":  # the box of the given class
        proposals = [Instances((HEIGHT, WIDTH), proposal_boxes=boxes)]
        with torch.no_grad():
            outputs = heads.box_predictor(x if detector == "c4" else heads.box_head(x))
        all_boxes = heads.box_predictor.predict_boxes(outputs, proposals)[0]
        drawn = Boxes(all_boxes.view(2, -1, 4)[torch.arange(2), labels])
    else:
        drawn = boxes_of_stages[-1]
    drawn.clip((HEIGHT, WIDTH))
    torch.testing.assert_close(answers.boxes[:2], drawn.tensor)
    losses = torch.stack([F.cross_entropy(s, labels, reduction="none") for s in scores]).mean(0)
    softmax = torch.stack([s[:, :-1].softmax(dim=1) for s in scores]).mean(0)
    torch.testing.assert_close(answers.losses[:2], losses)
    torch.testing.assert_close(answers.probabilities[:2], softmax)


def cascade_scores(heads, features, boxes):
    scores, drawn = [], []
    proposals = [Instances((HEIGHT, WIDTH), proposal_boxes=boxes)]
    for stage in range(heads.num_cascade_stages):
        inputs = [features[f] for f in heads.box_in_features]
        predictions = heads._run_stage(inputs, proposals, stage)
        scores.append(predictions[0])
        boxes = heads.box_predictor[stage].predict_boxes(predictions, proposals)
        drawn.append(Boxes(boxes[0].clone()))
        proposals = heads._create_proposals_from_boxes(boxes, [(HEIGHT, WIDTH)])
    return scores, drawn


def test_sigmoid_classifier(records):
    model, cfg = model_of("standard", USE_SIGMOID_CE=True)
    if not getattr(model.roi_heads.box_predictor, "use_sigmoid_ce", False):
        pytest.skip("this detectron2 has no sigmoid classification")
    answers = score_annotations(model, records, cfg)
    labels = torch.tensor([0, 2, 2])
    target = F.one_hot(labels, NUM_CLASSES).float()
    losses = F.binary_cross_entropy(answers.probabilities, target, reduction="none").sum(dim=1)
    torch.testing.assert_close(answers.losses, losses)


def test_retinanet_answers_by_its_anchors(records):
    model, cfg = model_of("retinanet")
    answers = score_annotations(model, records, cfg, detect=True)
    assert set(answers.ids.tolist()) == {0, 1, 2}
    assert len(answers.detections) == len(records)
    labels = torch.tensor([0, 2, 2])
    # The matching of detectron2's own training.
    _, features = features_of(model, records[0])
    features = [features[f] for f in model.head_in_features]
    target = Instances((HEIGHT, WIDTH))
    target.gt_boxes = Boxes(torch.tensor([a["bbox"] for a in records[0]["annotations"]]).float())
    target.gt_classes = labels[:2]
    (matched,), _ = model.label_anchors(model.anchor_generator(features), [target])
    foreground = (matched >= 0) & (matched < NUM_CLASSES)
    assert int((answers.ids < 2).sum()) == int(foreground.sum())
    assert labels[answers.ids[answers.ids < 2]].tolist() == matched[foreground].tolist()
    torch.testing.assert_close(answers.background, 1 - answers.probabilities.amax(dim=1))
    assert answers.boxes.shape == (len(answers.ids), 4)
    assert (answers.boxes >= 0).all()
    logits = torch.logit(answers.probabilities.double())
    one_hot = F.one_hot(labels[answers.ids], NUM_CLASSES).double()
    focal = sigmoid_focal_loss(
        logits.float(), one_hot.float(), cfg.MODEL.RETINANET.FOCAL_LOSS_ALPHA, 2.0
    ).sum(1)
    torch.testing.assert_close(answers.losses, focal, rtol=1e-4, atol=1e-6)


def test_other_detectors_are_refused(records):
    with pytest.raises(ValueError, match="a Linear cannot be audited"):
        score_annotations(torch.nn.Linear(1, 1), records, small_config("standard", False))


def score_all(records, detector, num_workers, path):
    """Also as the job of a process: the main one leaves its result in a file."""
    model, cfg = model_of(detector)
    cfg.DATALOADER.NUM_WORKERS = num_workers
    scores = score_annotations(model, records, cfg, detect=True)
    assert (scores is None) == (comm.get_rank() > 0)
    if scores is not None:
        torch.save(scores, path)


def assert_same(paths):
    one, other = (torch.load(path, weights_only=False) for path in paths)
    for name, values in one._asdict().items():
        if name != "detections":
            assert len(values) > 0
            assert torch.equal(values, getattr(other, name)), name
    assert len(one.detections) == len(other.detections) > 1
    for mine, its in zip(one.detections, other.detections):
        assert mine.image_size == its.image_size
        assert torch.equal(mine.pred_boxes.tensor, its.pred_boxes.tensor)
        assert torch.equal(mine.scores, its.scores)
        assert torch.equal(mine.pred_classes, its.pred_classes)


@pytest.mark.parametrize("detector", ["standard", "retinanet"])
def test_workers_change_nothing(records, detector, tmp_path):
    paths = [tmp_path / f"{n}.pth" for n in (0, 2)]
    for num_workers, path in zip((0, 2), paths):
        score_all(records, detector, num_workers, path)
    assert_same(paths)


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
@pytest.mark.parametrize("num_images", [1, 3])  # the other process has none; two and one
def test_processes_share_the_images(records, num_images, tmp_path):
    images = records[:num_images] * 2 if num_images > 1 else records[:1]
    paths = tmp_path / "one.pth", tmp_path / "two.pth"
    score_all(images, "standard", 0, paths[0])
    run_ranks(score_all, 2, images, "standard", 1, paths[1])
    if num_images > 1:
        assert_same(paths)
    one, two = (torch.load(path, weights_only=False) for path in paths)
    assert torch.equal(one.probabilities, two.probabilities)


def test_nothing_to_score_is_an_error(records):
    model, cfg = model_of("standard")
    cfg.DATALOADER.NUM_WORKERS = 0
    for images in ([], [records[1]]):
        with pytest.raises(ValueError, match="the training sets have no annotation"):
            score_annotations(model, images, cfg)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_image_that_cannot_be_read(records, num_workers, tmp_path):
    """Its error is one line from a worker too; skipped, it leaves the places of the others."""
    (tmp_path / "broken.png").write_bytes(b"no image")
    broken = {**records[0], "file_name": str(tmp_path / "broken.png"), "image_id": "bad"}
    model, cfg = model_of("standard")
    cfg.DATALOADER.NUM_WORKERS = num_workers
    with pytest.raises(BrokenImage, match="image 'bad'"):
        score_annotations(model, [broken, records[2]], cfg)
    cfg.DATALOADER.BROKEN_IMAGES = "skip"
    scores = score_annotations(model, [broken, records[2]], cfg, detect=True)
    assert scores.ids.tolist() == [2]
    assert [len(found) > 0 for found in scores.detections] == [False, True]


def test_boxes_are_in_pixels_of_the_image_on_disk(records):
    """The network sees it twice as large; untrained, it draws a box near its proposal."""
    model, cfg = model_of("standard")
    cfg.INPUT.MIN_SIZE_TEST = 2 * HEIGHT
    answers = score_annotations(model, records, cfg, detect=True)
    annotated = [a["bbox"] for r in records for a in r["annotations"] if "iscrowd" not in a]
    assert (answers.boxes - torch.tensor(annotated)).abs().max() < 5


@pytest.mark.parametrize("detector", ["standard", "retinanet"])
def test_a_pass_with_detection_looks_at_an_image_once(detector, records):
    model, cfg = model_of(detector)
    looks = []
    counter = model.backbone.register_forward_hook(lambda *_: looks.append(1))
    scores = score_annotations(model, records, cfg, detect=True)
    assert len(looks) == len(records)
    counter.remove()
    # Nothing of ours stays, and all is the same as without sharing, bit for bit.
    assert not model.backbone._forward_hooks
    with torch.no_grad():
        for record, found in zip(records, scores.detections):
            pixels = np.asarray(Image.open(record["file_name"]))[:, :, ::-1].transpose(2, 0, 1)
            item = {"image": torch.tensor(pixels.copy()), "height": HEIGHT, "width": WIDTH}
            alone = model([item])[0]["instances"]
            assert torch.equal(found.scores, alone.scores)
            assert torch.equal(found.pred_boxes.tensor, alone.pred_boxes.tensor)
    plain = score_annotations(model, records, cfg)
    for name in ("ids", "losses", "probabilities", "background"):
        assert torch.equal(getattr(plain, name), getattr(scores, name))
    # Boxes cost trips to the host, and only kinds of suspects need them.
    assert len(scores.boxes) == len(scores.ids)
    assert plain.boxes.shape == (0, 4)


def test_features_of_another_input_are_not_taken(records):
    """A detector may call its backbone on several inputs, as for test-time augmentation."""
    model, cfg = model_of("standard")

    class Flips(type(model)):
        def inference(self, *args, **kwargs):
            found = super().inference(*args, **kwargs)
            self.backbone(self.preprocess_image(args[0]).tensor.flip(3))
            return found

    plain = score_annotations(model, records, cfg)
    model.__class__ = Flips
    scores = score_annotations(model, records, cfg, detect=True)
    for name in ("losses", "probabilities", "background"):
        assert torch.equal(getattr(plain, name), getattr(scores, name))


@pytest.mark.parametrize("detector", ["standard", "retinanet"])
def test_a_mirrored_view_is_that_of_a_mirrored_file(detector, records, tmp_path):
    model, cfg = model_of(detector)
    mirrored = []
    for record in records:
        path = tmp_path / f"{record['image_id']}.png"
        Image.open(record["file_name"]).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
        annotations = [
            {**a, "bbox": [WIDTH - a["bbox"][2], a["bbox"][1], WIDTH - a["bbox"][0], a["bbox"][3]]}
            for a in record["annotations"]
        ]
        mirrored.append({**record, "file_name": str(path), "annotations": annotations})
    first = score_annotations(model, records, cfg, detect=True)
    second = score_annotations(model, mirrored, cfg, detect=True)
    cfg.TEST.AUG.ENABLED = True
    both = score_annotations(model, records, cfg, detect=True)
    # Samples of an image as it is, then those of its mirrored view.
    order = torch.cat([first.ids, second.ids]).argsort(stable=True)
    ordered = both.ids.argsort(stable=True)
    left, top, right, bottom = second.boxes.unbind(dim=1)
    unmirrored = torch.stack([WIDTH - right, top, WIDTH - left, bottom], dim=1)
    pairs = {"boxes": (first.boxes, unmirrored)}
    for name in ("ids", "losses", "probabilities", "background"):
        pairs[name] = getattr(first, name), getattr(second, name)
    for name, pair in pairs.items():
        expected = torch.cat(pair)[order]
        torch.testing.assert_close(getattr(both, name)[ordered], expected, rtol=1e-5, atol=1e-4)
    for one, other in zip(first.detections, both.detections):
        assert torch.equal(one.scores, other.scores)
    cfg.TEST.AUG.FLIP = False
    assert torch.equal(score_annotations(model, records, cfg, detect=True).ids, first.ids)
