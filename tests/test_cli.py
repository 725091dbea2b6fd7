"""What all command line tools share."""

import ast
import importlib.util
import logging
import re
import runpy
import sys
import urllib.error
import warnings

import pytest

from helpers import REPO
from sl_detectron import cli
from sl_detectron.model_zoo import find_config

TOOLS = sorted(p for p in (REPO / "tools").glob("*.py") if p.name != "__init__.py")


@pytest.mark.parametrize("path", TOOLS, ids=lambda p: p.stem)
def test_every_tool_has_examples_that_name_it(path):
    text = path.read_text()
    assert "\nExamples:\n" in text
    assert f"  tools/{path.name} " in text
    assert "\ndef cli() -> int:\n" in text
    assert text.endswith('\n\nif __name__ == "__main__":\n    sys.exit(cli())\n')


@pytest.mark.parametrize(
    ("program", "quiet"),
    [
        (str(REPO / "tools" / "train_net.py"), True),
        ("/opt/venv/bin/sl-train", True),
        ("/home/me/detectron2/tools/train_net.py", False),
        ("my_training.py", False),
        ("", False),
    ],
)
def test_known_warnings_are_hidden_in_tools_only(monkeypatch, program, quiet):
    monkeypatch.setattr(sys, "argv", [program])
    logger = logging.getLogger("torch.utils.cpp_extension")
    monkeypatch.setattr(logger, "filters", [])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cli.silence_in_tools()
        warnings.warn(
            "`torch.jit.script` is deprecated. Please switch.", FutureWarning, stacklevel=1
        )
        warnings.warn("something else is deprecated", FutureWarning, stacklevel=1)
    assert len(caught) == (1 if quiet else 2)
    kept = [m for m in ("No CUDA runtime is found, using", "other") if _passes(logger, m)]
    assert len(kept) == (1 if quiet else 2)


def _passes(logger, message):
    return bool(logger.filter(logging.LogRecord("", logging.WARNING, "", 0, message, (), None)))


def test_a_console_script_shows_itself_in_its_examples(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/opt/bin/sl-train"])
    parser = cli.tool_parser(
        "What tools/demo.py does.\n\nExamples:\n  tools/train_net.py -c configs/Toy/a.yaml"
    )
    parser.add_argument("--run", help="made by tools/sweep.py")
    shown = parser.format_help()
    assert "What sl-demo does." in shown
    assert "made by sl-sweep\n" in shown
    assert "  sl-train -c Toy/a.yaml\n" in shown
    assert "Exit code: 0; 2 user error, explained in one line; 1 internal error." in shown


def test_console_scripts_are_those_of_setup(monkeypatch):
    said = {}
    monkeypatch.setattr("setuptools.setup", lambda **options: said.update(options))
    runpy.run_path(str(REPO / "setup.py"))
    pattern = re.compile(r"(sl-[a-z-]+) = sl_detectron\.tools\.(\w+):cli")
    scripts = dict(pattern.fullmatch(s).groups() for s in said["entry_points"]["console_scripts"])
    assert scripts
    assert {tool: script for script, tool in scripts.items()} == cli.CONSOLE_SCRIPTS
    assert all((REPO / "tools" / f"{tool}.py").is_file() for tool in scripts.values())


@pytest.mark.parametrize(("tool", "script"), sorted(cli.CONSOLE_SCRIPTS.items()))
def test_help_of_a_console_script_sends_nobody_to_a_checkout(monkeypatch, capsys, tool, script):
    monkeypatch.setattr(sys, "argv", [f"/opt/bin/{script}", "--help"])
    path = REPO / "tools" / f"{tool}.py"
    spec = importlib.util.spec_from_file_location(tool, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(SystemExit):
        module.cli()
    shown = capsys.readouterr().out
    assert f"  {script} " in shown
    assert not re.findall(r"tools/|configs/", shown)


def test_messages_name_console_scripts():
    """Of the package: who installed a wheel has no tools/. Docstrings and comments may."""
    for path in sorted((REPO / "sl_detectron").rglob("*.py")):
        tree = ast.parse(path.read_text())
        docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and id(node) not in docs
            ):
                assert not re.search(r"tools/\w+\.py", node.value), f"{path}:{node.lineno}"


def test_exit_codes(capsys):
    """2 and one line for a user error; anything else keeps its traceback."""

    def fail(args):
        raise args.error

    args = cli.tool_parser("").parse_args([])
    assert cli.run_tool(lambda args: None, args) == 0
    args.error = ValueError("a bad value")
    assert cli.run_tool(fail, args) == 2
    assert re.fullmatch(r".+: error: a bad value\n", capsys.readouterr().err)
    args.error = urllib.error.URLError("no such host")
    assert cli.run_tool(fail, args) == 2
    assert "no such host; set MODEL.WEIGHTS" in capsys.readouterr().err
    args.debug, args.error = True, ValueError("a bad value")
    with pytest.raises(ValueError, match="a bad value"):
        cli.run_tool(fail, args)
    args.debug, args.error = False, RuntimeError("a bug")
    with pytest.raises(RuntimeError, match="a bug"):
        cli.run_tool(fail, args)


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (["--outptu", "x"], "--outptu x; did you mean --output?"),
        (["--output", "x", "stray"], "unrecognized arguments: stray\n"),
        (["--zzz"], "unrecognized arguments: --zzz\n"),
    ],
)
def test_a_misspelt_option_names_the_nearest(capsys, args, hint):
    parser = cli.tool_parser("A tool.")
    parser.add_argument("--output")
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(args)
    assert stop.value.code == 2
    assert hint in capsys.readouterr().err


def test_a_config_is_a_file_or_a_shipped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").touch()
    assert find_config("mine.yaml") == "mine.yaml"
    assert find_config("") == ""
    shipped = str(REPO / "configs" / "Toy" / "retinanet.yaml")
    assert find_config("Toy/retinanet.yaml") == find_config("configs/Toy/retinanet.yaml") == shipped
    with pytest.raises(ValueError, match=r"no file .*'Toy/retinanet.yml'; did you mean Toy/retin"):
        find_config("Toy/retinanet.yml")
