"""`lmlab validate` and `lmlab predict` on several ranks say what one process says, example for example."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path

import pytest

from lmlab.cli import main
from lmlab.data.corpus import open_corpus
from lmlab.run.find import list_runs
from tests.ranks import forked

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),  # what DeepSpeed imports
    pytest.mark.filterwarnings("ignore:.*torch.distributed.*deprecated:FutureWarning"),  # what it calls
]

CONFIGS = Path(__file__).parents[2] / "configs"
QUICK = ("--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false")
NUM_EXAMPLES = 13  # does not divide among ranks and passes of two


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a short run of each kind, `mlm` and `clm`."""
    folder = tmp_path_factory.mktemp("measured")
    paragraphs = [p for p in next(iter(open_corpus("austen").documents())).text.splitlines() if len(p) > 60]
    (folder / "text.txt").write_text("\n\n".join(paragraphs[:120]), encoding="utf-8")
    sizes = ["--model.backbone={hidden_size: 32, num_layers: 2, num_heads: 2}", "--model.length=32", "--tokenizer.vocab_size=400"]
    batches = ["--data.global_batch_size=24", "--data.micro_batch_size=2", f"--data.eval_examples={NUM_EXAMPLES}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LMLAB_RUNS", str(folder))
        for stem in ("mlm", "clm"):
            configs = ["-c", str(CONFIGS / f"pretrain/{stem}.yaml"), "-c", str(CONFIGS / "debug/smoke.yaml")]
            held_out = ["--data.store.val_share=0.2", "--data.store.test_share=0.2"]
            assert main(["fit", *configs, f"--data.corpus={folder / 'text.txt'}", *sizes, *batches, *held_out, *QUICK]) == 0
    return folder


def said(arguments: Sequence[str], out: Path) -> None:
    """Runs a command, and keeps what it prints, if it is the rank that prints."""
    with out.open("a", encoding="utf-8") as file, redirect_stdout(file):
        assert main([*arguments]) == 0


def losses(path: Path) -> dict[str, float]:
    return {name: float(value) for name, value in re.findall(r"^(val/\S+) +([-\d.]+)", path.read_text(encoding="utf-8"), re.MULTILINE)}


@pytest.mark.parametrize(
    ("stem", "strategy", "ranks"),
    [
        ("mlm", "fsdp", 2),
        ("clm", "ddp", 3),
        *(pytest.param("clm", strategy, 2, marks=pytest.mark.slow) for strategy in ("zero1", "zero2", "zero3", "fsdp_tp")),
        pytest.param("mlm", "hsdp", 4, marks=pytest.mark.slow),
    ],
)
def test_ranks_measure_as_one_process(runs: Path, monkeypatch: pytest.MonkeyPatch, stem: str, strategy: str, ranks: int) -> None:
    monkeypatch.setenv("LMLAB_RUNS", str(runs))
    [run] = list_runs(name=stem)
    predictions, out = run.path / "predictions.jsonl", runs / f"{stem}-{strategy}.txt"
    said(["predict", stem, *QUICK], out)
    said(["validate", stem, *QUICK], out)
    alone, numbers = predictions.read_text(encoding="utf-8"), losses(out)
    assert alone.count("\n") == NUM_EXAMPLES and numbers
    predictions.unlink()
    out.unlink()
    shared = ["-c", str(CONFIGS / f"strategies/{strategy}.yaml"), f"--trainer.devices={ranks}", *QUICK]
    forked(partial(said, ["predict", stem, *shared], out), num_ranks=ranks)
    forked(partial(said, ["validate", stem, *shared], out), num_ranks=ranks)
    assert predictions.read_text(encoding="utf-8") == alone, "every example once, in its place"
    assert losses(out) == pytest.approx(numbers, abs=1.01e-4)  # four decimals are shown
    assert str(predictions) in out.read_text(encoding="utf-8")
