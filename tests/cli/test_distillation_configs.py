"""Shipped configs of distillation: each runs two steps beside a teacher, and leaves a student that loads and predicts without one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import lmlab
from lmlab.cli import main
from lmlab.data.module import CorpusModule
from lmlab.objectives.distillation import Distillation
from lmlab.run.find import list_runs
from lmlab.run.record import Record
from tests.cli.test_shipped_configs import CONFIGS, SAME, TAUGHT, read_config

TINY = "--model.backbone={hidden_size: %d, num_layers: %d, num_heads: 4}"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A text, and runs of a tiny teacher of each kind."""
    folder = tmp_path_factory.mktemp("taught")
    text = folder / "text.txt"
    sentence = "She had been to {} with her sister, and was not sorry to be home again before the rain. "
    text.write_text("\n\n".join(sentence.format(f"place {n}") * 4 for n in range(150)), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LMLAB_RUNS", str(folder))
        for name in ("mlm", "clm"):
            assert main(["fit", "-c", str(CONFIGS / f"pretrain/{name}.yaml"), *smoke(text), TINY % (32, 4), "--model.length=32"]) == 0
        yield folder


def smoke(text: Path) -> list[str]:
    """Two steps on a text."""
    quick = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", f"--data.corpus={text}", "--tokenizer.vocab_size=500"]
    return ["-c", str(CONFIGS / "debug/smoke.yaml"), *quick]


@pytest.mark.parametrize("path", TAUGHT, ids=lambda path: path.stem)
def test_a_student_is_taught_and_measures_the_same_when_it_is_loaded(path: Path, place: Path) -> None:
    text, settings = place / "text.txt", read_config(path).tree["model"]["init_args"]
    assert main(["fit", "-c", str(path), *smoke(text), TINY % (settings["backbone"]["hidden_size"] // 4, 2)]) == 0
    [run] = list_runs(name=read_config(path).tree["run"]["name"])
    record = Record.load(run.record_path)
    assert (record.status, record.spent["steps"]) == ("finished", 2)
    student = lmlab.load(run.path, "last")
    assert isinstance(student, Distillation) and not student.teachers and type(student.product).__name__ in ("MLM", "CLM")
    data = CorpusModule(str(text), student.tokenizer, student.feed(), global_batch_size=4, eval_examples=8)
    data.setup("validate")
    batches = list(data.val_dataloader())
    assert all(student.predicted_ids(batch).shape == batch["labels"].shape for batch in batches)
    student.setup("validate")
    sums: dict[str, torch.Tensor] = {}
    with torch.inference_mode():
        for batch in batches:
            for name, part in student(batch).parts.items():
                sums[name] = sums.get(name, torch.zeros(2)) + torch.stack([part.weight * part.sum, part.count.squeeze()])
    assert sum(float(total / count) for total, count in sums.values()) == pytest.approx(record.metrics["val/loss"], rel=SAME)
    if settings["student"]["objective"].endswith("CLM"):
        assert main(["generate", str(run.path), "--prompt", "She", "--max_new_tokens", "3"]) == 0
        assert main(["validate", str(run.path)]) == 0
