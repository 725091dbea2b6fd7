"""Checkpoints that are whole or absent, and which of a run's is the last."""

import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qs

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm

from ..files import replacing
from .reading import read_checkpoint

__all__ = ["SafeCheckpointer", "atomic_write", "last_checkpoint"]

logger = logging.getLogger(__name__)

_FINAL = "model_final.pth"
_POINTER = "last_checkpoint"
_PERIODIC = re.compile(r"model_\d{7}\.pth")


def last_checkpoint(folder: str | os.PathLike) -> Path:
    """The checkpoint that a training run wrote last.

    Raises:
        FileNotFoundError: there is none
    """
    found = _checkpoints(folder)
    if not found:
        raise FileNotFoundError(f"{folder} is not the output of a training run: no checkpoint")
    return found[0]


def _checkpoints(folder: str | os.PathLike) -> list[Path]:
    """Those of a training run: the one it wrote last, then the others, newest first.

    The final one comes last: it may be that of a shorter run which was then extended.
    """
    if not folder:
        return []
    folder, found = Path(folder), []
    if (folder / _POINTER).is_file():
        found = [folder / (folder / _POINTER).read_text(errors="replace").strip()]
    # By names, not times: a copy of a folder has the times of copying.
    periodic = [p for p in folder.glob("model_*.pth") if _PERIODIC.fullmatch(p.name)]
    found += [*sorted(periodic, reverse=True), folder / _FINAL]
    return [p for p in dict.fromkeys(found) if p.is_file()]


