"""Files and folders that are there as a whole or not at all, and YAML by others."""

import os
import stat

import pytest
import yaml
from detectron2.config import get_cfg

from sl_detectron.files import load_yaml, new_folder, replacing, write_json


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": [float("inf"), 1]})
    assert path.read_text() == '{"a": [null, 1]}\n'

    def fail():
        with replacing(path) as partial:
            partial.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == '{"a": [null, 1]}\n'
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_folder_of_another_process_stays(tmp_path):
    out = tmp_path / "deep" / "out"

    def make():
        with new_folder(out) as partial:
            (partial / "ours").touch()
            out.mkdir()
            (out / "theirs").touch()

    with pytest.raises(OSError, match="not empty"):
        make()
    assert os.listdir(out) == ["theirs"]
    assert os.listdir(out.parent) == ["out"]


def test_a_new_folder_has_the_rights_of_any_other(tmp_path):
    (tmp_path / "other").mkdir()
    with new_folder(tmp_path / "out"):
        pass
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("out", "other")}
    assert len(modes) == 1


def test_aliases_of_detectron2s_own_dumps_are_read():
    text = get_cfg().dump()
    assert "*id001" in text
    assert load_yaml(text) == yaml.safe_load(text)


@pytest.mark.parametrize(
    "text",
    [
        "a: &a {x: 1}\nb: &b {<<: [*a, *a]}\nc: &c {<<: [*b, *b]}",
        "a: &a [1]\nb: &b [[*a]]",
        "a: &a [*a]",
        "a: !!python/name:os.system",
        "[" * 5000 + "]" * 5000,
        "a: [",
    ],
)
def test_what_is_not_plain_yaml_is_one_error(text):
    with pytest.raises(yaml.YAMLError):
        load_yaml(text)
