"""Checkpoints of all kinds that detectron2 reads, as data, never as code."""

import logging
import os
import pickle
import re
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

__all__ = ["check_checkpoint", "read_checkpoint"]

logger = logging.getLogger(__name__)

# The modules of array and scalar constructors in pickles of numpy 1 and numpy 2.
_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
# What the .pkl files of the model zoo are made of: dicts of arrays. Converters leave tensors too.
_ARRAYS = {
    *("collections.OrderedDict", "_codecs.encode", "numpy.ndarray", "numpy.dtype"),
    *(f"{module}.{name}" for module in _MULTIARRAY for name in ("_reconstruct", "scalar")),
    "torch._utils._rebuild_tensor_v2",
}
# Before this version weights_only could be made to run code (CVE-2025-32434).
_SAFE_TORCH = "2.6"


def read_checkpoint(path: str | os.PathLike) -> dict[str, Any]:
    """Read a checkpoint of any kind that detectron2 supports, without running code from it.

    Args:
        path: a .pth file, or .pkl (model zoo, Caffe2) or .pyth (pycls)

    Returns:
        the content of the file, tensors on the CPU

    Raises:
        FileNotFoundError: there is no such file
        ValueError: it is cut off, no checkpoint, or holds more than tensors and arrays
    """
    check_checkpoint(path)
    path = Path(path)
    try:
        if path.suffix == ".pkl":
            with open(path, "rb") as file:
                content = _ArrayUnpickler(file, encoding="latin1").load()
        else:
            _warn_of_old_torch()
            with _numpy_allowed():
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(f"{path} {_why_unreadable(str(error) or repr(error))}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a checkpoint: it holds a {type(content).__name__}")
    return content


def check_checkpoint(path: str | os.PathLike | None, key: str = "") -> None:
    """Refuse a checkpoint that does not exist; addresses are checked when they are downloaded.

    Args:
        path: a file, with or without a query as in "model.pkl?matching_heuristics=True", an address
            such as detectron2://..., or "" or None for none
        key: of the config that names it

    Raises:
        FileNotFoundError: there is no such file
    """
    name = str(path or "")
    if name and "://" not in name and not Path(name.partition("?")[0]).is_file():
        raise FileNotFoundError(f"{key}: there is no checkpoint {name}".removeprefix(": "))


@cache
def _warn_of_old_torch() -> None:
    if torch.__version__ < _SAFE_TORCH:
        logger.warning(
            "torch %s is older than 2.6, in which weights_only loading was fixed "
            "(CVE-2025-32434): load only checkpoints that you trust",
            torch.__version__,
        )


def _numpy_allowed() -> AbstractContextManager:
    """Arrays and scalars of numpy load too: a custom hook may have them in its state."""
    if torch.__version__ < _SAFE_TORCH:  # it accepts only the names of its numpy
        return nullcontext()
    array, number = np.zeros(1), np.float64(0)
    reconstruct, scalar = array.__reduce__()[0], number.__reduce__()[0]
    dtypes = {type(np.dtype(code)) for code in np.typecodes["All"] if code not in "OV"}
    by_name: list[Any] = [
        (made, f"{module}.{name}")
        for module in _MULTIARRAY
        for made, name in ((reconstruct, "_reconstruct"), (scalar, "scalar"))
    ]
    return torch.serialization.safe_globals([np.ndarray, np.dtype, *dtypes, *by_name])


def _why_unreadable(message: str) -> str:
    """One line for the long message of torch."""
    code = re.search(r"GLOBAL (\S+)|[Uu]nsupported class (\S+)", message)
    if code:
        name = code[1] or code[2]
        return f"is refused as a checkpoint: it is a pickle with {name}, which is not data"
    if "weights_only" in message:
        return "cannot be read as a checkpoint: torch did not save it, or it does not hold tensors"
    return f"cannot be read as a checkpoint: {message.strip().splitlines()[0]}"


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch.storage", "_load_from_bytes"):  # torch's would run code
            _warn_of_old_torch()
            return lambda data: torch.load(BytesIO(data), map_location="cpu", weights_only=True)
        if f"{module}.{name}" not in _ARRAYS:
            raise pickle.UnpicklingError(f"unsupported class {module}.{name}")
        return super().find_class(module, name)
