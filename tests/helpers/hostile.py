"""Bad inputs by the hundred: what is put into a small set of files, and what must be named."""

import json
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sl_detectron.model_zoo import get_config_file

CLASSES = ["cat", "dog"]
IMAGES = ("a", "b", "c")
TOY = get_config_file("Toy/faster_rcnn_superloss.yaml")

Change = Callable[[Path], None]


@dataclass
class Case:
    """One call of a tool.

    Args:
        name: of the test
        tool: file in tools/
        args: its arguments; ``{w}`` is the folder of files
        culprit: regular expression that the error line must match
        change: what is done to the files before
        may_leave: names that may be in ``out`` afterwards
    """

    name: str
    tool: str
    args: list[str]
    culprit: str
    change: Change = lambda w: None
    may_leave: set[str] = field(default_factory=set)


def xml(objects: str, size: str = "<size><width>64</width><height>48</height></size>") -> str:
    return f"<annotation>{size}{objects}</annotation>"


def obj(name: str = "cat", box: tuple = (5, 6, 40, 30), extra: str = "") -> str:
    corners = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box))
    return f"<object><name>{name}</name>{extra}<bndbox>{corners}</bndbox></object>"


def make_world(w: Path) -> None:
    """A VOC folder, detections of it, a COCO json, a config, decisions and a checkpoint."""
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (w / "voc" / folder).mkdir(parents=True)
    for i, name in enumerate(IMAGES):
        (w / "voc/Annotations" / f"{name}.xml").write_text(xml(obj(CLASSES[i % 2])))
        pixels = np.random.default_rng(i).integers(0, 255, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(w / "voc/JPEGImages" / f"{name}.jpg")
    (w / "voc/ImageSets/Main/train.txt").write_text("\n".join(IMAGES))
    (w / "results").mkdir()
    for name in CLASSES:
        (w / "results" / f"comp4_det_train_{name}.txt").write_text("a 0.9 5 6 40 30\n")
    (w / "results.json").write_text(json.dumps([detection()]))
    (w / "coco.json").write_text(json.dumps(coco()))
    (w / "config.yaml").write_text(config())
    (w / "decisions.json").write_text(json.dumps(decisions(w)))
    torch.save({"model": {"w": torch.zeros(2)}}, w / "weights.pth")
    (w / "secret.txt").write_text("SECRET")


def config(extra: str = "") -> str:
    return f"_BASE_: {TOY}\n{extra}"


def detection(**values) -> dict:
    return {"image_id": "a", "category_id": 0, "bbox": [4, 5, 36, 25], "score": 0.9, **values}


def coco(**values) -> dict:
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "iscrowd": 0}
    return {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 64, "height": 48}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [annotation],
        **values,
    }


def decisions(w: Path, **values) -> dict:
    row = {"dataset": "pets", "image_id": "a", "index": 0, "bbox": [4, 5, 40, 30]}
    row |= {"given": "cat", "verdict": "wrong", "label": "dog", **values}
    sources = {"pets": {"format": "voc", "root": str(w / "voc"), "split": "train"}}
    return {"version": 1, "classes": CLASSES, "sources": sources, "decisions": [row]}


def write(name: str, content: str | bytes) -> Change:
    data = content.encode() if isinstance(content, str) else content
    return lambda w: (w / name).write_bytes(data.replace(b"{w}", str(w).encode())) and None


def remove(name: str) -> Change:
    return lambda w: (w / name).unlink()


# How each tool comes to read the VOC folder.
def train(*opts: str, config_file: str = "{w}/config.yaml") -> list[str]:
    voc = "[{{'NAME': '{name}', 'ROOT': '{w}/voc', 'SPLIT': 'train', 'CLASSES': ['cat', 'dog']}}]"
    given = ["DATASETS.CUSTOM_VOC", voc, "DATASETS.TRAIN", "('{name}',)", "DATASETS.TEST", "()"]
    given += ["MODEL.ROI_HEADS.NUM_CLASSES", "2", "OUTPUT_DIR", "{w}/out", "MODEL.DEVICE", "cpu"]
    given += ["SOLVER.MAX_ITER", "1", "SOLVER.IMS_PER_BATCH", "3"]
    return ["--config-file", config_file, *given, *opts]


