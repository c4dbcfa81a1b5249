"""Every shipped config parses, adds up with every overlay, runs two steps, and leaves a checkpoint that loads and measures the same."""

from __future__ import annotations

import json
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

import lmlab
from lmlab.cli import main
from lmlab.cli.allowlist import admit
from lmlab.cli.config_file import read_config
from lmlab.cli.overlays import is_base
from lmlab.cli.running import LabCLI
from lmlab.config import leaves
from lmlab.data.module import CorpusModule
from lmlab.data.store.reading import StoreConfig
from lmlab.data.tokenizer import tokenizer_for
from lmlab.errors import ConfigError
from lmlab.run.directory import RunDirectory
from lmlab.run.find import list_runs
from lmlab.run.record import Record
from lmlab.tokenizer import TokenizerConfig

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = [read_config(path) for path in sorted(CONFIGS.rglob("*.yaml")) if "experiments" not in path.parts]
VARIANTS = sorted(path for folder in ("anchors", "contrastive", "multitask") for path in (CONFIGS / folder).glob("*.yaml"))
TAUGHT = [CONFIGS / "pretrain/distillation.yaml", *sorted((CONFIGS / "distillation").glob("*.yaml"))]
"""These need a teacher: see `test_distillation_configs.py`."""
BASES = [file.path for file in FILES if is_base(file) and file.path not in [*VARIANTS, *TAUGHT[1:]]]  # of each class, pretrain/ has one
DAILY = ("mlm", "recurrent_lm")  # with every overlay; the other bases are tried less often
OVERLAYS = [file.path for file in FILES if not is_base(file)]
PRETRAIN = [path for path in sorted((CONFIGS / "pretrain").glob("*.yaml")) if path not in TAUGHT] + VARIANTS
TINY = ["--model.backbone={hidden_size: 32, num_layers: 1, num_heads: 2}", "--model.length=32"]
SMALL = [f"--model.backbone.{size}" for size in ("hidden_size=32", "num_layers=1", "num_heads=2")]  # leaves the other settings
TINY_OF = {
    "RecurrentLM": ["--model.backbone.hidden_size=32", "--model.length=32"],
    "NGram": ["--model.length=32"],
    "Multitask": SMALL,  # each task has a length of its own
    "Contrastive": SMALL + TINY[1:],  # and its dropout
}
"""For objectives whose network has another shape, or none; some overlays mean nothing to them, and are refused."""
SAME = 1e-6  # relative: float32 sums over a few hundred tokens, in the same order


class SettingsRead(Exception):  # noqa: N818 - not an error
    """Stops a command when its settings are read."""


class ParsingCLI(LabCLI):
    def before_instantiate_classes(self) -> None:
        raise SettingsRead


@cache
def parsed(*paths: Path) -> Any:
    admitted = admit(["fit", *(word for path in paths for word in ("-c", str(path)))])
    cli = ParsingCLI.__new__(ParsingCLI)
    with pytest.raises(SettingsRead):
        cli.__init__(admitted)
    return cli.config.fit


def objective_in(path: Path) -> str:
    return read_config(path).tree["model"]["class_path"].rpartition(".")[2]


def name(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


@pytest.mark.parametrize(
    ("base", "overlay"),
    [
        pytest.param(base, overlay, id=f"{name(base)}-{name(overlay)}", marks=[] if base.stem in DAILY else pytest.mark.slow)
        for base, overlay in product(BASES, OVERLAYS)
    ],
)
def test_every_overlay_adds_up_with_every_base(base: Path, overlay: Path) -> None:
    """Read by the parser of `lmlab fit` itself; what the overlay says holds, and what only the base says stays."""
    alone = parsed(base)
    unknown = [
        key for key, _ in leaves(read_config(overlay).tree.get("model", {}).get("init_args", {})) if key not in alone.model.init_args
    ]
    if unknown and objective_in(base) in TINY_OF:
        with pytest.raises(ConfigError, match=f"no setting 'model.({'|'.join(unknown)})' in {objective_in(base)}"):
            parsed(base, overlay)
        return
    together = parsed(base, overlay)
    assert (together.model.class_path, together.data.class_path) == (alone.model.class_path, alone.data.class_path)
    _holds(read_config(overlay).tree, together)
    assert together.run.name == alone.run.name
    assert together.model.init_args.get("schedule") == alone.model.init_args.get("schedule")


def _holds(tree: dict[str, Any], config: Any) -> None:
    for key, value in tree.items():
        if key.endswith("+"):
            added = [item["class_path"] for item in value]
            assert [item.class_path for item in config[key[:-1]]][-len(added) :] == added
        elif isinstance(value, dict):
            _holds(value, config[key])
        else:
            assert str(config[key]) == str(value), key


@pytest.mark.parametrize("path", PRETRAIN, ids=lambda path: path.stem)
def test_a_config_runs_and_its_checkpoint_measures_the_same(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMLAB_RUNS", str(tmp_path))
    text = tmp_path / "text.txt"
    sentence = "She had been to {} with her sister, and was not sorry to be home again before the rain. "
    text.write_text("\n\n".join(sentence.format(f"place {n}") * 4 for n in range(150)), encoding="utf-8")
    corpus: str = str(text)
    if read_config(path).tree["data"]["init_args"].get("corpus") == "handbook":  # texts that go together
        tuples = tmp_path / "tuples.jsonl"
        sides = [{f: sentence.format(f"{f} {n}") for f in ("text", "translation", "beside")} for n in range(150)]
        tuples.write_text("".join(f"{json.dumps(row)}\n" for row in sides), encoding="utf-8")
        fields = "[text, translation, beside]"
        corpus = f"{{class_path: lmlab.data.corpus.TupleCorpus, init_args: {{paths: [{tuples}], fields: {fields}}}}}"
    quick = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", f"--data.corpus={corpus}", "--tokenizer.vocab_size=500"]
    tiny = TINY_OF.get(objective_in(path), TINY)
    assert main(["fit", "-c", str(path), "-c", str(CONFIGS / "debug/smoke.yaml"), *tiny, *quick]) == 0
    [run] = list_runs()
    record = Record.load(run.record_path)
    assert (record.status, record.spent["steps"]) == ("finished", 2)
    assert measured(run) == pytest.approx(record.metrics["val/loss"], rel=SAME)


def measured(run: RunDirectory) -> float:
    """The validation loss of what `lmlab.load` returns, summed here and by no trainer."""
    objective = lmlab.load(run.path, "last")
    config = read_config(run.config_path).tree
    corpus = config["data"]["init_args"]["corpus"]
    tokenizer = tokenizer_for(corpus, TokenizerConfig(**config["tokenizer"]))
    assert tokenizer.fingerprint == objective.tokenizer.fingerprint
    store = StoreConfig(**config["data"]["init_args"]["store"])
    data = CorpusModule(corpus, objective.tokenizer, objective.feed(), global_batch_size=4, eval_examples=8, store=store)
    data.setup("validate")
    sums: dict[str, list[float]] = {}
    with torch.inference_mode():
        for batch in data.val_dataloader():
            for part, (total, count, weight) in objective({k: v for k, v in batch.items() if k != "window"}).parts.items():
                before = sums.setdefault(part, [0.0, 0.0, float(weight)])
                sums[part] = [before[0] + float(total), before[1] + float(count), float(weight)]
    return sum(weight * total / count for total, count, weight in sums.values())
