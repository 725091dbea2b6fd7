#!/usr/bin/env python3
"""Write docs/config.md from the comments of config.py, and docs/api.md from docstrings.

Examples:
  python docs/make_reference.py
"""

import ast
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

DOCS = Path(__file__).resolve().parent
CONFIG = DOCS.parent / "sl_detectron" / "config.py"
MODULES = (
    *("config", "losses", "modeling", "data", "label_noise", "evaluation", "audit", "rivals"),
    *("engine", "engine.hooks", "sweep", "model_zoo"),
)
HEAD = "<!-- Made by docs/make_reference.py; edit {source} instead. -->\n\n"
ASSIGNMENT = re.compile(r"cfg\.([A-Z0-9_.]+) = (.+)")
SECTIONS = ("Args", "Returns", "Raises", "Example")


def config_reference(source: str) -> str:
    """Markdown of every key, its default and its comment."""
    sections: dict[str, list[str]] = {}
    intros: dict[str, str] = {}
    known: dict[str, tuple[str, str]] = {}
    comment: list[str] = []
    for line in map(str.strip, source.splitlines()):
        match = ASSIGNMENT.fullmatch(line)
        if line.startswith("# "):
            comment.append(line[2:])
        elif match:
            key, value, text = *match.groups(), " ".join(comment)
            comment = []
            if value == "CN()":
                intros[key] = text
                sections[key] = []
                continue
            parent, _, leaf = key.rpartition(".")
            if not text and leaf in known:
                text = f"as `{known[leaf][0]}`"
            known.setdefault(leaf, (key, text))
            default = value.replace("'", '"')
            row = f"| `{leaf}` | `{default}` | {_cell(text)} |"
            sections.setdefault(parent, []).append(row)
        else:
            comment = []
    parts = ["# Config keys\n\nBeside detectron2's own. Values are checked when a run starts.\n"]
    for name, rows in sections.items():
        if rows:
            intro = f"{intros[name]}\n\n" if intros.get(name) else ""
            table = "| key | default | |\n|---|---|---|\n" + "\n".join(rows)
            parts.append(f"## `{name}`\n\n{intro}{table}\n")
    return HEAD.format(source="sl_detectron/config.py") + "\n".join(parts)


def _cell(text: str) -> str:
    return text[:1].upper() + text[1:].replace("|", "\\|")


def api_reference() -> str:
    """Markdown of every public name: signature and docstring."""
    top = importlib.import_module("sl_detectron")
    parts = ["# API\n", f"`sl_detectron`: {inspect.getdoc(top)}\n"]
    links = ", ".join(f"[`{name}`](#{name.lower()})" for name in top.__all__)
    parts.append(f"From `sl_detectron` itself: {links}.\n")
    seen: set[tuple[str, int]] = set()  # two packages may have different things of one name
    for name in MODULES:
        module = importlib.import_module(f"sl_detectron.{name}")
        parts.append(f"## sl_detectron.{name}\n\n{_markdown(inspect.getdoc(module) or '')}\n")
        objects = {public: (public, id(getattr(module, public))) for public in module.__all__}
        above = [public for public, known in objects.items() if known in seen]
        if above:
            links = ", ".join(f"[`{public}`](#{public.lower()})" for public in above)
            parts.append(f"Described above: {links}.\n")
        parts += [_entry(module, public) for public in objects if public not in above]
        seen.update(objects.values())
    return HEAD.format(source="the docstrings") + "\n".join(parts)


def _entry(module: ModuleType, name: str) -> str:
    value = inspect.unwrap(getattr(module, name))
    if not (inspect.isclass(value) or inspect.isfunction(value)):
        # A constant or a type alias, whose comment stands in the source.
        return f"### {name}\n\n{_constant(value)}\n"
    text = f"### {name}\n\n```python\n{_signature(value)}\n```\n\n"
    # Not inspect.getdoc of a class: it would inherit that of detectron2.
    text += _markdown(inspect.cleandoc(value.__doc__ or "")) + "\n"
    for method_name, method in vars(value).items() if inspect.isclass(value) else ():
        function = getattr(method, "__func__", method)
        if not method_name.startswith("_") and inspect.isfunction(function) and function.__doc__:
            summary = inspect.cleandoc(function.__doc__).split("\n\n")[0]
            if not summary.startswith(SECTIONS):
                text += f"\n- `{_signature(function)}`: {_inline(' '.join(summary.split()))}"
    return text.rstrip() + "\n"


def _constant(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"`{key}`" for key in value) + "."
    values = value if isinstance(value, tuple) else (value,)
    if all(isinstance(v, str | int | float) for v in values):
        return f"`{value!r}`"
    return f"`{type(value).__name__}`; see the source."


def _signature(value: Any) -> str:
    """As it stands in the source, so that it is the same under every version of Python."""
    node: Any = ast.parse(textwrap.dedent(inspect.getsource(value))).body[0]
    if isinstance(node, ast.ClassDef):
        name, own = node.name, [n for n in node.body if getattr(n, "name", "") == "__init__"]
        if not own:
            return f"class {name}"
        node = own[0]
        prefix = f"class {name}"
    else:
        prefix = node.name
    arguments = re.sub(r"^(self|cls)(, )?", "", ast.unparse(node.args))
    result = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{prefix}({arguments}){result}"


def _inline(text: str) -> str:
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", text)
    return text.replace("``", "`")


def _markdown(doc: str) -> str:
    """The sections of a Google style docstring as lists, examples as code."""
    blocks = re.split(rf"^({'|'.join(SECTIONS)})::?\n", doc, flags=re.MULTILINE)
    parts = [_inline(blocks[0].strip())]
    for title, body in zip(blocks[1::2], blocks[2::2]):
        inner, after = _split_indented(body)
        if title == "Example":
            language = "pycon" if inner.startswith(">>>") else "python"
            parts.append(f"```{language}\n{inner.strip()}\n```")
        else:
            lines = re.sub(r"\n {2,}", " ", inner.strip()).splitlines()
            items = [f"- {_bold(_inline(line), title)}" for line in lines if line.strip()]
            parts.append(f"{title}:\n\n" + "\n".join(items))
        if after.strip():
            parts.append(_inline(after.strip()))
    return "\n\n".join(part for part in parts if part)


def _bold(line: str, title: str) -> str:
    return re.sub(r"^([\w*, ]+): ", r"`\1`: ", line) if title != "Returns" else line


def _split_indented(body: str) -> tuple[str, str]:
    """The indented lines that belong to a section, and what follows it."""
    lines = body.splitlines()
    end = next((i for i, x in enumerate(lines) if x and not x.startswith(" ")), len(lines))
    return textwrap.dedent("\n".join(lines[:end])), "\n".join(lines[end:])


def references() -> dict[Path, str]:
    """{file: what should stand in it}."""
    return {
        DOCS / "config.md": config_reference(CONFIG.read_text(encoding="utf-8")),
        DOCS / "api.md": api_reference(),
    }


if __name__ == "__main__":
    sys.path.insert(0, str(DOCS.parent))
    for path, text in references().items():
        path.write_text(text, encoding="utf-8")
        print(f"written: {path}")
