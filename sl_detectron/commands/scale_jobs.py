"""What a large dataset costs: the jobs that are measured, each in a process of its own."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from multiprocessing import active_children
from pathlib import Path

import torch
import torch.distributed as dist

from ..audit.compact_tracker import build_tracker
from ..audit.files import write_audit
from ..audit.ranking import audit_annotations
from ..audit.records import top_suspects
from ..audit.report import write_report
from ..data.annotation_ids import AnnotationTable
from ..data.datasets import check_dataset
from ..data.formats.annotations import Record
from ..data.registered_sets import register_coco_datasets
from ..label_noise import SymmetricNoise, build_noisy_train_loader, noisy_sets
from .scale_evaluation import coco_evaluation_job, evaluation_job
from .scale_figures import MB, Figures, measured, own_bytes, peak_bytes, status_bytes
from .scale_sets import SAMPLES, made_table, made_tracker, predictions, write_coco
from .scale_training import step_job, toy_step_job

__all__ = ["JOBS"]

NUM_WORKERS = 2
# Steps over which the cost of one is averaged.
STEPS = 20


def statistics_job(num_annotations: int, num_classes: int) -> Figures:
    """The tracker: bytes an annotation, in memory and in a checkpoint, and a step."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(num_classes, (num_annotations,), generator=generator)
    tracker = build_tracker(labels, num_classes)
    held = sum(buffer.nbytes for buffer in tracker.buffers())
    steps = []
    for _ in range(STEPS):
        ids = torch.randint(num_annotations, (SAMPLES // 8,), generator=generator)
        ids = ids.repeat_interleave(8)
        steps.append((ids, *predictions(labels[ids], num_classes, generator)))
    tracker(*steps[0])
    start = time.process_time()
    for step in steps:
        tracker(*step)
    seconds = (time.process_time() - start) / STEPS
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "state.pth")
        torch.save(tracker.state_dict(), path)
        stored = path.stat().st_size
    return {
        "memory": (held / num_annotations, "bytes an annotation"),
        "in a checkpoint": (stored / num_annotations, "bytes an annotation"),
        "step": (1e3 * seconds, "ms"),
    }


@contextmanager
def _scale_set(num_annotations: int, num_classes: int) -> Iterator[None]:
    """A COCO json that is registered as "scale_set" and is there in this context."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_coco(Path(folder, "set.json"), num_annotations, num_classes)
        entry = {"NAME": "scale_set", "JSON_FILE": str(path), "IMAGE_ROOT": "none://images"}
        register_coco_datasets([entry])
        yield


def _few_fields(record: Record) -> Record:
    """A mapper that reads no image."""
    return {"image_id": record["image_id"], "num": len(record["annotations"])}


def loader_job(num_annotations: int, num_classes: int) -> Figures:
    """From a COCO json to batches with 20 % symmetric noise, and what each worker holds."""
    figures: Figures = {}
    with _scale_set(num_annotations, num_classes):
        before = peak_bytes()
        with measured(figures, "check and read"):
            check_dataset("scale_set", keep=True)
        with measured(figures, "noise and numbers"):
            sets = noisy_sets("scale_set", [SymmetricNoise(rate=0.2, seed=0)])
        with measured(figures, "loader and table"):
            loader = build_noisy_train_loader(
                sets=sets, mapper=_few_fields, total_batch_size=16, num_workers=NUM_WORKERS
            )
        figures["main process, peak"] = ((peak_bytes() - before) / MB, "MB")
        del sets
        batches = iter(loader)
        sum(len(batch) for batch in islice(batches, 200))
        held = [own_bytes(worker.pid) for worker in active_children()]
        loader.close()
        if len(held) < NUM_WORKERS:
            raise ValueError(f"{len(held)} of {NUM_WORKERS} loader workers were found")
        figures["each worker, private memory"] = (max(held) / MB, "MB")
    return figures


def stock_loader_job(num_annotations: int, num_classes: int) -> Figures:
    """detectron2's reading of the same file into its serialized records."""
    from detectron2.data import DatasetFromList, get_detection_dataset_dicts

    figures: Figures = {}
    with _scale_set(num_annotations, num_classes):
        before = peak_bytes()
        with measured(figures, "detectron2: read, filter, serialize"):
            DatasetFromList(get_detection_dataset_dicts("scale_set"))
        figures["detectron2: main process, peak"] = ((peak_bytes() - before) / MB, "MB")
    return figures


def audit_job(num_annotations: int, num_classes: int) -> Figures:
    """From the statistics in a checkpoint to the ranking, its files and a report."""
    figures: Figures = {}
    table = made_table("scale_set", num_annotations, num_classes)
    labels = torch.tensor(table.labels())
    tracker = made_tracker(labels, num_classes, table.fingerprint)
    before = status_bytes("self", "VmRSS")
    with tempfile.TemporaryDirectory() as folder:
        table.write(folder)
        del table
        with measured(figures, "rank"):
            audit = audit_annotations(AnnotationTable.read(folder), tracker.statistics())
        with measured(figures, "write json and csv"):
            write_audit(audit, folder)
        with measured(figures, "report, 3 suspects a class"):
            write_report(top_suspects(audit, 3, per_class=True), folder)
        files = sum(path.stat().st_size for path in Path(folder).iterdir())
    if len(audit.annotations) != num_annotations:
        raise ValueError(f"{len(audit.annotations)} of {num_annotations} annotations were ranked")
    figures["files"] = (files / MB, "MB")
    figures["peak"] = ((peak_bytes() - before) / MB, "MB")
    figures["all"] = (sum(v for v, unit in figures.values() if unit == "s"), "s")
    return figures


def ranks_job(num_annotations: int, num_classes: int) -> Figures:
    """Two gloo ranks: what they exchange at a checkpoint and at a correction."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(
            _rank, args=(folder, num_annotations, num_classes), nprocs=2, join=True
        )
        return dict(torch.load(Path(folder, "figures.pt"), weights_only=True))


def _rank(rank: int, folder: str, num_annotations: int, num_classes: int) -> None:
    torch.set_num_threads(1)
    store = f"file://{os.path.join(folder, 'store')}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    generator = torch.Generator().manual_seed(rank)
    labels = torch.arange(num_annotations) % num_classes
    tracker = made_tracker(labels, num_classes, 0)
    figures: Figures = {}
    for name, collective in (
        ("move to the main rank", tracker.synchronize),
        ("means on every rank", tracker.mean_probabilities),
    ):
        ids = torch.randint(num_annotations, (SAMPLES,), generator=generator)
        tracker(ids, *predictions(labels[ids], num_classes, generator))
        dist.barrier()
        before, start = peak_bytes(), time.perf_counter()
        collective()
        dist.barrier()
        figures[f"{name}, by the clock"] = (time.perf_counter() - start, "s")
        figures[f"{name}, more memory"] = ((peak_bytes() - before) / MB, "MB")
    if rank == 0:
        torch.save(figures, os.path.join(folder, "figures.pt"))
    dist.barrier()
    dist.destroy_process_group()


JOBS: dict[str, Callable[[int, int], Figures]] = {
    "statistics": statistics_job,
    "loader": loader_job,
    "stock loader": stock_loader_job,
    "audit": audit_job,
    "ranks": ranks_job,
    "evaluation": evaluation_job,
    "COCO evaluation": coco_evaluation_job,
    "toy steps": toy_step_job,
    "steps": step_job,
}
