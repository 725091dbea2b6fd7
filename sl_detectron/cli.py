"""What the command line tools share: help made of their docstring, and one-line errors."""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

__all__ = ["USER_ERRORS", "describe", "run_tool", "tool_parser"]

# What a user can mend; FloatingPointError: a training that diverged.
USER_ERRORS = (ValueError, OSError, ImportError, FloatingPointError)


def tool_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the tool's docstring, with its examples at the end.

    Args:
        doc: ``__doc__`` of the tool; None under ``python -OO``
    """
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter)
    describe(parser, doc)
    return parser


def describe(parser: argparse.ArgumentParser, doc: str | None) -> None:
    """Give any parser the help of a tool's docstring and the option ``--debug``."""
    parser.description, _, examples = (doc or "").partition("\nExamples:\n")
    parser.epilog = f"Examples:\n{examples}"
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def run_tool(job: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> int:
    """Run a tool and turn what a user can mend into one line on stderr.

    Args:
        job: the tool's work; raises one of ``USER_ERRORS`` for a user to mend
        args: of :func:`tool_parser`, passed on

    Returns:
        the exit code: 0, or 2 after an error
    """
    try:
        job(args)
    except USER_ERRORS as error:
        if args.debug:
            raise
        message = re.sub(r"\s*\n\s*", " ", str(error).strip())
        print(f"{Path(sys.argv[0]).name}: error: {message}", file=sys.stderr)
        return 2
    return 0
