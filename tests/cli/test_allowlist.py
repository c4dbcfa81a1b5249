"""A config from a stranger: nothing it names is imported, nothing is called, and the message says where and what to do."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lmlab.cli import allowlist
from lmlab.cli.allowlist import admit, allowed
from lmlab.errors import ConfigError
from tests.cli.toy import BASE, NAME, parse, write

HOSTILE = sorted(Path(__file__).with_name("hostile").glob("*.yaml"))


@pytest.mark.parametrize("path", HOSTILE, ids=lambda path: path.stem)
def test_hostile_settings_are_refused_and_run_nothing(path: Path, marker: Path, tmp_path: Path) -> None:
    reason = path.read_text(encoding="utf-8").split("\n")[0].removeprefix("# refused: ")
    with pytest.raises(ConfigError) as caught:
        parse(["fit", "-c", write(tmp_path, "base.yaml", BASE), "-c", str(path)])
    assert reason in caught.value.what
    assert caught.value.remedy
    assert str(path) in caught.value.where
    assert not marker.exists()


@pytest.mark.parametrize(
    "path", [p for p in HOSTILE if "class_path" in p.stem or "callable" in p.stem or "import" in p.stem], ids=lambda p: p.stem
)
def test_the_parser_itself_imports_nothing_either(path: Path, marker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allowlist, "scan", lambda *_: None)
    base = write(tmp_path, "base.yaml", BASE)
    try:
        config = parse(["fit", "-c", base, "-c", str(path)])
    except ConfigError:
        pass
    else:  # data without a type stays data, and a name of no class is a name
        assert isinstance(config.model.init_args.extra, (dict, list)) or isinstance(config.trainer.strategy, str)
    assert not marker.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--trainer.callbacks+=evilmod.Thing"],
        ["--trainer.callbacks+", "evilmod.Thing"],
        ["--trainer.callbacks", "- evilmod.Thing"],
        ["--trainer.callbacks", "[{class_path: evilmod.Thing}]"],
        ['--trainer.callbacks={"class_path": "evilmod.Thing"}'],
        ["--trainer.strategy.class_path=evilmod.Thing"],
        ["--model", "evilmod.Thing"],
        ["--model", "class_path: evilmod.Thing"],
        ["--model.class_path", "evilmod.Thing"],
        ["--model.extra", "{class_path: evilmod.Thing}"],
        ["--model.extra.class_path=evilmod.Thing"],
        ["--model.hook=evilmod.Thing"],
        ["--model.kind=evilmod.Thing"],
        ["--model.help=evilmod.Thing"],
        ["--model.help", "evilmod.Thing"],
        ["--data=evilmod.Thing"],
        ["--print_config", "--data=evilmod.Thing"],
        ["--trainer.logger", "evilmod.Thing"],
        ["--ckpt_path=https://example.org/x.ckpt"],
        ["--run.name=../up"],
    ],
    ids=" ".join,
)
def test_hostile_arguments_are_refused_and_run_nothing(arguments: list[str], marker: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(["fit", "-c", write(tmp_path, "base.yaml", BASE), *arguments])
    assert caught.value.remedy
    assert not marker.exists()


@pytest.mark.parametrize(
    "form", ["-c {}", "-c={}", "-c{}", "--config {}", "--config={}", "--print_config -c {}", "--trainer.max_steps 3 -c {}"]
)
def test_every_way_to_name_a_config_is_looked_at(form: str, marker: Path, tmp_path: Path) -> None:
    hostile = write(tmp_path, "hostile.yaml", "model: evilmod.Thing\n")
    with pytest.raises(ConfigError, match=r"evilmod\.Thing"):
        admit(["fit", *form.format(hostile).split()])
    assert not marker.exists()


@pytest.mark.parametrize("place", ["https://example.org/x.yaml", "file:///etc/passwd", "/dev/zero", "{}", "-", "trainer: {max_steps: 1}"])
def test_settings_come_from_local_files_only(place: str) -> None:
    with pytest.raises(ConfigError) as caught:
        admit(["fit", "-c", place])
    assert caught.value.remedy


@pytest.mark.parametrize("given", [["--allow", "evilmod"], ["--allow=evilmod"], ["--allow=other_name,evilmod"], "LMLAB_ALLOW"])
def test_a_package_of_ones_own_is_allowed_by_name(
    given: list[str] | str, marker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "other_name.py", "")
    if isinstance(given, str):
        monkeypatch.setenv(given, "evilmod")
    arguments = ["fit", "-c", write(tmp_path, "base.yaml", BASE), "--model.kind=evilmod.Thing", *([] if isinstance(given, str) else given)]
    assert parse(arguments).model.init_args.kind.__name__ == "Thing"
    assert marker.exists()  # the marker works: what was allowed was imported


def test_what_one_command_was_granted_the_next_is_not(marker: Path, tmp_path: Path) -> None:
    base = write(tmp_path, "base.yaml", BASE)
    admit(["fit", "-c", base, "--allow", f"{NAME},evilmod"])
    with pytest.raises(ConfigError, match=r"evilmod\.Thing"):
        parse(["fit", "-c", base, "--model.hook=evilmod.Thing"])
    assert not marker.exists()


@pytest.mark.parametrize("package", ["os", "subprocess", "builtins", "posix", "jsonargparse", "no_such_package", "not-a-name", "", "*"])
def test_what_could_run_anything_cannot_be_allowed(package: str) -> None:
    with pytest.raises(ConfigError) as caught:
        admit(["fit", "--allow", package])
    assert caught.value.remedy


def test_a_package_is_found_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    write(tmp_path, "mine_alone.py", "")
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    monkeypatch.chdir(tmp_path)
    assert admit(["fit", "--allow", "mine_alone"]).packages == ("mine_alone",)
    assert sys.path[-1] == str(tmp_path)


@pytest.mark.parametrize(
    ("class_path", "expected"),
    [
        ("lmlab.objectives.mlm.MLM", True),
        ("lmlab", True),
        ("lmlab_evil.MLM", False),
        ("lightning.pytorch.callbacks.Timer", True),
        ("lightning.pytorch.cli.LightningCLI", False),
        ("lightning.fabric.plugins.io.torch_io.TorchCheckpointIO", True),
        ("torch.optim.AdamW", True),
        ("torch.hub.load", False),
        ("torch.nn.Linear", False),
        ("lmlab.cache.__builtins__.eval", False),
    ],
)
def test_packages_are_compared_by_whole_names(class_path: str, expected: bool) -> None:
    assert allowed(class_path) is expected


def test_honest_settings_pass_unchanged(tmp_path: Path) -> None:
    overlay = write(
        tmp_path,
        "over.yaml",
        "trainer:\n  callbacks+:\n    - class_path: RichModelSummary\nrun:\n  question: Is 3.5 > 2.0? See https://example.org\n",
    )
    arguments = [
        "fit",
        "-c",
        write(tmp_path, "base.yaml", BASE),
        "-c",
        overlay,
        "--model.mask_prob",
        "0.3",
        "--trainer.precision=bf16-mixed",
    ]
    admitted = admit([*arguments, "--allow", NAME])
    assert admitted.arguments == arguments
    assert [file.path.name for file in admitted.configs] == ["base.yaml", "over.yaml"]
    assert admit([]).arguments == []


def test_the_shipped_configs_are_admitted() -> None:
    configs = sorted((Path(__file__).parents[2] / "configs").rglob("*.yaml"))
    assert len(configs) > 5
    for path in configs:
        if re.search(r"^model:\n  class_path:", path.read_text(encoding="utf-8"), re.MULTILINE):
            assert admit(["fit", "-c", str(path)]).packages == ()


@pytest.mark.parametrize("key", ["data.corpus.class_path", "data.init_args.corpora.mlm.class_path"])
def test_a_corpus_has_its_whole_name(key: str) -> None:
    """What is built when the data is prepared, the parser cannot look up."""
    with pytest.raises(ConfigError, match=r"TextCorpus") as caught:
        admit(["fit", "-c", str(Path(__file__).parents[2] / "configs/pretrain/mlm.yaml"), f"--{key}=TextCorpus"])
    assert "lmlab.data.corpus.TextCorpus" in (caught.value.remedy or "")
