"""Shared by the command line tools: help from the docstring, one-line errors, known warnings."""

import argparse
import difflib
import importlib
import logging
import os
import re
import sys
import urllib.error
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn

__all__ = [
    "USER_ERRORS",
    "add_import_option",
    "describe",
    "did_you_mean",
    "import_modules",
    "run_tool",
    "silence_in_tools",
    "tool_parser",
]

# User errors; FloatingPointError: a training run that diverged.
USER_ERRORS = (ValueError, OSError, ImportError, FloatingPointError)

# Beginnings of warnings of detectron2 and torch about detectron2's code, on which a user of a tool
# cannot act. All other warnings are shown.
KNOWN_WARNINGS = (
    "`torch.jit.script` is deprecated",
    "torch.meshgrid: in an upcoming release",
    "pkg_resources is deprecated",
)
KNOWN_LOG_LINES = {
    "torch.fx._symbolic_trace": "is_fx_tracing will return true",
    "torch.utils.cpp_extension": "No CUDA runtime is found",
}
CONSOLE_SCRIPT = "sl-"
# Of an installation, by the tool that each runs; setup.py reads them here.
CONSOLE_SCRIPTS = {
    "train_net": "sl-train",
    "demo": "sl-demo",
    "check_dataset": "sl-check",
    "inject_noise": "sl-inject-noise",
    "evaluate_voc": "sl-evaluate-voc",
    "audit_labels": "sl-audit",
    "visualize": "sl-visualize",
    "sweep": "sl-sweep",
    "make_table": "sl-make-table",
}
EXIT_CODES = "Exit code: 0; 2 user error, explained in one line; 1 internal error."


def silence_in_tools() -> None:
    """Where the program is one of the tools, hide warnings by name that its user cannot act on.

    Called before detectron2 is imported, which warns right then. A program that imports
    sl_detectron as a library keeps all its warnings.
    """
    program, package = Path(sys.argv[0] if sys.argv else ""), Path(__file__).parent
    tools = (package / "tools", package.parent / "tools")
    if not (program.name.startswith(CONSOLE_SCRIPT) or program.resolve().parent in tools):
        return
    for beginning in KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", message=re.escape(beginning))
    known = tuple(KNOWN_LOG_LINES.values())
    for name in KNOWN_LOG_LINES:
        logging.getLogger(name).addFilter(lambda line: not line.getMessage().startswith(known))


def tool_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the tool's ``__doc__``, with its examples at the end."""
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter)
    describe(parser, doc)
    return parser


def describe(parser: argparse.ArgumentParser, doc: str | None) -> None:
    """Give any parser a tool's docstring as help, the option ``--debug`` and clearer errors."""
    parser.description, _, examples = (doc or "").partition("\nExamples:\n")
    parser.epilog = f"Examples:\n{examples}\n{EXIT_CODES}"
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    add_import_option(parser)
    stock_error, stock_help = parser.error, parser.format_help

    def error(message: str) -> NoReturn:
        unknown = re.search(r"unrecognized arguments:.*?(--[\w-]+)", message)
        options = re.findall(r"--[\w-]+", parser.format_usage())
        stock_error(message + (did_you_mean(unknown[1], options) if unknown else ""))

    parser.error = error  # type: ignore[method-assign]
    if parser.prog.startswith(CONSOLE_SCRIPT):
        # When all options are known: their helps name tools too.
        parser.format_help = lambda: _as_installed(stock_help())  # type: ignore[method-assign]


def add_import_option(parser: argparse.ArgumentParser) -> None:
    """``--import``, which :func:`import_modules` takes as ``args.imports``."""
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="MODULE",
        help="a Python module of your project, by name or as FILE.py, that registers losses, "
        "heads, noises or datasets; imported before the config is read. May be repeated",
    )


def import_modules(names: Iterable[str]) -> None:
    """Import modules of a user's project.

    Args:
        names: each a name that Python finds from here, or the path of a file ``*.py``; what such a
            file imports may lie beside it

    Raises:
        ImportError: there is no such module, or it raises an error
    """
    for name in names:
        path = Path(name).resolve() if name.endswith(".py") else None
        if path is not None and not path.is_file():
            raise ImportError(f"--import {name}: there is no such file")
        folder = str(path.parent) if path else os.getcwd()
        if folder not in sys.path:
            sys.path.insert(0, folder)
        try:
            module = importlib.import_module(path.stem if path else name)
        except Exception as error:  # whatever the project's code raises
            reason = f"{type(error).__name__}: {error}"
            raise ImportError(f"--import {name}: {reason}") from error
        found = getattr(module, "__file__", None)
        if path is not None and (found is None or Path(found).resolve() != path):
            raise ImportError(
                f"--import {name}: Python has another module {path.stem!r}, {found}; rename yours"
            )


def _as_installed(text: str) -> str:
    """For a user who has no checkout with tools/ and configs/.

    Example:
        >>> _as_installed("tools/make_table.py, configs/Toy/retinanet.yaml, tools/mine.py")
        'sl-make-table, Toy/retinanet.yaml, tools/mine.py'
    """
    text = re.sub(r"\btools/(\w+)\.py\b", lambda m: CONSOLE_SCRIPTS.get(m[1], m[0]), text)
    return re.sub(r"\bconfigs/(?=[A-Z])", "", text)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of an error that names the nearest known word, if one is near.

    Example:
        >>> did_you_mean("ouptut", ["output", "seed"])
        '; did you mean output?'
    """
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def run_tool(job: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> int:
    """Run a tool and turn a user error into one line on stderr.

    Args:
        job: the tool's work; raises one of ``USER_ERRORS`` for a user error
        args: of :func:`tool_parser`, passed on

    Returns:
        the exit code: 0, or 2 after an error
    """
    try:
        import_modules(getattr(args, "imports", ()))
        job(args)
    except USER_ERRORS as error:
        if args.debug:
            raise
        message = str(error)
        if isinstance(error, urllib.error.URLError):
            message = (
                f"cannot download the weights that the config names: {error.reason}; set "
                "MODEL.WEIGHTS (or the key that names them) to a file on this machine, or to '' to "
                "start from scratch"
            )
        # One line, whatever a library has put into it.
        message = re.sub(r"\s*\n\s*", " ", message.strip())
        print(f"{Path(sys.argv[0]).name}: error: {message}", file=sys.stderr)
        return 2
    return 0
