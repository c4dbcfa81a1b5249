"""From a checkpoint back to the objective, and what is said when that cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lmlab.checkpoint import objective_from
from lmlab.errors import CheckpointError, ConfigError
from lmlab.nn.building import after_each_block
from lmlab.objectives.base import FORMAT
from tests.objectives.toy import OBJECTIVES, batches, objective, tokenizer

PATH = Path("step=0000001.ckpt")


def content_of(name: str) -> dict[str, Any]:
    made = objective(name, tokenizer())
    made.configure_model()
    content: dict[str, Any] = {"state_dict": {k: v.clone() for k, v in made.state_dict().items()}}
    made.on_save_checkpoint(content)
    return content


@pytest.mark.parametrize("name", OBJECTIVES)
def test_it_computes_what_it_computed(name: str) -> None:
    content = content_of(name)
    first, second = objective_from(content, PATH), objective_from(content, PATH)
    batch = batches(name, first.tokenizer)[0]
    assert torch.equal(first(batch).total(batch["counts"]), second(batch).total(batch["counts"]))
    assert not first.training and type(first) is OBJECTIVES[name]
    assert first.tokenizer == tokenizer()


def test_it_is_whole_whoever_shares_what_is_being_built_around_it() -> None:
    content, handed = content_of("clm"), list[nn.Module]()
    with after_each_block(handed.append):
        objective_from(content, PATH)
        assert not handed
        content_of("clm")
        assert handed


def test_averaged_weights_come_before_the_last_ones() -> None:
    content = content_of("clm")
    averages = {k: torch.full_like(v, 0.25) for k, v in content["state_dict"].items()}
    content["lmlab_average"] = {"num_updates": 3, "averages": averages}
    loaded = objective_from(content, PATH)
    assert all((p == 0.25).all() for p in loaded.parameters())


@pytest.mark.parametrize(
    "change",
    [
        {"lmlab": None},
        {"lmlab": {"format": "x", "objective": {}}},
        {"lmlab": {"format": 1, "objective": "x"}},
        {"lmlab": {"format": 1, "objective": {}}},
        {"lmlab": {"format": 1, "objective": {"class_path": "lmlab.objectives.clm.CLM", "init_args": {}}}},
        {"lmlab": {"format": 1, "objective": {"class_path": "lmlab.objectives.clm.CLM", "init_args": {"tokenizer": "x"}}}},
        {"state_dict": None},
    ],
)
def test_junk_in_a_whole_archive_is_refused_in_a_sentence(change: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError):
        objective_from({**content_of("clm"), **change}, PATH)


def test_what_does_not_fit_is_refused() -> None:
    content = content_of("clm")
    with pytest.raises(CheckpointError, match="not written by lmlab"):
        objective_from({"state_dict": {}}, PATH)
    with pytest.raises(CheckpointError, match="newer lmlab"):
        objective_from({**content, "lmlab": {**content["lmlab"], "format": FORMAT + 1}}, PATH)
    with pytest.raises(CheckpointError, match="do not fit"):
        objective_from({**content, "state_dict": {}}, PATH)
    for evil in ("subprocess.Popen", "os.system", "lmlab.errors.LabError", "lmlab.config.rebuild"):
        recipe = {"class_path": evil, "init_args": {}}
        with pytest.raises(ConfigError):
            objective_from({**content, "lmlab": {**content["lmlab"], "objective": recipe}}, PATH)
