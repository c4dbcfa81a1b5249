"""Settings files add up from left to right, or are refused with a sentence."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import pytest

from lmlab.cli.config_file import read_config
from lmlab.cli.overlays import check_order, check_overlays, class_paths, is_base
from lmlab.errors import ConfigError
from tests.cli.toy import BASE, NAME, parse, write

CONFIGS = Path(__file__).parents[2] / "configs"
PLUS = "trainer:\n  callbacks+:\n    - class_path: lightning.pytorch.callbacks.{}\n"


def callbacks(config: object) -> list[str]:
    return [item.class_path.rpartition(".")[2] for item in config.trainer.callbacks]  # type: ignore[attr-defined]


def test_callbacks_plus_adds_up_in_the_parser(tmp_path: Path) -> None:
    base = write(tmp_path, "base.yaml", BASE)
    one, two = write(tmp_path, "one.yaml", PLUS.format("Timer")), write(tmp_path, "two.yaml", PLUS.format("LearningRateMonitor"))
    assert callbacks(parse(["fit", "-c", base, "-c", one, "-c", two])) == ["TQDMProgressBar", "Timer", "LearningRateMonitor"]
    assert callbacks(parse(["fit", "-c", base, "-c", two, "-c", one, "--trainer.callbacks+=ModelSummary"])) == [
        "TQDMProgressBar",
        "LearningRateMonitor",
        "Timer",
        "ModelSummary",
    ]


def test_later_files_win_and_leave_the_rest(tmp_path: Path) -> None:
    over = write(tmp_path, "over.yaml", "model:\n  init_args:\n    backbone:\n      num_layers: 5\ntrainer:\n  max_steps: 7\n")
    config = parse(["fit", "-c", write(tmp_path, "base.yaml", BASE), "-c", over])
    assert (config.trainer.max_steps, config.model.init_args.mask_prob) == (7, 0.2)
    backbone = config.model.init_args.backbone
    assert (backbone.hidden_size, backbone.num_layers) == (8, 5)


@pytest.mark.parametrize(
    ("overlay", "line", "reason", "remedy"),
    [
        ("trainer:\n  callbacks: []\n", 2, "replaces the list of callbacks", "callbacks+:"),
        ("trainer.callbacks: []\n", 1, "replaces the list of callbacks", "callbacks+:"),
        (f"model:\n  class_path: {NAME}.ToyCLM\n", 2, "changes the class of model", "only one"),
        ("model: ToyCLM\n", 1, "changes the class of model", "only one"),
        ("data:\n  class_path: OtherData\n", 2, "changes the class of data", "base config of its own"),
        ("data.class_path: OtherData\n", 1, "changes the class of data", "base config of its own"),
    ],
)
def test_an_overlay_drops_nothing_of_its_base(tmp_path: Path, overlay: str, line: int, reason: str, remedy: str) -> None:
    over = write(tmp_path, "over.yaml", overlay)
    with pytest.raises(ConfigError, match=reason) as caught:
        check_overlays([write(tmp_path, "base.yaml", BASE), over])
    assert caught.value.where == f"{over}:{line}"
    assert remedy in caught.value.remedy


def test_an_overlay_before_its_base_is_refused_with_the_right_order(tmp_path: Path) -> None:
    base, over = write(tmp_path, "base.yaml", BASE), write(tmp_path, "over.yaml", "trainer:\n  max_steps: 7\n")
    with pytest.raises(ConfigError) as caught:
        check_overlays([over, base])
    assert caught.value.remedy == f"-c {base} -c {over}"
    check_overlays([base, over])


def test_the_same_class_may_be_named_again(tmp_path: Path) -> None:
    base = write(tmp_path, "base.yaml", BASE)
    check_overlays([base, write(tmp_path, "again.yaml", "model:\n  class_path: ToyMLM\n  init_args: {mask_prob: 0.5}\n")])


def test_every_pair_of_shipped_overlays_adds_up_on_every_base() -> None:
    files = [read_config(path) for path in sorted(CONFIGS.rglob("*.yaml"))]
    bases, overlays = [f for f in files if is_base(f)], [f for f in files if not is_base(f)]
    assert len(bases) >= 3
    assert len(overlays) >= 3
    for base in bases:
        for pair in permutations(overlays, 2):
            strategies = {path for file in pair for key, path in class_paths(file.tree) if key == "trainer.strategy"}
            if len(strategies) > 1:
                with pytest.raises(ConfigError, match=r"changes the class of trainer\.strategy") as caught:
                    check_order([base, *pair])
                assert caught.value.remedy == "give only one of the two configs"
                continue
            check_order([base, *pair])
        for overlay in overlays:
            with pytest.raises(ConfigError, match="before its base"):
                check_order([overlay, base])
