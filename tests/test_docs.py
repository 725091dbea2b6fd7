"""docs/config.md agrees with config.py, pages link to what exists, and the site builds."""

import importlib
import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

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


def test_page_is_in_step(reference):
    page = reference.config_reference(reference.CONFIG.read_text())
    assert reference.PAGE.read_text() == page, "run `make docs`"


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


PAGES = [*sorted(REPO.glob("*.md")), *sorted((REPO / "docs").rglob("*.md"))]


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


PACKAGES = (
    *("", ".config", ".model_zoo", ".losses", ".modeling", ".data", ".label_noise"),
    *(".evaluation", ".audit", ".engine", ".engine.hooks", ".sweep"),
)
# Attributes by which a page loads something as it opens; a link may lead into the network.
LOADS = {("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src")}


class Links(HTMLParser):
    """What a page links to and loads, and the anchors it has."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.hrefs, self.loads, self.anchors = [], [], set()
        self.feed(page.read_text())

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.anchors |= {attrs.get("id"), attrs.get("name")}
        loads = [attrs.get(name) for t, name in LOADS if t == tag]
        if tag == "link" and attrs.get("rel") not in ("canonical", "prev", "next"):
            loads.append(attrs.get("href"))
        self.loads += [value for value in loads if value]
        if tag == "a" and attrs.get("href"):
            self.hrefs.append(attrs["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """{path of a page: its links} of the site, built without a warning."""
    for package in ("material", "mkdocstrings_handlers.python"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            pytest.skip(f"the site is not built: {error}; pip install 'sl_detectron[docs]'")
    folder = tmp_path_factory.mktemp("site")
    # A proxy that does not answer: whoever asks the network fails.
    offline = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=REPO,
        env={**os.environ, **offline, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stdout + done.stderr
    return {page: Links(page) for page in folder.rglob("*.html") if page.name != "404.html"}


def test_site_links_resolve(site):
    assert len(site) > 30
    for page, links in site.items():
        for href in links.hrefs:
            parts = urlsplit(href)
            if parts.scheme:
                assert parts.scheme in ("http", "https"), (page, href)
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            assert target.is_file(), (page, href)
            if parts.fragment and target.suffix == ".html":
                assert unquote(parts.fragment) in site[target].anchors, (page, href)


def test_site_loads_nothing_from_the_network(site):
    for page, links in site.items():
        for url in links.loads:
            assert not urlsplit(url).netloc, (page, url)
            if not url.startswith("data:"):
                assert (page.parent / urlsplit(url).path).resolve().is_file(), (page, url)


@pytest.mark.parametrize("suffix", PACKAGES)
def test_site_describes_every_public_name(site, suffix):
    module = importlib.import_module(f"sl_detectron{suffix}")
    page = next(page for page in site if page.name == f"sl_detectron{suffix}.html")
    described = {anchor.rpartition(".")[2] for anchor in site[page].anchors if anchor}
    assert set(module.__all__) <= described
