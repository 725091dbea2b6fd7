"""What `make docs` adds to mkdocs: the README as home page and the pages of the Python API."""

import posixpath
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPO = Path(__file__).resolve().parent.parent
# The packages whose ``__all__`` is public, in the order of the navigation.
PACKAGES = (
    *("", ".config", ".model_zoo", ".losses", ".modeling", ".data", ".label_noise"),
    *(".evaluation", ".audit", ".rivals", ".engine", ".engine.hooks", ".sweep"),
)
LINK = re.compile(r"(!?\[([^\]]*)\])\(([^)\s]+)\)")


class PlainDocstrings(griffe.Extension):
    """The docstrings, which are made for readers of the source, as Markdown."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = _as_markdown(obj.docstring.value)

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        # ``self.lam = lam``: the argument is described, and the docstring lists what matters.
        own = ((n, a) for n, a in cls.attributes.items() if n in cls.members)
        for name in [n for n, attribute in own if not attribute.has_docstring]:
            cls.del_member(name)


def _as_markdown(text: str) -> str:
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", text)  # Sphinx's roles
    text = re.sub(r"``(.+?)``", r"`\1`", text)
    text = re.sub(r"^Example::$", "**Example**", text, flags=re.MULTILINE)  # code without prompts
    return re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)  # griffe's section


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages of the API at the end of the navigation."""
    pages = [{_module(suffix): _api_page(suffix)} for suffix in PACKAGES]
    assert config.nav is not None
    config.nav.append({"Python API": pages})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Make the pages that are no files of docs/."""
    readme = (REPO / "README.md").read_text(encoding="utf-8")
    home = LINK.sub(lambda m: f"{m[1]}({m[3].removeprefix('docs/')})", readme)
    files.append(File.generated(config, "index.md", content=home))
    package = griffe.load("sl_detectron", search_paths=[REPO])
    for suffix in PACKAGES:
        module = _module(suffix)
        content = f"# {module}\n\n::: {module}\n"
        # griffe takes a function for the module of its name that it comes from.
        for name in map(str, package[suffix[1:]].exports if suffix else ()):
            if package[f"{suffix[1:]}.{name}"].is_module:
                function = f"{module}.{name}.{name}"
                content += f"\n::: {function}\n    options: {{show_root_heading: true}}\n"
        files.append(File.generated(config, _api_page(suffix), content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Name a file of the repository that is no page, where a code host would link to it."""

    def plain(match: re.Match[str]) -> str:
        path = match[3].partition("#")[0]
        if "://" in path or not path:
            return match[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(page.file.src_uri), path))
        if target in files.src_uris:
            return match[0]
        source = target.removeprefix("../")
        known = (REPO / source).exists()  # another link is broken: mkdocs warns of it
        return f"{match[2]} (`{source}`)" if known else match[0]

    return LINK.sub(plain, markdown)


def _module(suffix: str) -> str:
    return f"sl_detectron{suffix}"


def _api_page(suffix: str) -> str:
    return f"api/{_module(suffix)}.md"
