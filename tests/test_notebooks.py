"""Every notebook runs from top to bottom, prints what its run recorded, and is kept without outputs."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from lmlab.run.record import Record

REPOSITORY = Path(__file__).parents[1]
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
TOKENS = 8_000  # eight steps
SECONDS_PER_CELL = 240  # a cell that hangs must not hold up the suite


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to run in, and an environment for the kernel that leads nowhere else; the cache is the session's."""
    variables = {
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "LMLAB_RUNS": str(tmp_path / "runs"),
        "LMLAB_NOTEBOOK_TOKENS": str(TOKENS),
        "OMP_NUM_THREADS": "1",  # two threads that wait for each other on a loaded machine take ten times as long
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "jupyter"),
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    working = tmp_path / "working"
    working.mkdir()
    return working


def printed(cells: Sequence[nbformat.NotebookNode], stream: str = "stdout") -> str:
    """What cells wrote to a stream, with the plain form of what they displayed where `stream` is `stdout`."""
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    shown = [o.get("text", "") if o.output_type == "stream" else o.data.get("text/plain", "") + "\n" for o in outputs]
    return "".join(text for o, text in zip(outputs, shown, strict=True) if o.get("name", "stdout") == stream)


def execute(path: Path, working: Path) -> nbformat.NotebookNode:
    """Runs every cell; nbclient raises on the first that fails."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=SECONDS_PER_CELL, kernel_name="python3", resources={"metadata": {"path": str(working)}})
    return client.execute()


def test_there_are_notebooks() -> None:
    assert "01_first_run.ipynb" in [path.name for path in NOTEBOOKS]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_kept_without_outputs(path: Path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    assert code and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert all(cell["metadata"] == {} and "attachments" not in cell for cell in content["cells"])
    assert content["metadata"] == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }


@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if path.stem == "01_first_run"], ids=lambda path: path.stem)
def test_first_run(path: Path, kernel: Path, tmp_path: Path) -> None:
    notebook = execute(path, kernel)
    said = printed(notebook.cells)

    (folder,) = (tmp_path / "runs" / "first-run").iterdir()
    record = Record.load(folder / "record.json")
    assert record.status == "finished"
    assert TOKENS <= record.spent["tokens"] < TOKENS + 16 * 64  # the step that crosses the limit is the last
    assert "<svg" in (folder / "report.html").read_text(encoding="utf-8")

    found = {name: float(value) for name, value in re.findall(r"^(\w[\w ]*\w) +(\d+\.\d+) bits per byte$", said, re.MULTILINE)}
    assert found["this model"] == round(record.metrics["val/bits_per_byte"], 3)
    assert found["bigram"] < found["unigram"] < found["uniform"]
    # eight steps teach no more than which tokens are frequent
    assert found["unigram"] < found["this model"] < found["uniform"]
    by_hand, recorded = re.search(r"per token = (\d\.\d{4})\nrecorded bits per byte: (\d\.\d{4})", said).groups()
    assert by_hand == recorded

    # what the notebook says of the pure functions, of reloading and of the command line
    assert re.findall(r"(the same|other masks)$", said, re.MULTILINE) == ["the same", "the same", "other masks", "other masks"]
    assert re.findall(r"(?:round trip|passes of two|another process|the same text): +(\w+)", said) == ["True"] * 6
    command, in_memory = printed(notebook.cells[-2:]).split("exit code 0\n")
    assert command.strip() == in_memory.strip() != ""

    assert "Warning" not in printed(notebook.cells, "stderr")
    assert list(kernel.iterdir()) == []  # nothing is written beside the notebook
