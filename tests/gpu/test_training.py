"""Trainings on a GPU: NCCL, a kill and the resume after it, mixed precision that overflows."""

import math
import os
import re
import signal
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from torch.nn.parallel import DistributedDataParallel

from helpers.detectors import build, make_batch, run_losses, run_ranks, small_config
from helpers.devkit import random_devkit, write_devkit
from helpers.trainings import FASTER_RCNN, RETINANET, assert_equal, curve, run
from sl_detectron.data.toy import TOY_CLASS_NAMES
from sl_detectron.engine.finite import FiniteAMPTrainer
from sl_detectron.losses import SuperLoss, ranks, tau

pytestmark = pytest.mark.gpu
NUM_ITERS = 8


def detector():
    cfg = small_config("retinanet", superloss=True)
    cfg.MODEL.DEVICE = "cuda"
    return build(cfg)


def taus(model):
    return [m.tau for m in model.modules() if isinstance(m, SuperLoss)]


def test_nccl_with_one_rank(tmp_path, monkeypatch):
    """DDP, and the sum over ranks of tau, which one process alone leaves out."""
    alone, rank = detector(), detector()
    store = f"file://{tmp_path}/store"
    dist.init_process_group("nccl", init_method=store, rank=0, world_size=1)
    try:
        for module in (ranks, tau):
            monkeypatch.setattr(module, "num_processes", lambda: 2)
        distributed = DistributedDataParallel(rank, device_ids=[0], broadcast_buffers=False)
        for _ in range(2):
            losses, _, _ = run_losses(distributed, make_batch())
            expected, _, _ = run_losses(alone, make_batch())
            torch.testing.assert_close(losses, expected, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(taus(rank), taus(alone), rtol=1e-3, atol=0)
    finally:
        dist.destroy_process_group()


def train_on_rank(folder):
    number = dist.get_rank()
    model = detector()
    distributed = DistributedDataParallel(model, device_ids=[number], broadcast_buffers=False)
    for step in range(3):
        run_losses(distributed, make_batch(seed=10 * step + number))
    torch.save([t.cpu() for t in taus(model)], folder / f"{number}.pth")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_nccl_with_two_ranks(tmp_path):
    run_ranks(train_on_rank, 2, tmp_path)
    first, second = (torch.load(tmp_path / f"{i}.pth") for i in range(2))
    assert first == second


@pytest.fixture(scope="module")
def noise_set(tmp_path_factory):
    """Options for a VOC set of images of noise: no other file is needed."""
    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("noise")
    images = {
        f"{i}{k}": v for i in range(4) for k, v in random_devkit(rng, TOY_CLASS_NAMES).items()
    }
    write_devkit(root, images, "train")
    for name in images:
        pixels = rng.integers(0, 256, (200, 200, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{name}.jpg")
    classes = list(TOY_CLASS_NAMES)
    entry = {"NAME": "noise_train", "ROOT": str(root), "SPLIT": "train", "CLASSES": classes}
    return ["DATASETS.CUSTOM_VOC", [entry], "DATASETS.TRAIN", "('noise_train',)"]


def kill_and_resume(config, opts, folder):
    """Two trainings, one of them killed and resumed: their folders, and what they printed."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    # In its deterministic form torchvision's ROIAlign is compiled; here it need not be.
    env |= {"TORCH_COMPILE_DISABLE": "1", "TORCHDYNAMO_DISABLE": "1"}
    whole, parts = folder / "whole", folder / "parts"
    opts = [*opts, "MODEL.DEVICE", "cuda", "SOLVER.MAX_ITER", NUM_ITERS]
    opts += ["SOLVER.CHECKPOINT_PERIOD", 4]
    train = partial(run, env, config, deterministic=1)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(train, whole, *opts)
        killed, text = train(parts, *opts, kill_at=5)
        assert killed == -signal.SIGKILL, text
        code, text = train(parts, *opts, resume=True)
        assert code == 0, text
        assert "Starting training from iteration 4" in text
        code, text = first.result()
        assert code == 0, text
    return whole, parts, text


TRAININGS = {
    "retinanet": (RETINANET, ()),
    "retinanet with AMP": (RETINANET, ("SOLVER.AMP.ENABLED", True)),
    # Two samples a bin: ROIAlign's deterministic form holds all of them in memory.
    "faster_rcnn": (FASTER_RCNN, ("MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO", 2)),
}


@pytest.fixture(scope="module")
def trainings(noise_set, tmp_path_factory):
    """All at once: {name: what will have become of it}."""
    folder = tmp_path_factory.mktemp("trainings")
    with ThreadPoolExecutor() as pool:
        return {
            name: pool.submit(kill_and_resume, config, [*noise_set, *opts], folder / name)
            for name, (config, opts) in TRAININGS.items()
        }


@pytest.mark.parametrize("name", TRAININGS)
def test_resumed_losses_equal_the_uninterrupted_ones(name, trainings, measured):
    """Bit for bit. Operators without a deterministic form are named, and did not differ here."""
    whole, parts, text = trainings[name].result()
    named = set(re.findall(r"(\w+) does not have a deterministic implementation", text))
    for operator in sorted(named):
        measured(f"{name}: no deterministic form of {operator}", 1, "")
    assert curve(parts) == curve(whole)
    final = [torch.load(p / "model_final.pth", weights_only=True) for p in (whole, parts)]
    assert_equal(*final)


class Learner(torch.nn.Module):
    """One weight, times the numbers of a batch: losses that go through the SuperLoss."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.criterion = SuperLoss("ExpAvg", 0.25)

    def forward(self, batch):
        losses = self.weight * torch.tensor(batch[0]["numbers"], device="cuda")
        return {"loss": self.criterion(losses).mean()}


def amp_trainer(batches, scale):
    model = Learner().cuda()
    scaler = torch.amp.GradScaler("cuda", init_scale=scale)
    loader = [[{"numbers": numbers, "image_id": str(i)}] for i, numbers in enumerate(batches)]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    return FiniteAMPTrainer(model, loader, optimizer, grad_scaler=scaler)


def test_a_step_whose_gradient_overflows_is_left_out():
    """The scale shrinks until it fits; tau takes in the losses, which are finite."""
    trainer = amp_trainer([[10.0, 20.0, 30.0]] * 20, scale=2.0**127)
    trainer.train(0, 1)
    assert trainer.model.weight == 1
    assert trainer.grad_scaler.get_scale() == 2.0**126
    assert trainer.model.criterion.tau == 20
    trainer.train(1, 20)
    assert trainer.model.weight < 1
    assert trainer.model.criterion.tau.isfinite()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_it(bad):
    """With its image named; neither weight nor tau is moved by it."""
    trainer = amp_trainer([[1.0, 3.0], [1.0, bad], [1.0, 3.0]], scale=1024.0)
    with pytest.raises(FloatingPointError, match=r"iteration 1: loss is .*; images \['1'\]"):
        trainer.train(0, 3)
    reference = amp_trainer([[1.0, 3.0]], scale=1024.0)
    reference.train(0, 1)
    assert trainer.model.weight == reference.model.weight
    expected = 0.9 * 2 + 0.1 * float(trainer.model.weight)
    assert float(trainer.model.criterion.tau) == pytest.approx(expected, rel=1e-6)
