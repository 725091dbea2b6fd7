"""The base class of noises, their registry, and symmetric noise.

A noise is a frozen description: the share of annotations, the seed, and what happens to them. It
has no random generator. Each annotation gets a row of 64-bit draws, hashed from its identity, so
that neither other annotations nor the order of the dataset can change its noise.

Shapes: K classes; one row of draws is (D,) integers in [0, 2^64).
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from detectron2.config import CfgNode
from fvcore.common.registry import Registry
from omegaconf import OmegaConf

from ..data.formats.annotations import Annotation

__all__ = [
    "DRAWS_PER_ANNOTATION",
    "NOISE_REGISTRY",
    "Draws",
    "Size",
    "Noise",
    "Noisy",
    "SymmetricNoise",
    "below",
    "fraction",
    "instantiated",
]

MODES = ("bernoulli", "exact")
# One decision, and at most four numbers for a box.
DRAWS_PER_ANNOTATION = 5

Draws = Sequence[int]
Size = tuple[int, int]
Noisy = Annotation | None


class _Registry(Registry):
    """fvcore's, where ``@register("name")`` gives another name than that of the class."""

    def register(self, obj: Any = None) -> Any:
        def add(noise: type[Noise]) -> type[Noise]:
            self._do_register(obj, noise)
            return noise

        return add if isinstance(obj, str) else super().register(obj)


# Noises by their name in a config: DATASETS.LABEL_NOISE.TYPE, or in small letters the node in
# DATASETS.LABEL_NOISE that has the RATE and SEED of this noise alone.
NOISE_REGISTRY = _Registry("NOISE")


@dataclass(frozen=True, kw_only=True)
class Noise:
    """What all noises share; a subclass defines what happens to an annotation.

    Args:
        rate: fraction of the annotations in [0, 1]
        seed: any integer; it and the dataset's name decide which annotations are hit
        mode: "bernoulli", every annotation decided by its own draw, or "exact", the
            round(rate * n) annotations of the whole set with the smallest draws

    Raises:
        ValueError: a value is out of range; the message starts with the argument's name

    Example:
        >>> class FirstClass(Noise):
        ...     def corrupt(self, annotation, draws, size, num_classes):
        ...         return {**annotation, "category_id": 0}
        >>> FirstClass(rate=0.4).kind
        'FirstClass'
    """

    # Part of the hash of every draw; the class's name, unless a subclass sets another.
    kind: ClassVar[str] = ""
    # Whether `corrupt` gives one more annotation instead of a replacement.
    adds: ClassVar[bool] = False
    # Whether `corrupt` needs the image's height and width.
    uses_size: ClassVar[bool] = False

    rate: float
    seed: int = 0
    mode: str = "bernoulli"

    def __init_subclass__(cls) -> None:
        if "kind" not in cls.__dict__:
            cls.kind = cls.__name__

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise ValueError(f"rate must be in [0, 1]; got {self.rate!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ValueError(f"seed must be an integer; got {self.seed!r}")
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {MODES}; got {self.mode!r}")

    @classmethod
    def from_config(
        cls, node: CfgNode, class_names: Sequence[str] | None, **values: Any
    ) -> "Noise":
        """Build the noise from its config: each argument is the key of its name in capitals.

        Args:
            node: ``DATASETS.LABEL_NOISE``, or the noise's node in it
            class_names: K names; None to check the values before any dataset is read
            values: of arguments that are not keys of the node
        """
        names = (field.name for field in fields(cls))
        given = {name: node[name.upper()] for name in names if name.upper() in node}
        return cls(**{**given, **values})

    def check_classes(self, num_classes: int) -> None:
        """Raise ValueError if this noise has no meaning for a list of K classes."""

    def applies_to(self, annotation: Annotation) -> bool:
        """Whether the annotation can be hit, and counts in n of the exact mode."""
        return True

    def weight_of(self, annotation: Annotation) -> float:
        """How often the annotation is hit in Bernoulli mode, in units of ``rate``."""
        return 1  # an integer, by which a bound of 64 bits stays exact

    def corrupt(self, annotation: Annotation, draws: Draws, size: Size, num_classes: int) -> Noisy:
        """Return the noisy form of one annotation that was hit.

        Args:
            annotation: detectron2 annotation; not changed
            draws: at least four integers, uniform in [0, 2^64)
            size: (height, width) of the image in pixels; (0, 0) unless ``uses_size``
            num_classes: K

        Returns:
            the annotation that takes its place (or comes beside it, where ``adds``: then only its
            class and box count), None to leave it out
        """
        raise NotImplementedError


@NOISE_REGISTRY.register("symmetric_inclusive")
@NOISE_REGISTRY.register("symmetric")
@dataclass(frozen=True, kw_only=True)
class SymmetricNoise(Noise):
    """Replace the class by another, each equally likely; background is never drawn.

    Args:
        include_true: draw from all K classes instead of the K - 1 wrong ones, so that only
            ``rate * (K - 1) / K`` of the labels become wrong
    """

    kind: ClassVar[str] = "symmetric"
    include_true: bool = False

    @classmethod
    def from_config(cls, node: CfgNode, class_names: Sequence[str] | None, **values: Any) -> Noise:
        inclusive = node.TYPE == "symmetric_inclusive"
        return super().from_config(node, class_names, include_true=inclusive, **values)

    def check_classes(self, num_classes: int) -> None:
        if num_classes < 2:
            raise ValueError(f"symmetric noise needs at least 2 classes; got {num_classes}")

    def corrupt(self, annotation: Annotation, draws: Draws, size: Size, num_classes: int) -> Noisy:
        true = annotation["category_id"]
        if self.include_true:
            return {**annotation, "category_id": below(num_classes, draws[0])}
        wrong = below(num_classes - 1, draws[0])
        return {**annotation, "category_id": wrong + (wrong >= true)}


def instantiated(noises: Sequence[Any]) -> tuple[Any, ...]:
    """The dataclasses of a list, of which a LazyConfig makes configs."""
    made: list[Any] = [OmegaConf.to_object(n) if OmegaConf.is_config(n) else n for n in noises]
    return tuple(made)


def below(bound: int, draw: int) -> int:
    """Return an integer in [0, bound); the bias is below bound / 2^64."""
    return (draw * bound) >> 64


def fraction(draw: int) -> float:
    """Return a number in [0, 1)."""
    # 53 bits: all 64 could round up to 1.
    return (draw >> 11) / (1 << 53)
