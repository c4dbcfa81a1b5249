"""What the parser answers becomes a few lines: the wrong setting, where it stands, the right one."""

from __future__ import annotations

from argparse import ArgumentError
from pathlib import Path

import pytest

from lmlab.cli.config_file import read_config
from lmlab.cli.parser import parser_kwargs
from lmlab.cli.suggestions import explain, where_written
from lmlab.errors import BudgetError, ConfigError
from tests.cli.toy import BASE, NAME, parse, write


@pytest.mark.parametrize(
    ("overlay", "line", "what", "remedy"),
    [
        ("trainer:\n  max_stepss: 3\n", 2, "trainer.max_stepss", "did you mean 'trainer.max_steps'?"),
        ("trianer:\n  max_steps: 3\n", 2, "trianer.max_steps", "did you mean 'trainer.max_steps'?"),
        ("model:\n  init_args:\n    mask_prb: 0.3\n", 3, "model.mask_prb", "did you mean 'model.mask_prob'?"),
        (
            "model:\n  init_args:\n    backbone:\n      hiden_size: 3\n",
            4,
            "model.backbone.hiden_size",
            "did you mean 'model.backbone.hidden_size'?",
        ),
        ("model:\n  init_args:\n    num_layers: 3\n", 3, "model.num_layers", "did you mean 'model.backbone.num_layers'?"),
        ("model:\n  init_args:\n    backbone:\n      activation: gelo\n", 4, "model.backbone.activation = 'gelo'", "did you mean 'gelu'?"),
        ("model:\n  init_args:\n    mask_prob: often\n", 3, "model.mask_prob = 'often'", "--print_config"),
        ("model:\n  init_args:\n    backbone: three\n", 3, "model.backbone = 'three'", "--model.backbone.NAME"),
        ("tokenizer:\n  hidden: 3\n", 2, "tokenizer.hidden", "did you mean 'tokenizer.hidden_size'?"),
        ("data:\n  init_args:\n    batchsize: 3\n", 3, "data.batchsize", "did you mean 'data.batch_size'?"),
        (
            "trainer:\n  callbacks+:\n    - class_path: EarlyStopping\n      init_args:\n        monitr: x\n",
            5,
            "callbacks.monitr",
            "callbacks.monitor'?",
        ),
        (
            "trainer:\n  callbacks+:\n    - class_path: EarlyStoping\n",
            3,
            "EarlyStoping",
            "did you mean 'lightning.pytorch.callbacks.EarlyStopping'?",
        ),
    ],
)
def test_a_wrong_setting_in_a_file(tmp_path: Path, overlay: str, line: int, what: str, remedy: str) -> None:
    over = write(tmp_path, "over.yaml", overlay)
    with pytest.raises(ConfigError) as caught:
        parse(["fit", "-c", write(tmp_path, "base.yaml", BASE), "-c", over])
    assert what in caught.value.what
    assert remedy in caught.value.remedy
    assert caught.value.where == f"{over}:{line}"
    assert len(str(caught.value).splitlines()) <= 4


