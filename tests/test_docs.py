"""The reference pages are what config.py and the docstrings say."""

import importlib
import importlib.util
import re

import pytest
from detectron2.config import CfgNode, get_cfg

from helpers import REPO
from sl_detectron.config import add_superloss_config, config_keys

SCRIPT = REPO / "docs" / "make_reference.py"


@pytest.fixture(scope="module")
def reference():
    spec = importlib.util.spec_from_file_location("make_reference", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["config.md", "api.md"])
def test_page_is_in_step(reference, name):
    path = REPO / "docs" / name
    assert path.read_text() == reference.references()[path], "run `make docs`"


def test_every_config_key_is_described(reference):
    cfg, stock = get_cfg(), get_cfg()
    add_superloss_config(cfg)
    known = config_keys(stock)
    keys = {k for k, v in config_keys(cfg).items() if k not in known and not isinstance(v, CfgNode)}
    page = (REPO / "docs" / "config.md").read_text()
    described = set()
    for section in page.split("## `")[1:]:
        parent = section.split("`")[0]
        for row in re.findall(r"^\| `.*", section, flags=re.MULTILINE):
            described.add(f"{parent}.{row.split('`')[1]}")
            assert not row.endswith("|  |"), row
    assert described == keys


def test_config_reference_of_a_made_up_config(reference):
    source = (
        '# Of a.\n    cfg.A = CN()\n    # One |\n    # two.\n    cfg.A.X = "b"\n\n'
        "    # Lost.\n\n    cfg.B.X = 1\n    # Of c.\n    cfg.A.C = CN()\n"
        "    # Rate.\n    cfg.A.C.R = 0.5\n"
    )
    page = reference.config_reference(source)
    assert "## `A`\n\nOf a.\n" in page
    assert '| `X` | `"b"` | One \\| two. |' in page
    assert "| `X` | `1` | As `A.X` |" in page
    assert "Lost" not in page
    assert (
        "## `A.C`\n\nOf c.\n\n| key | default | |\n|---|---|---|\n| `R` | `0.5` | Rate. |" in page
    )


def test_docstring_to_markdown(reference):
    doc = (
        "Sum of :func:`~a.b.x` in ``y``.\n\nArgs:\n    one: first\n        and more\n"
        "    two: second\n\nReturns:\n    a: b\n\nExample:\n    >>> 1\n    1\n"
    )
    assert reference._markdown(doc) == (
        "Sum of `x` in `y`.\n\nArgs:\n\n- `one`: first and more\n- `two`: second\n\n"
        "Returns:\n\n- a: b\n\n```pycon\n>>> 1\n1\n```"
    )


def test_every_public_object_is_described_once(reference):
    page = (REPO / "docs" / "api.md").read_text()
    described = re.findall(r"^### (\w+)$", page, flags=re.MULTILINE)
    modules = [importlib.import_module(f"sl_detectron.{name}") for name in reference.MODULES]
    # By object: two packages may have different things of one name.
    public = {(name, id(getattr(m, name))) for m in modules for name in m.__all__}
    assert sorted(described) == sorted(name for name, _ in public)


PAGES = [REPO / "README.md", *sorted((REPO / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(REPO)))
def test_links_and_pictures_exist(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(), flags=re.MULTILINE)
            assert anchor in [_anchor(h) for h in headings], link


def _anchor(heading):
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_pictures_of_the_docs_are_small():
    large = [p for p in (REPO / "docs").glob("*.png") if p.stat().st_size > 150_000]
    assert not large