INJECT = ["--voc-root", "{w}/voc", "--split", "train", "--classes", "cat,dog", "--rate", "0.5"]
INJECT += ["--output", "{w}/out"]
EVALUATE = ["--voc-root", "{w}/voc", "--split", "train", "--classes", "cat,dog", "--metric", "07"]
EVALUATE += ["--output", "{w}/out.json"]
BY_TEXT = [*EVALUATE, "--detections", "{w}/results"]
BY_JSON = [*EVALUATE, "--detections", "{w}/results.json"]
COCO = ["--coco-json", "{w}/coco.json", "--rate", "0.5", "--output", "{w}/out"]
AUDIT = ["--config-file", "{w}/config.yaml", "--checkpoint", "{w}/weights.pth"]
AUDIT += ["--output", "{w}/out", "--opts", *train()[2:]]
APPLY = ["--apply", "{w}/decisions.json", "--output", "{w}/out"]

LAUGHS = "<!DOCTYPE a [<!ENTITY l0 'lol'>" + "".join(
    f"<!ENTITY l{i} '{f'&l{i - 1};' * 10}'>" for i in range(1, 10)
)
EXTERNAL = "<!DOCTYPE a [<!ENTITY x SYSTEM 'file://{w}/secret.txt'>]>"
EBCDIC = b'<?xml version="1.0" encoding="cp037"?>' + (LAUGHS + "]>" + xml("")).encode("cp037")

ANNOTATIONS: dict[str, tuple[str | bytes, str]] = {
    "billion laughs": (LAUGHS + "]>" + xml(obj("&l9;")), "entity"),
    "external entity": (EXTERNAL + xml(obj("&x;")), "entity"),
    "parameter entity": ("<!DOCTYPE a [<!ENTITY % p SYSTEM 'x'> %p;]>" + xml(obj()), "entity"),
    "entities in EBCDIC": (EBCDIC, "entity"),
    "entities in UTF-16": ((LAUGHS + "]>" + xml("")).encode("utf-16"), "entity"),
    "undeclared entity": (xml(obj("&nobody;")), "not XML"),
    "empty": ("", "not XML"),
    "text": ("hello", "not XML"),
    "binary": (bytes(range(1, 255)), "not XML"),
    "cut off": (xml(obj())[:60], "not XML"),
    "unknown encoding": ("<?xml version='1.0' encoding='no'?>" + xml(obj()), "not XML"),
    "two roots": (xml(obj()) * 2, "not XML"),
    "not UTF-8": (b"<annotation>\xff\xfe\xfa</annotation>", "not XML"),
    "object without name": (xml(obj("")), "object 0 has no <name>"),
    "object without box": (xml("<object><name>cat</name></object>"), "no <bndbox>"),
    "word as coordinate": (xml(obj(box=("x", 6, 40, 30))), "needs numbers.*'x'"),
    "no coordinate": (xml(obj(box=("", 6, 40, 30))), "needs numbers"),
    "nan": (xml(obj(box=("nan", 6, 40, 30))), "xmin"),
    "infinite": (xml(obj(box=(5, 6, "inf", 30))), "xmax"),
    "huge": (xml(obj(box=(5, 6, "1e999", 30))), "xmax"),
    "swapped corners": (xml(obj(box=(40, 6, 5, 30))), "xmin.*xmax"),
    "upside down": (xml(obj(box=(5, 30, 40, 6))), "ymin.*ymax"),
    "second object": (xml(obj() + obj(box=("?", 1, 2, 3))), r"object 1 \('cat'\)"),
    "wrapper": (xml(f"<objects>{obj()}</objects>"), "read from <annotation><object>"),
    "other tags": (xml(obj().replace("object", "item")), "read from <annotation><object>"),
    "other root": ("<images><image/></images>", "read from <annotation><object>"),
    "fractions": (xml(obj(box=(0.1, 0.1, 0.5, 0.9))), "fractions of the image"),
    "outside": (xml(obj(box=(70, 6, 90, 30))), "outside of its image of 64 x 48"),
}
# For tools that need every class; evaluation leaves other classes out.
CLASS_FLAWS: dict[str, tuple[str | bytes, str]] = {
    "misspelt class": (xml(obj("cta")), "'cta'.*cat"),
    "class with a path": (xml(obj("../../cat")), r"'\.\./\.\./cat'"),
    "class with markup": (xml(obj("&lt;script&gt;")), "'<script>'"),
}
IMAGE_SETS: dict[str, tuple[str | bytes, str]] = {
    "empty": ("\n\n", r"train\.txt holds no image id"),
    "up": ("a\n../secret", r"'\.\./secret' leads out"),
    "up and down": ("a\nx/../../secret", "leads out"),
    "absolute": ("/etc/passwd", "'/etc/passwd' leads out"),
    "a dot": ("./a", r"'\./a' as 'a'"),
    "double slash": ("x//a", "'x//a' as 'x/a'"),
    "twice": ("a\nb\na", "'a' 2 times"),
    "unknown": ("a\nnobody", "'nobody'.*no annotation"),
    "not UTF-8": (b"a\n\xff\xfe", "not UTF-8"),
    "binary": (b"\x80" * 99, "not UTF-8"),
}


