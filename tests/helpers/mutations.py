"""Random damage to good VOC and COCO files, and strict readers that say which results are right."""

import copy
import json
import random
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

from helpers.field_cases import CLASSES, HEIGHT, IMAGES, WIDTH

# {image file: [(class, box XYXY in pixels, difficult)]}
Content = dict[str, list[tuple[str, tuple[float, ...], bool]]]

TEXTS = [
    "",
    " ",
    "abc",
    "0.0",
    "-5",
    "1e9",
    "nan",
    "Unspecified",
    "true",
    "12,5",
    "0",
    "1",
    "disc ",
]
VALUES = [None, "", "abc", "7", 7, 7.5, -5, 1e9, float("nan"), True, [], {}, [1, 2], {"a": 1}]


def mutate_xml(root: Path, rng: random.Random) -> str:
    """Change one annotation file of a VOC folder; returns what was done."""
    path = root / "Annotations" / f"{rng.choice(IMAGES)}.xml"
    tree = ET.parse(path)
    parents = {child: parent for parent in tree.iter() for child in parent}
    element = rng.choice(list(parents))
    leaves = [e for e in parents if not len(e)]
    what = rng.choice(("drop", "retype", "swap", "empty", "shift", "rename"))
    if what == "drop":
        parents[element].remove(element)
    elif what == "retype":
        rng.choice(leaves).text = rng.choice(TEXTS)
    elif what == "swap":
        one, other = rng.sample(leaves, 2)
        one.text, other.text = other.text, one.text
    elif what == "empty":
        for child in list(element):
            element.remove(child)
        element.text = None
    elif what == "shift":
        parents[element].remove(element)
        targets = [e for e in tree.iter() if e is not element and e not in set(element.iter())]
        target = rng.choice([t for t in targets if t is not parents.get(element)])
        target.insert(rng.randint(0, len(target)), element)
    else:
        element.tag = rng.choice((element.tag.upper(), f"{element.tag}s", "item"))
    tree.write(path, encoding="utf-8")
    return f"{what} in {path.name}"


def mutate_json(path: Path, rng: random.Random) -> str:
    """Change one value of a COCO json; returns what was done."""
    content = json.loads(path.read_text())
    places = [*_places(content)]
    holder, key = rng.choice(places)
    what = rng.choice(("drop", "retype", "swap", "empty", "shift", "rename"))
    value = holder[key]
    if what == "drop":
        del holder[key]
    elif what == "retype":
        kinds = [str(value), [value], {"value": value}, *VALUES]
        kinds += [float(value)] if isinstance(value, int) else []
        holder[key] = rng.choice(kinds)
    elif what == "swap":
        holder2, key2 = rng.choice(places)
        if not _inside(holder[key], holder2) and not _inside(holder2[key2], holder):
            holder[key], holder2[key2] = copy.deepcopy(holder2[key2]), copy.deepcopy(value)
    elif what == "empty":
        holder[key] = type(value)() if value is not None else None
    elif what == "shift":
        del holder[key]
        dicts = [h for h, _ in _places(content) if isinstance(h, dict) and h is not holder]
        rng.choice(dicts or [content])[str(key)] = value
    elif isinstance(holder, dict):
        holder[rng.choice((f"{key}s", f"{key}".upper(), "item"))] = holder.pop(key)
    path.write_text(json.dumps(content))
    return f"{what} of {key}"


def _places(value: Any) -> Any:
    """Every (holder, key) of a nested value."""
    keys = value if isinstance(value, dict) else range(len(value))
    for key in list(keys):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


def _inside(value: Any, holder: Any) -> bool:
    if value is holder:
        return True
    return isinstance(value, dict | list) and any(h is holder for h, _ in _places(value))


def strict_voc(root: Path) -> Content | None:
    """The content of a VOC folder that keeps to the letter of the form; else None."""
    content: Content = {}
    for image in IMAGES:
        tree = ET.parse(root / "Annotations" / f"{image}.xml").getroot()
        try:
            size = tree.find("size")
            sizes = [int(size.find(key).text) for key in ("width", "height")]
            assert sizes == [WIDTH, HEIGHT]
            names = [e.tag for e in tree.iter()]
            objects = tree.findall("object")
            assert names.count("object") == names.count("bndbox") == len(objects)
            assert {e.tag for e in tree} <= {"size", "object"}
            content[f"{image}.jpg"] = [_strict_object(obj) for obj in objects]
        except (AssertionError, AttributeError, TypeError, ValueError):
            return None
    return content


def _strict_object(obj: ET.Element) -> tuple[str, tuple[float, ...], bool]:
    tags = [e.tag for e in obj]
    assert tags.count("name") == tags.count("bndbox") == 1
    assert set(tags) <= {"name", "bndbox", "difficult"}
    assert tags.count("difficult") <= 1
    box = obj.find("bndbox")
    assert sorted(e.tag for e in box) == ["xmax", "xmin", "ymax", "ymin"]
    x0, y0, x1, y1 = (float(box.find(key).text) for key in ("xmin", "ymin", "xmax", "ymax"))
    # Off by up to 2 pixels, as by counting from 0.
    assert -1 <= x0 <= x1 <= WIDTH + 2
    assert -1 <= y0 <= y1 <= HEIGHT + 2
    assert obj.find("name").text.strip() in CLASSES
    difficult = obj.findtext("difficult", "0")
    assert difficult in ("0", "1")
    return obj.find("name").text.strip(), (x0 - 1, y0 - 1, x1, y1), difficult == "1"


def strict_coco(path: Path) -> Content | None:
    """The content of a COCO json that keeps to the letter of the form; else None."""
    data = json.loads(path.read_text())
    try:
        assert set(data) >= {"images", "annotations", "categories"}
        names = {c["id"]: c["name"] for c in data["categories"]}
        assert all(isinstance(name, str) and name for name in names.values())
        assert len(names) == len(data["categories"]) == len(set(names.values())) == len(CLASSES)
        files = {i["id"]: i["file_name"] for i in data["images"]}
        assert len(files) == len(data["images"])
        assert all(type(i) is int for i in (*names, *files))
        assert all([i["width"], i["height"]] == [WIDTH, HEIGHT] for i in data["images"])
        content: Content = {name: [] for name in files.values()}
        ids = [a["id"] for a in data["annotations"]]
        assert len(set(ids)) == len(ids)
        for a in data["annotations"]:
            x, y, w, h = a["bbox"]
            assert type(a["id"]) is int
            assert all(type(v) in (int, float) for v in a["bbox"])
            assert min(x, y) >= -2
            assert min(w, h) >= 1
            assert x + w <= WIDTH + 2
            assert y + h <= HEIGHT + 2
            # That of a mask is not that of its box.
            assert a.get("segmentation") or a["area"] == w * h
            assert a["iscrowd"] in (0, 1)
            if not a["iscrowd"]:
                box = (x, y, x + w, y + h)
                content[files[a["image_id"]]].append((names[a["category_id"]], box, False))
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError):
        return None
    return content
