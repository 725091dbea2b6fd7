"""How many images have each class, as the federated loss asks, counted on noisy labels."""

from collections.abc import Mapping, Sequence

from detectron2.data import MetadataCatalog

from ..data.formats.annotations import Record

__all__ = ["set_image_counts"]

_KEY = "class_image_count"
# Sets whose counts are from here: another noise makes others.
_counted: set[str] = set()


def set_image_counts(sets: Mapping[str, Sequence[Record]], num_classes: int) -> None:
    """Set ``class_image_count`` in the metadata of sets that have none, as LVIS has.

    detectron2 draws the negative classes of a federated loss by it. It takes one list for all sets,
    so the images of all are counted.

    Args:
        sets: {dataset name: noisy dataset dicts}
        num_classes: K
    """
    lacking = [n for n in sets if n in _counted or not MetadataCatalog.get(n).get(_KEY)]
    if not lacking:
        return
    counts = [0] * num_classes
    for records in sets.values():
        for record in records:
            for class_id in {a["category_id"] for a in record.get("annotations", ())}:
                counts[class_id] += 1
    # A class of no image is drawn as one of one image: a weight of 0 could leave too few to draw.
    entries = [{"id": i, "image_count": max(count, 1)} for i, count in enumerate(counts)]
    for name in lacking:
        metadata = MetadataCatalog.get(name)
        vars(metadata).pop(_KEY, None)  # metadata refuses another value for a key
        metadata.set(**{_KEY: entries})
        _counted.add(name)
