"""Settings files are read strictly, and every setting knows its line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmlab.cli.config_file import MAX_BYTES, read_config, texts
from lmlab.errors import ConfigError
from tests.cli.toy import write

NAMES = st.from_regex(r"[a-z][a-z_]{0,7}", fullmatch=True).filter(
    lambda n: n not in ("y", "n", "yes", "no", "on", "off", "true", "false", "null")
)
VALUES = st.none() | st.booleans() | st.integers(-9, 10**9) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=12)
TREES = st.dictionaries(
    NAMES, st.recursive(VALUES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3)), min_size=1
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TREES)
def test_what_a_yaml_library_wrote_is_read_back(tmp_path: Path, tree: dict) -> None:
    assert read_config(write(tmp_path, "a.yaml", yaml.safe_dump(tree))).tree == tree


def test_every_setting_knows_its_line(tmp_path: Path) -> None:
    path = write(
        tmp_path, "a.yaml", "# head\nmodel:\n  class_path: x\n\ntrainer:\n  callbacks+:\n    - class_path: y\n    - {class_path: z}\n"
    )
    file = read_config(path)
    assert file.where("model.class_path") == f"{path}:3"
    assert file.where("trainer.callbacks+.1.class_path") == f"{path}:8"
    assert file.where("no.such") == path
    assert dict(texts(file.tree)) == {
        "model.class_path": "x",
        "trainer.callbacks+.0.class_path": "y",
        "trainer.callbacks+.1.class_path": "z",
    }


def test_dates_stay_text_and_files_may_begin_with_a_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes("\ufeffrun: {question: 2026-11-22}\n".encode())
    assert read_config(path).tree == {"run": {"question": "2026-11-22"}}


def test_a_doubled_key_is_named_with_both_lines(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", "run:\n  name: one\n  keep: 2\n  name: two\n")
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    assert caught.value.where == f"{path}:4"
    assert "line 2" in caught.value.why


def test_anchors_and_merges_of_a_sane_size_are_fine(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", "one: &a {x: 1}\ntwo: *a\nthree: {<<: *a, y: 2}\n")
    assert read_config(path).tree == {"one": {"x": 1}, "two": {"x": 1}, "three": {"x": 1, "y": 2}}


@pytest.mark.parametrize(
    ("content", "line", "reason"),
    [
        (b"a: [1,\nb: 2\n", 3, "not valid YAML"),
        (b"a: 1\n\tb: 2\n", 2, "not valid YAML"),
        (b"a: *nowhere\n", 1, "not valid YAML"),
        (b"a: 1\nyes: 2\n", 2, "not the name of a setting"),
        (b"caf\xe9: 1\n", None, "cannot be read"),
        (b"a: \x00\n", None, "not valid YAML"),
        (b"", None, "holds no settings"),
        (b"# only a comment\n", None, "holds no settings"),
        (b"a: b\n" + b"#" * MAX_BYTES, None, "bytes"),
    ],
)
def test_a_broken_file_is_refused_with_its_line(tmp_path: Path, content: bytes, line: int | None, reason: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    assert reason in caught.value.what
    assert caught.value.where == (str(path) if line is None else f"{path}:{line}")
    assert caught.value.remedy


def test_a_misspelt_file_is_answered_with_the_nearest(tmp_path: Path) -> None:
    write(tmp_path, "mlm.yaml", "a: 1")
    with pytest.raises(ConfigError, match=r"did you mean '.*/mlm\.yaml'"):
        read_config(tmp_path / "mml.yaml")