def voc_cases() -> list[Case]:
    tools = {"train_net.py": train(), "inject_noise.py": INJECT, "evaluate_voc.py": BY_TEXT}
    cases = []
    for tool, args in tools.items():
        flaws = ANNOTATIONS if tool == "evaluate_voc.py" else {**ANNOTATIONS, **CLASS_FLAWS}
        for name, (content, words) in flaws.items():
            change = write("voc/Annotations/b.xml", content)
            cases.append(Case(f"xml {name}", tool, args, rf"b\.xml.*{words}", change))
        for name, (content, words) in IMAGE_SETS.items():
            change = write("voc/ImageSets/Main/train.txt", content)
            cases.append(Case(f"image set {name}", tool, args, words, change))
        gone = remove("voc/ImageSets/Main/train.txt")
        cases.append(Case("no image set", tool, args, r"no image set \S*train\.txt", gone))
        no_xml = remove("voc/Annotations/b.xml")
        cases.append(Case("no annotation", tool, args, "'b'.*no annotation", no_xml))
    return cases


PYTHON = "!!python/object/apply:os.system ['touch {w}/code_has_run']"
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 64)
)
CONFIGS: dict[str, tuple[str | bytes, str]] = {
    "code": (config(f"OUTPUT_DIR: {PYTHON}\n"), "line 2: refused.*python/object/apply"),
    "new object": ("A: !!python/object/new:os.system ['touch {w}/code_has_run']", "refused"),
    "name": ("A: !!python/name:os.system", "refused.*python/name"),
    "module": ("A: !!python/module:os", "refused.*python/module"),
    "tuple": ("A: !!python/tuple [1, 2]", "refused.*python/tuple"),
    "code in a key": (f"? {PYTHON}\n: 1", "refused"),
    "code in a list": (f"DATASETS: {{CUSTOM_VOC: [{PYTHON}]}}", "refused"),
    "own tag": ("A: !mine 3", "refused.*!mine"),
    "code in the base": ("_BASE_: base.yaml\n", r"base\.yaml.*_BASE_ of .*config\.yaml.*refused"),
    "base of its own": ("_BASE_: config.yaml\n", "its own base"),
    "base without file": ("_BASE_: nowhere.yaml\n", r"nowhere\.yaml.*does not exist"),
    "base that is a number": ("_BASE_: 3\n", "_BASE_ must be a path; got 3"),
    "base that is a map": ("_BASE_: {a: 1}\n", "_BASE_ must be a path"),
    "base that is a folder": ("_BASE_: voc\n", "does not exist"),
    "aliases by the billion": (
        "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"{c}: &{c} [{','.join([f'*{b}'] * 10)}]\n" for b, c in zip("abcdef", "bcdefg")),
        "alias .* is inside",
    ),
    "merges by the billion": (MERGES, "alias .* is inside"),
    "alias of itself": ("a: &a [*a]", "alias .* is inside|not a config"),
    "list": ("- 1\n- 2", "holds a list"),
    "empty": ("", "holds nothing"),
    "text": ("hello", "holds a str"),
    "unclosed": ("MODEL: [", "not a config"),
    "tabs": ("MODEL:\n\tA: 1", "not a config"),
    "two documents": ("A: 1\n---\nB: 2", "not a config"),
    "not UTF-8": (b"MODEL: \xff\xfe", "not UTF-8"),
    "binary": (bytes(range(256)), r"config\.yaml"),
    "unhashable key": ("? [1, {a: 2}]\n: 1", r"config\.yaml"),
    "unknown key": (config("MODEL: {SUPERLOS: {CLS: 1}}"), "SUPERLOS"),
    "wrong type": (config("SOLVER: {MAX_ITER: many}"), "SOLVER.MAX_ITER"),
    "section as value": (config("SOLVER: 3"), "SOLVER"),
    "value as section": (config("SEED: {A: 1}"), "SEED"),
    "deep": ("[" * 5000, r"config\.yaml"),
    "undefined alias": ("a: *nobody", "nobody"),
    "key that is a number": (config("3: 4"), r"3|config\.yaml"),
}
NOISE = "DATASETS.LABEL_NOISE."
OPTIONS: dict[str, tuple[list[str], str]] = {
    "odd number": (["SOLVER.MAX_ITER"], "SOLVER.MAX_ITER|length|pairs"),
    "unknown": (["MODEL.NOTHING", "1"], "MODEL.NOTHING"),
    "code": (["SEED", "__import__('os').system('touch {w}/code_has_run')"], "SEED"),
    "rate above 1": (["DATASETS.LABEL_NOISE.RATE", "1.5"], "LABEL_NOISE.RATE"),
    "rate that is no number": (["DATASETS.LABEL_NOISE.RATE", "nan"], "LABEL_NOISE.RATE"),
    "noise of no kind": (["DATASETS.LABEL_NOISE.TYPE", "x"], "LABEL_NOISE.TYPE"),
    "no manifest": (["DATASETS.LABEL_NOISE.MANIFEST", "{w}/no.jsonl"], r"no\.jsonl"),
    "no map": ([NOISE + "TYPE", "asymmetric", NOISE + "CONFUSION", "{w}/no.yaml"], r"no\.yaml"),
    "set of no name": (["DATASETS.TRAIN", "('nobody',)"], "'nobody'"),
    "no set": (["DATASETS.TRAIN", "()"], "DATASETS.TRAIN"),
    "lambda 0": (["MODEL.SUPERLOSS.CLS.LAMBDA", "0.0"], "LAMBDA"),
    "lambda below 0": (["MODEL.SUPERLOSS.CLS.LAMBDA", "-1.0"], "LAMBDA"),
    "no such tau": (["MODEL.SUPERLOSS.CLS.TAU", "Mean"], "TAU"),
    "no such scope": (["MODEL.SUPERLOSS.CLS.SCOPE", "some"], "SCOPE"),
    "no such loss": (["MODEL.SUPERLOSS.CLS.LOSS", "hinge"], "LOSS"),
    "classes": (["MODEL.ROI_HEADS.NUM_CLASSES", "3"], "NUM_CLASSES"),
    "entry without root": (["DATASETS.CUSTOM_VOC", "[{'NAME': 'x'}]"], r"CUSTOM_VOC\[0\]"),
    "entry that is a word": (["DATASETS.CUSTOM_VOC", "['x']"], r"CUSTOM_VOC\[0\]"),
    "broken images": (["DATALOADER.BROKEN_IMAGES", "ignore"], "BROKEN_IMAGES"),
    "sampler": (["DATALOADER.SAMPLER_TRAIN", "Best"], "SAMPLER_TRAIN"),
    "batch of 0": (["SOLVER.IMS_PER_BATCH", "0"], "IMS_PER_BATCH"),
    "no weights": (["MODEL.WEIGHTS", "{w}/no.pth"], r"no\.pth"),
    "device": (["MODEL.DEVICE", "toaster"], "toaster|MODEL.DEVICE"),
    "evaluator": (["DATASETS.TEST", "('{name}',)", "TEST.EVALUATOR", "best"], "TEST.EVALUATOR"),
    "output below a file": (["OUTPUT_DIR", "{w}/secret.txt/out"], r"secret\.txt"),
    "output is a file": (["OUTPUT_DIR", "{w}/secret.txt"], r"secret\.txt"),
}


