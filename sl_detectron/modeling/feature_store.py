"""Features of a frozen trunk on disk: computed once for all runs of a sweep, and for evaluation.

One file per image, which appears whole or not at all, so that processes need no lock. A file is a
head of fixed size (JSON: what it is of, the shapes, a checksum) and the features one after another.
"""

import hashlib
import json
import logging
import math
import os
import time
import zlib
from pathlib import Path

import torch
from torch import Tensor

from ..files import replacing

__all__ = ["STORE_DTYPES", "FeatureStore"]

logger = logging.getLogger(__name__)

STORE_DTYPES = {"float32": torch.float32, "float16": torch.float16}
GIB = 2**30
# Bytes; a multiple of 64, so that the features behind it are aligned.
_HEAD = 512
# Other processes fill the store too: its size is read again whenever this one has added so much.
_BYTES_BETWEEN_LOOKS = 2**26
# A file that a killed process left behind; a writer needs milliseconds.
_STALE_SECONDS = 3600


class FeatureStore:
    """Features by trunk and image, in a folder that any number of processes share.

    Args:
        folder: made when the first features are stored
        limit: bytes that the folder may hold, give or take 64 MiB for each process that writes to
            it; a full store is read, and what it lacks is computed again every time
        dtype: of the files, a key of :data:`STORE_DTYPES`

    Raises:
        ValueError: a bad limit or dtype, or a folder that cannot be one

    Example:
        >>> import tempfile
        >>> store = FeatureStore(tempfile.mkdtemp(), 2**20)
        >>> key = store.key(torch.zeros(3, 32, 32))
        >>> store.read("trunk", key) is None
        True
        >>> store.write("trunk", key, [torch.ones(1, 2, 2)])
        >>> store.read("trunk", key)
        [tensor([[[1., 1.],
                 [1., 1.]]])]
    """

    def __init__(self, folder: str | Path, limit: float, dtype: str = "float32"):
        if not limit > 0:
            raise ValueError(f"the limit of the store must be above 0 GiB; got {limit / GIB:g}")
        if dtype not in STORE_DTYPES:
            raise ValueError(f"the dtype must be one of {[*STORE_DTYPES]}; got {dtype!r}")
        self.folder, self.limit = Path(folder), limit
        parents = (self.folder, *self.folder.absolute().parents)
        if not next(p for p in parents if p.exists()).is_dir():
            raise ValueError(f"{folder} cannot be a folder: a file is in its place or above it")
        self._dtype, self._dtype_name = STORE_DTYPES[dtype], dtype
        # Bytes in the folder when it was last read; None before the first use.
        self._size: int | None = None
        self._added = self._logged_size = 0
        self._stopped = False

    @staticmethod
    def key(image: Tensor) -> str:
        """Of a float32 image on the CPU, by its shape and every bit of it."""
        pixels = hashlib.sha256(repr(tuple(image.shape)).encode())
        pixels.update(image.contiguous().numpy().data)
        return pixels.hexdigest()[:32]

    def read(self, trunk: str, key: str) -> list[Tensor] | None:
        """The float32 features of an image; None if they are not there or not what was written.

        Args:
            trunk: a name for the weights and all else that decides the features
            key: from :meth:`key`
        """
        if self._size is None:
            self._look(trunk)
        path = self._path(trunk, key)
        try:
            size = path.stat().st_size
        except OSError:
            return None
        try:
            content = _parse(_map(path, size), [trunk, key], self._dtype)
            return [x.float() for x in content]
        except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())
            logger.warning(
                "%s is computed again: the stored features do not match (%s)", path, reason
            )
            return None

    def write(self, trunk: str, key: str, features: list[Tensor]) -> None:
        """Keep the features of an image, if there is room.

        A disk that fails costs time, not the training: a warning, and nothing more is written.
        """
        if self._stopped:
            return
        if self._size is None or self._added >= _BYTES_BETWEEN_LOOKS:
            self._look(trunk)
        stored = [x.detach().to(self._dtype).contiguous() for x in features]
        num_bytes = _HEAD + sum(x.numel() * x.element_size() for x in stored)
        if (self._size or 0) + self._added + num_bytes > self.limit:
            self._stop("is full; raise its limit, or remove the folder to start again")
            return
        path = self._path(trunk, key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path, shared=True) as partial, partial.open("wb") as file:
                file.write(_head([trunk, key], stored))
                for x in stored:
                    file.write(x.numpy().data)
        except OSError as error:
            self._stop(f"takes no more features: {error}")
        self._added += num_bytes

    def round(self, features: list[Tensor]) -> list[Tensor]:
        """The features as they come back from the store."""
        return [x.to(self._dtype).float() for x in features]

    def _path(self, trunk: str, key: str) -> Path:
        # 256 folders: file systems are slow with tens of thousands of files in one.
        return self.folder / self._part(trunk) / key[:2] / f"{key[2:]}.features"

    def _part(self, trunk: str) -> str:
        return f"{trunk}-{self._dtype_name}"

    def _look(self, trunk: str) -> None:
        """Read the size of the folder, log it if new, and remove what killed processes left."""
        size = num_images = 0
        for parent, _, names in os.walk(self.folder):
            for path in (Path(parent, name) for name in names):
                try:
                    status = path.stat()
                    if path.suffix == ".tmp" and time.time() - status.st_mtime > _STALE_SECONDS:
                        path.unlink()
                        continue
                except OSError:  # another process was faster
                    continue
                size += status.st_size
                num_images += path.suffix == ".features" and self._part(trunk) in path.parts
        if self._size is None or size > 1.25 * self._logged_size:
            logger.info(
                "Store of trunk features %s: %.2f of at most %.2f GiB; %d images of %s",
                *(self.folder, size / GIB, self.limit / GIB, num_images, self._part(trunk)),
            )
            self._logged_size = size
        self._size, self._added = size, 0

    def _stop(self, reason: str) -> None:
        self._stopped = True
        logger.warning("Store of trunk features %s %s", self.folder, reason)


def _map(path: Path, size: int) -> Tensor:
    if size <= _HEAD:
        raise ValueError(f"{size} bytes")
    # Mapped, not read: processes share the pages, and the bytes are copied once, into the batch.
    return torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)


def _head(name: list[str], stored: list[Tensor]) -> bytes:
    checksum = 0
    for x in stored:
        checksum = zlib.crc32(x.numpy().data, checksum)
    shapes = [[*x.shape] for x in stored]
    head = json.dumps({"of": name, "shapes": shapes, "crc32": checksum}).encode()
    if len(head) > _HEAD:
        raise ValueError(f"{len(stored)} features are too many for one file")
    return head.ljust(_HEAD)


def _parse(content: Tensor, name: list[str], dtype: torch.dtype) -> list[Tensor]:
    """The features in a file's bytes, without a copy; any of ValueError's kin where it has none."""
    head = json.loads(content[:_HEAD].numpy().tobytes())
    body = content[_HEAD:]
    if head["of"] != name:
        raise ValueError(f"they are of {head['of']}")
    if zlib.crc32(body.numpy().data) != head["crc32"]:
        raise ValueError("wrong checksum")
    shapes = head["shapes"]
    parts = body.view(dtype).split([math.prod(shape) for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
