"""Checkpoints that are whole or absent, and that are data, never code."""

import logging
import os
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qs

import torch
from detectron2.checkpoint import DetectionCheckpointer

from ..files import replacing

__all__ = ["SafeCheckpointer", "atomic_write", "read_checkpoint"]

logger = logging.getLogger(__name__)

# What the model zoo's .pkl files are made of: dicts of arrays.
_ARRAYS = {
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
}
_OF_TRAINING = re.compile(r"model_(\d{7}|final)\.pth")


def read_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """Read a checkpoint of any kind that detectron2 knows, without running code from it.

    Args:
        path: a .pth file, or .pkl (model zoo, Caffe2) or .pyth (pycls)

    Returns:
        what the file holds, tensors on the CPU

    Raises:
        FileNotFoundError: there is no such file
        ValueError: it is cut off, no checkpoint, or holds more than tensors and arrays
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        if path.suffix == ".pkl":
            with open(path, "rb") as file:
                content = _ArrayUnpickler(file, encoding="latin1").load()
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except _Refused as error:
        raise ValueError(
            f"{path} is refused as a checkpoint: it is a pickle with {error}"
        ) from None
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(f"{path} {_why_unreadable(str(error) or repr(error))}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a checkpoint: it holds a {type(content).__name__}")
    return content


def _why_unreadable(message: str) -> str:
    """One line of what torch says in a page."""
    code = re.search(r"GLOBAL (\S+)|[Uu]nsupported class (\S+)", message)
    if code:
        name = code[1] or code[2]
        return f"is refused as a checkpoint: it is a pickle with {name}, which is not data"
    if "weights_only" in message:
        return "cannot be read as a checkpoint: it is no file of tensors that torch has saved"
    return f"cannot be read as a checkpoint: {message.strip().splitlines()[0]}"


class SafeCheckpointer(DetectionCheckpointer):
    """:class:`DetectionCheckpointer` that survives being killed and refuses pickles with code.

    A file is written beside its place, flushed to the disk and renamed, so that it is whole under
    its name; a last checkpoint that cannot be read makes way for the one before it.
    """

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
        path = Path(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        with atomic_write(path) as file:
            torch.save(data, file)
        self.tag_last_checkpoint(path.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Write the name of the last checkpoint, in one piece."""
        with atomic_write(Path(self.save_dir, "last_checkpoint")) as file:
            file.write(last_filename_basename.encode())

    def has_checkpoint(self) -> bool:
        """Whether a training has left a checkpoint to go on from."""
        return bool(self._candidates())

    def get_checkpoint_file(self) -> str:
        """The checkpoint to go on from; empty where there is none."""
        candidates = self._candidates()
        return str(candidates[0]) if candidates else ""

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """As the base class; goes back to an earlier checkpoint if the last one is damaged.

        Raises:
            FileNotFoundError: there is no such file
            ValueError: it cannot be read, or to resume: none can
        """
        if self.save_dir and self.save_to_disk:
            for stale in Path(self.save_dir).glob(".*.tmp"):  # of a process that was killed
                stale.unlink()
        candidates = self._candidates() if resume else []
        if not candidates:
            return self.load(path, checkpointables=[])
        reasons = []
        for candidate in candidates:
            try:
                return self.load(str(candidate))
            except (ValueError, OSError) as error:
                reasons.append(str(error))
                logger.warning("%s; going back to the checkpoint before it", error)
        raise ValueError(f"cannot resume: no checkpoint can be read. {'; '.join(reasons)}")

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As the base class, without code from the file.

        Raises:
            FileNotFoundError: there is no such file
            ValueError: it is not a checkpoint
        """
        try:
            return super().load(path, *args, **kwargs)
        except AssertionError as error:  # fvcore's word for a missing file
            raise FileNotFoundError(f"MODEL.WEIGHTS: there is no checkpoint {path}") from error
        finally:
            self._parsed_url_during_load = None

    def _candidates(self) -> list[Path]:
        """Checkpoints to resume from: the last one, then those of the training, newest first."""
        if not self.save_dir:
            return []
        folder = Path(self.save_dir)
        pointer = folder / "last_checkpoint"
        found = []
        if pointer.is_file():
            found = [folder / pointer.read_text(errors="replace").strip()]
        of_training = [p for p in folder.glob("model_*.pth") if _OF_TRAINING.fullmatch(p.name)]
        # Names, not times: a copy of a folder has the times of copying.
        found += sorted(of_training, key=lambda p: p.name, reverse=True)
        return [p for p in dict.fromkeys(found) if p.is_file()]

    def _load_file(self, filename: str) -> dict[str, Any]:
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
        query = parse_qs(getattr(self._parsed_url_during_load, "query", ""))
        if query.get("matching_heuristics") == ["True"]:
            content["matching_heuristics"] = True
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
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name too must survive a crash of the machine
    finally:
        os.close(folder)


class _Refused(Exception):
    pass


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAYS:
            raise _Refused(f"{module}.{name}")
        return super().find_class(module, name)