class SafeCheckpointer(DetectionCheckpointer):
    """:class:`DetectionCheckpointer` that survives being killed and refuses pickles with code.

    A file is written beside its place, flushed to the disk and renamed, so that it is whole under
    its name; a last checkpoint that cannot be read makes way for the one before it.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        # {file: its content}, of the checkpoint that was chosen: it is read once.
        self._content: dict[str, dict[str, Any]] = {}
        self._resumed_from: Path | None = None

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``name``.pth and make it the last checkpoint.

        Raises:
            OSError: the disk is full or not writable; the checkpoints before are untouched
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict()}
        data |= {key: part.state_dict() for key, part in self.checkpointables.items()}
        data |= kwargs
        self._resumed_from = None
        path = Path(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        with atomic_write(path) as file:
            torch.save(data, file)
        self.tag_last_checkpoint(path.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Write the name of the last checkpoint, in one piece."""
        with atomic_write(Path(self.save_dir, _POINTER)) as file:
            file.write(last_filename_basename.encode())

    def has_checkpoint(self) -> bool:
        """Whether a training run has left a checkpoint to resume from."""
        return bool(self.get_checkpoint_file())

    def get_checkpoint_file(self) -> str:
        """The checkpoint to resume from; empty if there is none."""
        return str(next(iter(_checkpoints(self.save_dir)), ""))

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """As the base class; goes back to an earlier checkpoint if the last one is damaged.

        Raises:
            FileNotFoundError: there is no such file
            ValueError: it cannot be read, or to resume: none can on all ranks, or its state does
                not fit
        """
        if resume:
            self._remove_stale()
        chosen = self._resumed_from = self._choose() if resume else None
        if chosen is None:
            return self.load(path, checkpointables=[])
        try:
            return self.load(str(chosen))
        except (ValueError, KeyError, RuntimeError) as error:
            # The file is whole: an earlier one would fit no better.
            raise ValueError(
                f"cannot resume from {chosen}, which does not match this model and config: {error}"
            ) from error
        finally:
            self._content = {}

    def complete(self) -> None:
        """Copy the checkpoint that a complete training run was resumed from to the final one.

        This is for a run that was killed between its last periodic checkpoint and the final one. A
        final checkpoint of a shorter run is replaced; after :meth:`save` nothing is done.
        """
        final, source = Path(self.save_dir, _FINAL), self._resumed_from
        if source is None or source.parent != final.parent or not self.save_to_disk:
            return
        if not _PERIODIC.fullmatch(source.name):
            return
        with open(source, "rb") as file, atomic_write(final) as copy:
            shutil.copyfileobj(file, copy)
        self.tag_last_checkpoint(_FINAL)

    def _remove_stale(self) -> None:
        """Remove files that a killed run left half-written; an evaluation must not touch them."""
        if self.save_dir and self.save_to_disk and "trainer" in self.checkpointables:
            for pattern in (".model_*.pth.tmp", f".{_POINTER}.tmp"):
                for stale in Path(self.save_dir).glob(pattern):
                    stale.unlink(missing_ok=True)

    def _choose(self) -> Path | None:
        """The newest checkpoint that the first rank can read; all ranks take that one, or none."""
        found = self._newest_readable() if comm.is_main_process() else None
        chosen, reason = comm.all_gather(found)[0]
        if chosen is not None and not comm.is_main_process():
            reason = self._why_unreadable(chosen)
        reasons = [r for r in comm.all_gather(reason) if r]
        if reasons:
            raise ValueError(f"cannot resume: {'; '.join(dict.fromkeys(reasons))}")
        return chosen

    def _newest_readable(self) -> tuple[Path | None, str]:
        reasons: list[str] = []
        for candidate in _checkpoints(self.save_dir):
            reason = self._why_unreadable(candidate)
            if not reason:
                return candidate, ""
            reasons.append(reason)
            logger.warning("%s; falling back to the checkpoint before it", reason)
        return None, f"no checkpoint can be read. {'; '.join(reasons)}" if reasons else ""

    def _why_unreadable(self, path: Path) -> str:
        try:
            self._content = {str(path): self._parse(str(path))}
        except (ValueError, OSError) as error:
            return str(error)
        return ""

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As the base class, without code from the file.

        Raises:
            FileNotFoundError: there is no such file
            ValueError: it is not a checkpoint
        """
        try:
            return super().load(path, *args, **kwargs)
        except AssertionError as error:
            if not str(error).startswith("Checkpoint "):  # fvcore's message for a missing file
                raise
            raise FileNotFoundError(f"MODEL.WEIGHTS: there is no checkpoint {path}") from error
        finally:
            self._parsed_url_during_load = None

    def take(self, path: str | os.PathLike, content: dict[str, Any]) -> None:
        """Let the next :meth:`load` of a file take its content, which was read before."""
        self._content = {os.fspath(path): {**content}}

    def _load_file(self, filename: str) -> dict[str, Any]:
        content = self._content.pop(filename, None) or self._parse(filename)
        query = parse_qs(getattr(self._parsed_url_during_load, "query", ""))
        if query.get("matching_heuristics") == ["True"]:
            content["matching_heuristics"] = True
        return content

    def _parse(self, filename: str) -> dict[str, Any]:
        content = read_checkpoint(filename)
        if filename.endswith(".pyth"):
            state = content.get("model_state", content)
            weights = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
            return {"model": weights, "__author__": "pycls", "matching_heuristics": True}
        if filename.endswith(".pkl") and not ("model" in content and "__author__" in content):
            blobs = content.get("blobs", content)
            weights = {k: v for k, v in blobs.items() if not k.endswith("_momentum")}
            return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}
        if "model" not in content:
            content = {"model": content}
        if not isinstance(content["model"], dict):
            raise ValueError(f"{filename} is not a checkpoint: it holds no weights by name")
        return content


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears under its name when it is whole, or not at all.

    Args:
        path: of the file; one that exists is replaced

    Raises:
        OSError: it cannot be written; nothing is left behind
    """
    try:
        with replacing(path) as part, open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:
        # torch reports a full disk as a RuntimeError, with the OSError as its context.
        cause = error if isinstance(error, OSError) else error.__context__
        reason = cause.strerror if isinstance(cause, OSError) else str(error).splitlines()[0]
        raise OSError(f"cannot write {path}: {reason}") from error
    # The new name must survive a crash of the machine too; some file systems cannot sync a folder.
    with suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
