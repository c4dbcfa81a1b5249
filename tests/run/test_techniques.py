"""The table of techniques: which runs count, what is ranked, and that every shipped config is in it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lmlab.cli import main
from lmlab.errors import ConfigError
from lmlab.run.directory import create_run
from lmlab.run.record import Record, now
from lmlab.run.techniques import Figure, read_technique

CONFIGS = Path(__file__).parents[2] / "configs"
HEADER = "# {title} on Jane Austen's novels: by {{}}\n#   source:  Somebody 1990, equation 1\n"


def config(folder: Path, name: str, title: str, length: int = 8) -> Path:
    tree = {
        "run": {"name": name},
        "seed_everything": 0,
        "model": {"class_path": "lmlab.objectives.clm.CLM", "init_args": {"length": length}},
    }
    path = folder / "pretrain" / f"{name}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(HEADER.format(title=title) + yaml.safe_dump(tree), encoding="utf-8")
    return path


def run(root: Path, path: Path, seed: int, metrics: dict[str, float], status: str = "finished", length: int | None = None) -> None:
    tree = yaml.safe_load(path.read_text())
    tree["seed_everything"] = seed
    tree["model"]["init_args"] |= {"other": None} | ({"length": length} if length else {})
    made = create_run(root, tree["run"]["name"], seed)
    made.config_path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    Record(
        name=made.name, seed=seed, status=status, started=now(), metrics=metrics, num_parameters=1_300_000,  # type: ignore[arg-type]
        spent={"tokens": 2e6, "flops": 1.5e13},
    ).save(made.record_path)  # fmt: skip


def test_a_mean_over_seeds_of_finished_runs_of_just_this_config(tmp_path: Path) -> None:
    path, root = config(tmp_path, "clm", "Causal"), tmp_path / "runs"
    for seed, bits in ((0, 9.0), (0, 1.5), (1, 1.6), (2, 1.4)):  # of seed 0 the newer one
        run(root, path, seed, {"val/bits_per_byte": bits, "val/loss": 3.0, "train/bits_per_byte": 7.0})
    run(root, path, 3, {"val/bits_per_byte": 5.0}, status="failed")
    run(root, path, 4, {"val/bits_per_byte": 5.0}, length=16)
    found = read_technique(path, root, path)
    assert (found.title, found.source, found.code) == ("Causal", "Somebody 1990, equation 1", "lmlab/objectives/clm.py")
    assert list(found.records) == [0, 1, 2]
    (figure,) = found.figures()
    assert (figure.metric, figure.mean, figure.deviation) == ("bits_per_byte", pytest.approx(1.5), pytest.approx(0.1))


def test_shares_are_in_per_cent_and_tasks_are_named() -> None:
    assert str(Figure("pair_accuracy", 0.705, 0.012)) == "70.5 ± 1.2 % of the pairs right"
    assert str(Figure("clm/bits_per_byte", 1.5, None)) == "clm: 1.500 bits per byte"


def test_only_likelihoods_are_ranked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "runs"
    for name, metrics in (
        ("worse", {"val/bits_per_byte": 2.0}),
        ("better", {"val/bits_per_byte": 1.0}),
        ("a-masked", {"val/accuracy": 0.2, "val/loss": 1.0}),
        ("b-masked", {"val/accuracy": 0.9, "val/loss": 4.0}),
    ):
        run(root, config(tmp_path, name, name), 0, metrics)
    config(tmp_path, "untrained", "untrained")
    assert main(["techniques", "--configs", str(tmp_path), "--root", str(root)]) == 0
    _, figures, sources = capsys.readouterr().out.replace("\u202f", " ").split("## ")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in figures.splitlines()[4:-1]]
    assert [row[0] for row in rows] == ["better", "worse", "a-masked", "b-masked", "untrained"], "without a likelihood: as the files stand"
    assert rows[0][2:] == ["1.000", "", "1.3 M", "2 M", "15 T", "1"]
    assert rows[2][2:4] == ["", "20.0 % of the tokens right"] and rows[4][2:] == ["", "not measured yet", "", "", "", ""]
    assert "| better | Somebody 1990, equation 1 | `lmlab/objectives/clm.py` |" in sources


def test_the_table_goes_below_its_mark(tmp_path: Path) -> None:
    config(tmp_path, "clm", "Causal")
    page = tmp_path / "page.md"
    arguments = ["techniques", "--configs", str(tmp_path), "--root", str(tmp_path / "runs"), "--write", str(page)]
    assert main(arguments) == 2, "no mark"
    page.write_text("# Title\n\n<!-- table -->\nold")
    assert main(arguments) == 0
    assert page.read_text().startswith("# Title\n\n<!-- table -->\n\n## What") and "old" not in page.read_text()


def test_a_config_without_a_source_is_refused(tmp_path: Path) -> None:
    path = config(tmp_path, "clm", "Causal")
    path.write_text(path.read_text().replace("source", "sauce"))
    with pytest.raises(ConfigError, match="no source"):
        read_technique(path, tmp_path, path)