def config_cases() -> list[Case]:
    cases = []
    for name, (content, words) in CONFIGS.items():

        def change(w: Path, content=content) -> None:
            write("config.yaml", content)(w)
            write("base.yaml", f"A: {PYTHON}")(w)

        culprit = words if "yaml" in words else rf"(config\.yaml.*({words}))|{words}"
        cases.append(Case(f"config {name}", "train_net.py", train(), culprit, change))
        if "refused" in words or "alias .*" in words or "base" in name:
            cases.append(Case(f"config {name}", "audit_labels.py", AUDIT, culprit, change))
    for name, (opts, words) in OPTIONS.items():
        # What only the model reads is found when it is built, after the log was opened.
        left = {"log.txt", "config.yaml"} if "SUPERLOSS" in opts[0] else set()
        case = Case(f"option {name}", "train_net.py", train(*opts), words, may_leave=left)
        cases.append(case)
    absent = train(config_file="{w}/nowhere.yaml")
    cases.append(Case("config nowhere", "train_net.py", absent, r"nowhere\.yaml"))
    folder = train(config_file="{w}/voc")
    cases.append(Case("config is a folder", "train_net.py", folder, "voc"))
    lazy = train(config_file="{w}/nowhere.py")[:2]
    cases.append(Case("lazy config nowhere", "train_net.py", lazy, r"nowhere\.py"))
    return cases


