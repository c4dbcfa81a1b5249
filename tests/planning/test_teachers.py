"""Teachers that are planned for without being read: whatever is wrong with one is said in one sentence, with its setting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lmlab.errors import CheckpointError
from lmlab.objectives.teachers import TeacherConfig
from lmlab.planning.teachers import _described
from tests.objectives.toy import tokenizer


class Evil:
    """Unpickling this would make a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.marker,)


def of(objective: Any) -> dict[str, Any]:
    return {"state_dict": {}, "lmlab": {"objective": objective, "format": 1}}


CONTENTS = ([1], {"state_dict": {}}, of(3), of({}), of({"class_path": "lmlab.objectives.clm.CLM", "init_args": 3}))


@pytest.mark.parametrize("content", CONTENTS)
def test_a_file_that_is_no_teacher(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "step=0000001.ckpt"
    torch.save(content, path)
    with pytest.raises(CheckpointError) as caught:
        _described(TeacherConfig(run=str(path)), tokenizer(), "teachers[0]")
    assert caught.value.where.startswith("teachers[0].run") and caught.value.remedy


def test_code_in_a_teacher_does_not_run(tmp_path: Path) -> None:
    torch.save({"x": Evil(tmp_path / "was-run")}, tmp_path / "step=0000001.ckpt")
    with pytest.raises(CheckpointError, match="cannot be loaded safely"):
        _described(TeacherConfig(run=str(tmp_path / "step=0000001.ckpt")), tokenizer(), "teachers[0]")
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize("config", [b"{", b"[]", b"\xff\xfe", b'{"model_type": "gpt2", "n_embd": "wide", "n_head": 0}'])
def test_a_broken_config_of_transformers(tmp_path: Path, config: bytes) -> None:
    (tmp_path / "config.json").write_bytes(config)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        _described(TeacherConfig(run=str(tmp_path)), tokenizer(), "teachers[0]")
