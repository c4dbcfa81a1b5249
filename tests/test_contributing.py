"""The objective in CONTRIBUTING.md works as it stands there: three new files and no edit."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest
import yaml

from lmlab.cli import main
from lmlab.run.record import Record

REPOSITORY = Path(__file__).parents[1]
PACKAGE = "contributed"


def test_three_new_files_make_an_objective(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    module, test = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (config,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / PACKAGE).mkdir()
    (tmp_path / PACKAGE / "__init__.py").touch()
    (tmp_path / PACKAGE / "token_substitution.py").write_text(module, encoding="utf-8")
    (tmp_path / "contributed_test.py").write_text(test.replace("lmlab.objectives.", f"{PACKAGE}."), encoding="utf-8")
    (tmp_path / "text.txt").write_text("\n\n".join(f"Paragraph {n}: " + "the quick brown fox jumps. " * 6 for n in range(30)))
    settings = yaml.safe_load(config.replace("lmlab.objectives.", f"{PACKAGE}."))
    settings["budget"] = {"steps": 2, "validations": 1, "checkpoints": 1}
    settings["tokenizer"]["vocab_size"] = 400
    settings["model"]["init_args"]["length"] = 32
    settings["data"]["init_args"] |= {"corpus": "text.txt", "global_batch_size": 2, "eval_examples": 4}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, PACKAGE, raising=False)

    importlib.import_module("contributed_test").test_labels_mark_exactly_the_tokens_that_changed()
    assert main(["fit", "--allow", PACKAGE, "-c", "config.yaml"]) == 0
    (record,) = (tmp_path / "runs" / "token_substitution").glob("*/record.json")
    assert Record.load(record).status == "finished"
    assert Record.load(record).objective == f"{PACKAGE}.token_substitution.TokenSubstitution"
    assert main(["fit", "-c", "config.yaml"]) == 2, "without --allow it is refused"