class Shell:
    """Its pickle runs a command when it is loaded."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.system, (f"touch {self.folder}/code_has_run",)


def checkpoint_cases() -> list[Case]:
    def saved(content, name="weights.pth"):
        return lambda w: torch.save(content(w), w / name)

    def pickled(name):
        return lambda w: (w / name).write_bytes(pickle.dumps({"model": Shell(w)})) and None

    def cut(w):
        data = (w / "weights.pth").read_bytes()
        (w / "weights.pth").write_bytes(data[: len(data) // 2])

    flaws: dict[str, tuple[str, Change, str]] = {
        "code": ("weights.pth", saved(lambda w: {"model": Shell(w)}), "refused.*system"),
        "code beside": ("weights.pth", saved(lambda w: {"model": {}, "x": Shell(w)}), "refused"),
        "pickle": ("weights.pth", pickled("weights.pth"), "cannot be read|refused"),
        "pickle of the zoo": ("weights.pkl", pickled("weights.pkl"), "refused.*system"),
        "pickle of pycls": ("weights.pyth", pickled("weights.pyth"), "cannot be read|refused"),
        "cut off": ("weights.pth", cut, "cannot be read"),
        "empty": ("weights.pth", write("weights.pth", ""), "cannot be read"),
        "text": ("weights.pth", write("weights.pth", "hello"), "cannot be read"),
        "list": ("weights.pth", saved(lambda w: [1, 2]), "holds a list"),
        "no names": ("weights.pth", saved(lambda w: {"model": [1]}), "no weights by name"),
        "absent": ("weights.pth", remove("weights.pth"), "no checkpoint"),
    }
    cases = []
    log = {"log.txt", "config.yaml", "metrics.json", "events."}
    for name, (file, change, words) in flaws.items():
        culprit = rf"weights\.\w+ .*({words})" if name != "absent" else rf"{words}.*weights\.pth"
        args = train("MODEL.WEIGHTS", "{w}/" + file)
        cases.append(Case(f"checkpoint {name}", "train_net.py", args, culprit, change, log))
        args = [a.replace("weights.pth", file) for a in AUDIT]
        cases.append(Case(f"checkpoint {name}", "audit_labels.py", args, culprit, change))
    other = "does not match this config"
    cases.append(Case("checkpoint of another model", "audit_labels.py", AUDIT, other))
    return cases


def image_cases() -> list[Case]:
    def cut(w):
        path = w / "voc/JPEGImages/b.jpg"
        path.write_bytes(path.read_bytes()[:700])

    def other_size(w):
        Image.new("RGB", (10, 10)).save(w / "voc/JPEGImages/b.jpg")

    flaws = {
        "cut off": cut,
        "empty": write("voc/JPEGImages/b.jpg", ""),
        "text": write("voc/JPEGImages/b.jpg", "hello"),
        "of another size": other_size,
        "a program": write("voc/JPEGImages/b.jpg", b"\x7fELF" + bytes(999)),
    }
    left = {"log.txt", "config.yaml", "metrics.json", "annotations.jsonl", "events."}
    image = r"image 'b', \S*b\.jpg: \S.*BROKEN_IMAGES"
    cases = [
        Case(f"image {name}", "train_net.py", train(), image, change, left)
        for name, change in flaws.items()
    ]
    gone = remove("voc/JPEGImages/b.jpg")
    cases.append(Case("image absent", "train_net.py", train(), "image 'b'", gone))
    return cases


def detection_cases() -> list[Case]:
    lines = {
        "word": ("a high 5 6 40 30", "line 1"),
        "too few": ("a 0.9 5 6 40", "line 1"),
        "nan": ("a nan 5 6 40 30", "line 1"),
        "infinite": ("a 0.9 5 6 inf 30", "line 1"),
        "other image": ("a 0.9 5 6 40 30\nz 0.9 5 6 40 30", "line 2.*'z'"),
        "image elsewhere": ("../a 0.9 5 6 40 30", r"'\.\./a'"),
        "not UTF-8": (b"\xff\xfe", "not UTF-8"),
    }
    cases = []
    for name, (content, words) in lines.items():
        change = write("results/comp4_det_train_cat.txt", content)
        culprit = rf"comp4_det_train_cat\.txt.*{words}"
        cases.append(Case(f"detections {name}", "evaluate_voc.py", BY_TEXT, culprit, change))
    entries = {
        "not json": ("{", "not json"),
        "empty": ("", "not json"),
        "map": ("{}", "list"),
        "number": ("3", "list"),
        "deep": ("[" * 100_000, "not json"),
        "entry is a word": ('["a"]', r"\[0\]"),
        "no score": (json.dumps([{"image_id": "a"}]), r"\[0\]"),
        "other image": (json.dumps([detection(image_id="z")]), "'z'"),
        "class beyond": (json.dumps([detection(category_id=7)]), "category_id 7"),
        "class below": (json.dumps([detection(category_id=-1)]), "category_id -1"),
        "class in words": (json.dumps([detection(category_id="cat")]), "'cat'"),
        "box of three": (json.dumps([detection(bbox=[1, 2, 3])]), r"\[0\]"),
        "box of nan": (json.dumps([detection(bbox=[1, 2, 3, float("nan")])]), r"\[0\].*finite"),
        "box inside out": (json.dumps([detection(bbox=[1, 2, -3, 4])]), r"\[0\].*negative"),
        "image is a list": (json.dumps([detection(image_id=[1])]), r"\[0\]"),
        "class of 20 digits": (json.dumps([detection(category_id=10**20)]), "category_id"),
    }
    for name, (content, words) in entries.items():
        change = write("results.json", content)
        culprit = rf"results\.json.*{words}"
        cases.append(Case(f"json {name}", "evaluate_voc.py", BY_JSON, culprit, change))
    outputs = {"{w}/out.txt": "json", "{w}/voc": "folder", "{w}/secret.txt/o.json": r"secret\.txt"}
    for output, words in outputs.items():
        args = [*BY_TEXT, "--output", output]
        cases.append(Case(f"output {output}", "evaluate_voc.py", args, words))
    for classes in ("", "cat,cat", "cat,,dog"):
        args = [*BY_TEXT, "--classes", classes]
        cases.append(Case(f"classes {classes!r}", "evaluate_voc.py", args, "class names"))
    return cases


def noise_cases() -> list[Case]:
    args: dict[str, tuple[list[str], str]] = {
        "rate": (["--rate", "2"], "2"),
        "rate below 0": (["--rate=-1"], "-1"),
        "rate nan": (["--rate", "nan"], "nan"),
        "rate in words": (["--rate", "half"], "half"),
        "type": (["--type", "odd"], "odd"),
        "workers": (["--workers", "0"], "workers"),
        "output exists": (["--output", "{w}/voc"], "voc"),
        "output inside": (["--output", "{w}/voc/new"], "inside"),
        "output below a file": (["--output", "{w}/secret.txt/new"], r"secret\.txt"),
        "no folder": (["--voc-root", "{w}/none"], "none"),
        "class list": (["--classes", "cat,cat"], "class names"),
        "no map": (["--type", "asymmetric", "--confusion", "{w}/no.yaml"], r"no\.yaml"),
        "split elsewhere": (["--split", "../../../secret"], "secret"),
    }
    cases = [Case(n, "inject_noise.py", [*INJECT, *a], words) for n, (a, words) in args.items()]
    maps = {
        "code": (f"cat: {PYTHON}", "map.yaml"),
        "merges": (MERGES, r"map\.yaml.*alias .* is inside"),
        "list": ("- cat", "map.yaml"),
        "empty": ("", "map.yaml"),
        "unclosed": ("cat: [", "map.yaml"),
        "unknown class": ("cat: cow", "cow"),
        "negative": ("cat: {dog: -1.0}", "map.yaml.*-1.0"),
        "nan": ("cat: {dog: .nan}", "map.yaml.*nan"),
        "not UTF-8": (b"cat: \xff", "map.yaml"),
    }
    asymmetric = [*INJECT, "--type", "asymmetric", "--confusion", "{w}/map.yaml"]
    for name, (content, words) in maps.items():
        change = write("map.yaml", content)
        cases.append(Case(f"map {name}", "inject_noise.py", asymmetric, words, change))
    files = {
        "not json": "{",
        "list": "[]",
        "word": '"x"',
        "no images": json.dumps({"categories": [], "annotations": []}),
        "not UTF-8": b"\xff",
        "category twice": json.dumps(coco(categories=[{"id": i, "name": "cat"} for i in (1, 2)])),
        "no category": json.dumps(coco(categories=[])),
        "annotation without id": json.dumps(coco(annotations=[{"image_id": 1, "category_id": 1}])),
        "unknown category": json.dumps(
            coco(annotations=[{"id": 1, "image_id": 1, "category_id": 9, "bbox": [1, 2, 3, 4]}])
        ),
        "no box": json.dumps(coco(annotations=[{"id": 1, "image_id": 1, "category_id": 1}])),
        "image without size": json.dumps(coco(images=[{"id": 1}])),
        "annotations are words": json.dumps(coco(annotations=["x"])),
        "deep": "[" * 100_000,
    }
    for name, content in files.items():
        change = write("coco.json", content)
        cases.append(Case(f"coco {name}", "inject_noise.py", COCO, r"coco\.json", change))
    restore = ["--restore", "{w}/voc", "--output", "{w}/out"]
    cases.append(Case("restore no copy", "inject_noise.py", restore, "voc"))
    return cases


def restore_cases() -> list[Case]:
    line = {"dataset": "d", "image_id": "a", "annotation": 0, "what": "label"}
    line |= {"old": "cat", "new": "dog", "edits": [[0, "x", "y"]]}
    manifests = {
        "up": {**line, "image_id": "../../secret"},
        "absolute": {**line, "image_id": "/etc/passwd"},
        "unknown image": {**line, "image_id": "z"},
        "image is a map": {**line, "image_id": {}},
        "below 0": {**line, "annotation": -1},
        "no such change": {**line, "what": "colour"},
        "no edits": {k: v for k, v in line.items() if k != "edits"},
        "edits of words": {**line, "edits": ["x"]},
        "edits elsewhere": {**line, "edits": [[10**9, "x", "y"]]},
        "other bytes": line,
    }

    def change(content):
        def apply(w):
            (w / "voc/noise.json").write_text('{"file": ""}')
            (w / "voc/manifest.jsonl").write_text(content + "\n")

        return apply

    args = ["--restore", "{w}/voc", "--output", "{w}/out"]
    cases = [
        Case(
            f"restore {name}", "inject_noise.py", args, r"manifest|a\.xml", change(json.dumps(row))
        )
        for name, row in manifests.items()
    ]
    cases.append(Case("restore text", "inject_noise.py", args, "manifest", change("hello")))
    named = write("voc/noise.json", '{"file": "../secret.txt"}')
    cases.append(Case("restore another file", "inject_noise.py", args, r"noise\.json", named))
    return cases


def audit_cases() -> list[Case]:
    rows: dict[str, dict] = {
        "up": {"image_id": "../../secret"},
        "absolute": {"image_id": "/etc/passwd"},
        "zero byte": {"image_id": "a\0b"},
        "unknown set": {"dataset": "other"},
        "index below 0": {"index": -1},
        "index beyond": {"index": 9},
        "index in words": {"index": "0"},
        "box of three": {"bbox": [1, 2, 3]},
        "box elsewhere": {"bbox": [0, 0, 1, 1]},
        "unknown class": {"label": "cow"},
        "unknown given": {"given": "cow"},
        "verdict": {"verdict": "maybe"},
        "nothing wrong": {"verdict": "right"},
        "image is a list": {"image_id": [1]},
    }
    cases = []
    for name, values in rows.items():

        def change(w, values=values):
            (w / "decisions.json").write_text(json.dumps(decisions(w, **values)))

        culprit = r"decisions|a\.xml|nothing to correct"
        cases.append(Case(f"decision {name}", "audit_labels.py", APPLY, culprit, change))
    files = {
        "not json": "{",
        "list": "[]",
        "version": '{"version": 7}',
        "deep": "[" * 100_000,
        "no sources": '{"version": 1, "classes": [], "decisions": []}',
    }
    for name, content in files.items():
        change = write("decisions.json", content)
        args = APPLY
        cases.append(Case(f"decisions {name}", "audit_labels.py", args, r"decisions\.json", change))
    runs = {"{w}/none": "none", "{w}/voc": "config.yaml", "{w}/secret.txt": "secret"}
    for folder, words in runs.items():
        args = ["--from-run", folder, "--output", "{w}/out"]
        cases.append(Case(f"run {folder}", "audit_labels.py", args, words))
    exists = ["--apply", "{w}/decisions.json", "--output", "{w}/voc"]
    cases.append(Case("output exists", "audit_labels.py", exists, "voc"))
    return cases


def plot_cases() -> list[Case]:
    plot = "plot_confidence_losses.py"
    return [
        Case("picture without suffix", plot, ["--output", "{w}/out"], "suffix"),
        Case("picture of no kind", plot, ["--output", "{w}/out.xyz"], "xyz"),
        Case("picture below a file", plot, ["--output", "{w}/secret.txt/a.png"], r"secret\.txt"),
        Case("picture is a folder", plot, ["--output", "{w}/voc"], "voc"),
        Case("lambda", plot, ["--output", "{w}/a.png", "--lambdas", "0"], "0"),
        Case("lambda in words", plot, ["--output", "{w}/a.png", "--lambdas", "x"], "x"),
        Case("demo seed", "demo.py", ["--seeds", "x"], "x"),
        Case("demo key", "demo.py", ["--output", "{w}/out", "NOTHING", "1"], "NOTHING"),
        Case("demo odd", "demo.py", ["--output", "{w}/out", "SEED"], "SEED|pairs|length"),
        Case("demo output", "demo.py", ["--output", "{w}/secret.txt/o"], r"secret\.txt"),
    ]


CASES = [
    *voc_cases(),
    *config_cases(),
    *checkpoint_cases(),
    *image_cases(),
    *detection_cases(),
    *noise_cases(),
    *restore_cases(),
    *audit_cases(),
    *plot_cases(),
]