@pytest.mark.parametrize(
    ("arguments", "where", "what", "remedy"),
    [
        (["--model.mask_prb", "0.3"], "--model.mask_prb", "model.mask_prb", "did you mean 'model.mask_prob'?"),
        (["--model.backbone.hidden_siz=8"], "--model.backbone.hidden_siz", "backbone.hidden_siz", "did you mean"),
        (["--model.backbone.hiden_size=3"], "--model.backbone.hiden_size", "hiden_size", "did you mean 'model.backbone.hidden_size'?"),
        (["--modle.backbone.hidden_size=3"], "--modle.backbone.hidden_size", "modle", "did you mean 'model.backbone.hidden_size'?"),
        (["--trainer.max_step", "3"], "--trainer.max_step", "trainer.max_step", "did you mean 'trainer.max_steps'?"),  # no abbreviations
        (["--trainer.max_steps", "x"], "--trainer.max_steps", "trainer.max_steps = 'x'", "--print_config"),
        (["--hidden_size=3"], "--hidden_size", "hidden_size", "did you mean 'tokenizer.hidden_size'?"),
        (["--trainer.callbacks+=EarlyStoping"], "--trainer.callbacks+", "EarlyStoping", "callbacks.EarlyStopping'?"),
        (
            ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitr=x"],
            "--trainer.callbacks.monitr",
            "monitr",
            "callbacks.monitor'?",
        ),
        (["--model.hook", "loud"], "--model.hook", "no class 'loud' that fits model.hook", "--allow PKG"),
        (
            ["--trainer.callbacks+=EarlyStopping"],
            "--trainer.callbacks+",
            "EarlyStopping needs the setting: monitor",
            "--trainer.callbacks.monitor VALUE",
        ),
        (["--model.hook", "os.system"], "--model.hook", "os.system", "lmlab"),
        (["--model.backbone", "3"], "--model.backbone", "model.backbone = '3'", "--model.backbone.NAME"),
        (["stray"], "command line", "'stray'", "--section.key"),
    ],
)
def test_a_wrong_setting_on_the_command_line(tmp_path: Path, arguments: list[str], where: str, what: str, remedy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(["fit", "-c", write(tmp_path, "base.yaml", BASE), *arguments])
    assert what in caught.value.what
    assert remedy in caught.value.remedy
    assert caught.value.where == where
    assert len(str(caught.value).splitlines()) <= 4


@pytest.mark.parametrize("given", ["ToyMLMM", f"{NAME}.ToyMLMM"])
def test_a_class_that_does_not_exist_is_answered_with_those_that_do(tmp_path: Path, given: str) -> None:
    path = write(tmp_path, "base.yaml", BASE.replace(f"{NAME}.ToyMLM", given))
    with pytest.raises(ConfigError) as caught:
        parse(["fit", "-c", path])
    assert caught.value.remedy == f"did you mean '{NAME}.ToyMLM'?"
    assert caught.value.why == "there are: ToyCLM, ToyMLM"
    assert caught.value.where == f"{path}:2"


def test_a_class_of_another_kind_is_answered_with_those_that_fit(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ToyData' that fits model") as caught:
        parse(["fit", "-c", write(tmp_path, "base.yaml", BASE.replace(f"{NAME}.ToyMLM", f"{NAME}.ToyData"))])
    assert caught.value.remedy == "choose one of: ToyCLM, ToyMLM"


def test_an_overlay_alone_is_told_that_it_needs_a_base(tmp_path: Path) -> None:
    over = write(tmp_path, "over.yaml", "trainer:\n  max_steps: 3\n")
    with pytest.raises(ConfigError, match="data, model") as caught:
        parse(["fit", "-c", over])
    assert "overlay" in caught.value.why
    assert caught.value.where == over


def test_settings_before_the_command_are_told_to_come_after(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="after the command") as caught:
        parse(["-c", write(tmp_path, "base.yaml", BASE), "fit"])
    assert "lmlab fit -c" in caught.value.remedy


def test_an_error_of_ours_inside_the_parsers_is_kept() -> None:
    outer = ArgumentError(None, 'Parser key "budget": something')
    outer.__cause__ = ValueError("between")
    outer.__cause__.__context__ = BudgetError("two units", remedy="keep one")
    assert explain(outer) is outer.__cause__.__context__


def test_a_message_nobody_has_seen_yet_is_passed_on_whole() -> None:
    error = explain('Parser key "a.b":\n  - something new\n  - and more')
    assert "something new" in str(error)
    assert "and more" in str(error)
    assert error.remedy


def test_the_last_file_that_has_a_setting_is_where_it_was_written(tmp_path: Path) -> None:
    base = read_config(write(tmp_path, "base.yaml", BASE))
    over = read_config(write(tmp_path, "over.yaml", "\ntrainer:\n  max_steps: 7\n"))
    assert where_written("trainer.max_steps", [base, over]) == f"{over.path}:3"
    assert where_written("model.init_args.mask_prob", [base, over]) == where_written("model.mask_prob", [base, over]) == f"{base.path}:4"
    assert where_written("trainer.max_steps", [base, over], ["fit", "--trainer.max_steps=3"]) == "--trainer.max_steps"
    assert where_written("run.name", [base, over]) == ""


def test_the_usage_is_one_line() -> None:
    for command in ("fit", "validate", "test", "predict"):
        assert parser_kwargs()[command]["usage"].count("\n") == 0
