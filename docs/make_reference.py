#!/usr/bin/env python3
"""Write docs/config.md from the comments of config.py.

Examples:
  python docs/make_reference.py
"""

import re
from pathlib import Path

DOCS = Path(__file__).resolve().parent
CONFIG = DOCS.parent / "sl_detectron" / "config.py"
PAGE = DOCS / "config.md"
HEAD = "<!-- Made by docs/make_reference.py; edit sl_detectron/config.py instead. -->\n\n"
ASSIGNMENT = re.compile(r"cfg\.([A-Z0-9_.]+) = (.+)")


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
    parts = [
        "# Config keys\n\nIn addition to detectron2's keys. Values are checked when a run starts.\n"
    ]
    for name, rows in sections.items():
        if rows:
            intro = f"{intros[name]}\n\n" if intros.get(name) else ""
            table = "| key | default | |\n|---|---|---|\n" + "\n".join(rows)
            parts.append(f"## `{name}`\n\n{intro}{table}\n")
    return HEAD + "\n".join(parts)


def _cell(text: str) -> str:
    return text[:1].upper() + text[1:].replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(config_reference(CONFIG.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"written: {PAGE}")
