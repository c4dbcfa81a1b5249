"""The page as a browser reads it: parsed back, its figures compared with the files they come from."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmlab.errors import CheckpointError
from lmlab.run.directory import RunDirectory, create_run
from lmlab.run.record import Git, Record
from lmlab.run.report import write_report
from lmlab.run.samples import Piece, Sample, append_samples

VOID = {"meta", "input", "br"}
HOSTILE = "</div></script><script>alert(1)</script><img src=x onerror=alert(2)> \" ' & $title ${x} {0} \x00\ud800\u202e中文"


class Page(HTMLParser):
    """Elements, attributes and text; fails on tags that do not nest."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: dict[str, list[str]] = {}
        self.source = source
        self.feed(source)
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.stack:
            self.words.setdefault(self.stack[-1], []).append(data)

    @property
    def text(self) -> str:
        return " ".join(w for tag, words in self.words.items() if tag not in ("script", "style") for w in words).replace("\u202f", " ")


def make(root: Path, **changes: object) -> RunDirectory:
    run = create_run(root, "mlm", 3)
    record = Record(
        name="mlm",
        seed=3,
        status="finished",
        question="Is it so?",
        objective="lmlab.objectives.mlm.MLM",
        corpus="austen",
        started="2026-01-02T03:04:05.000006+00:00",
        git=Git(commit="c0ffee" * 6 + "abcd", dirty=True),
        budget={"tokens": 2e6},
        spent={"steps": 100, "tokens": 1_000_000, "flops": 1.5e15, "seconds": 252.0},
        metrics={"val/bits_per_byte": 2.5},
        anchors={"uniform": 8.0, "unigram": 4.5, "recurrent": 2.25},
        num_parameters=4_000_000,
        tokens_per_second=4000.0,
        flops_utilisation=0.25,
    )
    dataclasses.replace(record, **changes).save(run.record_path)  # type: ignore[arg-type]
    rows = ["step,budget/tokens,train/loss,val/loss,train/learning_rate"]
    rows += [f"{s},{s * 10_000},{9 - s / 20},{[5.5, 4.25, 4.75][s // 40] if s in (20, 60, 100) else ''},0.001" for s in range(1, 101)]
    run.metrics_path.write_text("\n".join(rows) + "\n")
    run.config_path.write_text(yaml.safe_dump({"name": "mlm", "hub": {"api_key": "plain-secret"}, "model": {"mask_token": "[MASK]"}}))
    environment = {
        "command": ["lmlab", "fit", "-c", "my config.yaml"],
        "python": "3.11.7",
        "machine": {"cpu": "A CPU", "cores": 4, "usable_cores": 2},
    }
    run.environment_path.write_text(json.dumps(environment | {"torch": {"threads": 2}, "packages": {"lmlab": "0.1.0", "torch": "2.13.0"}}))
    append_samples(
        run.samples_path,
        [Sample(step=s, pieces=(Piece(text="It is a "), Piece(text=w, by="model", truth="truth"))) for s, w in ((0, "the"), (9, "truth"))],
    )
    return run


def page_of(run: RunDirectory) -> Page:
    return Page(write_report(run).read_text(encoding="utf-8"))


def test_the_page_says_what_the_files_say(tmp_path: Path) -> None:
    page = page_of(make(tmp_path))
    for words in (
        "mlm", "Is it so?", "finished", "MLM", "on austen", "seed 3", "4 M parameters", "2026-01-02 03:04 UTC",
        "Validation loss went from 5.5 to 4.75 in 100 steps.", "It was lowest at step 60 with 4.25 and has risen since.",
        "At 2.5 bits per byte it lies between recurrent (2.25) and unigram (4.5).",
        "at step 60, last 4.75", "50% of the budget", "1 M of 2 M", "1.5 P", "4 min 12 s", "25%", "A CPU", "2.13.0",
        "git checkout c0ffeec0ffee", "uncommitted", "lmlab fit -c 'my config.yaml'", "step 9",
    ):  # fmt: skip
        assert words in page.text, words
    assert page.words["ins"].count("truth") == 1 and page.words["ins"].count("the") == 1


def test_it_loads_nothing_and_runs_nothing_but_its_own_script(tmp_path: Path) -> None:
    page = page_of(make(tmp_path))
    assert not [(k, v) for k, v in page.attributes if k in ("src", "href", "action", "xlink:href") or k.startswith("on")]
    assert set(re.findall(r"https?://[^\s\"'<]*", page.source)) == {"http://www.w3.org/2000/svg"}
    assert "@import" not in page.source and "url(" not in page.source
    policy = next(v for k, v in page.attributes if k == "content" and v and "default-src" in v)
    digest = base64.b64encode(hashlib.sha256("".join(page.words["script"]).encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy
    assert page.tags.count("script") == 1


def test_text_from_outside_stays_text(tmp_path: Path) -> None:
    plain = page_of(make(tmp_path, error="e", parent="p"))
    run = make(
        tmp_path,
        question=HOSTILE,
        error=HOSTILE,
        corpus=HOSTILE,
        objective=HOSTILE,
        anchors={HOSTILE: 3.0, "b": 4.0, "c": 1.0},
        parent=HOSTILE,
    )
    run.metrics_path.write_text(run.metrics_path.read_text().replace("train/learning_rate", '"train/<script>x"'))
    append_samples(run.samples_path, [Sample(step=1, pieces=(Piece(text=HOSTILE), Piece(text=HOSTILE, by="model", truth=HOSTILE)))])
    run.environment_path.write_text(json.dumps({"command": [HOSTILE], "packages": {HOSTILE: HOSTILE}, "machine": {"cpu": HOSTILE}}))
    run.config_path.write_text(yaml.safe_dump({"x": HOSTILE.replace("\ud800", "")}))
    page = page_of(run)
    assert set(page.tags) <= set(plain.tags) and page.tags.count("script") == 1 and "img" not in page.tags
    assert not [k for k, _ in page.attributes if k.startswith("on")]
    assert "alert(1)" in page.text and "$title ${x}" in page.text and "中文" in page.text
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\u202e]", page.source)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=60))
def test_any_text_is_shown_and_nests(tmp_path: Path, words: str) -> None:
    run = make(tmp_path / hashlib.sha256(words.encode("utf-8", "surrogatepass")).hexdigest(), question=words, error="")
    append_samples(run.samples_path, [Sample(step=1, pieces=(Piece(text=words), Piece(text=words, by="model")))])
    page = page_of(run)
    assert page.tags.count("script") == 1
    letters = "".join(c for c in words if c.isalnum())
    assert letters in "".join(c for c in page.text if c.isalnum())


def test_secrets_of_the_config_are_hidden_and_the_rest_is_not(tmp_path: Path) -> None:
    page = page_of(make(tmp_path))
    assert "plain-secret" not in page.source and "api_key: '***'" in page.text and "'[MASK]'" in page.text


def test_every_part_may_be_missing_or_broken(tmp_path: Path) -> None:
    nothing = {"spent": {}, "budget": {}, "metrics": {}, "anchors": {}, "git": None, "question": ""}
    run = make(tmp_path, **nothing, num_parameters=None, tokens_per_second=None, flops_utilisation=None)
    for path in (run.metrics_path, run.samples_path, run.environment_path, run.config_path):
        path.unlink()
    page = page_of(run)
    assert page.tags.count("section") == 0 and page.tags.count("h1") == 1
    run.environment_path.write_text("{")
    run.config_path.write_text("a: [\n\x00")
    run.samples_path.write_text("{")
    run.metrics_path.write_text("step,train/loss\n1,5.0\n2,4.")
    assert "5" in page_of(run).words["text"][-1]
    run.record_path.unlink()
    with pytest.raises(CheckpointError, match="no record"):
        write_report(run)


def test_a_run_without_validation_and_a_diverged_run_are_told_plainly(tmp_path: Path) -> None:
    run = make(tmp_path, metrics={}, anchors={})
    run.metrics_path.write_text("step,train/loss\n1,9\n2,8.5\n")
    assert "Training loss went from 9 to 8.5 in 2 steps. There was no validation." in page_of(run).text
    run.metrics_path.write_text("step,train/loss\n1,9\n2,nan\n3,nan\n")
    assert "The training loss was not a finite number from step 2 on." in page_of(run).text
    run.metrics_path.write_text("step,val/loss\n1,9\n2,8.9999\n")
    assert "hardly moved" in page_of(run).text


@pytest.mark.parametrize(
    ("value", "words"),
    [(9.0, "worse than every anchor, so nothing else here means much"), (2.0, "beats every anchor; the best of them, recurrent, has 2.25")],
)
def test_the_anchors_judge_the_run(tmp_path: Path, value: float, words: str) -> None:
    assert words in page_of(make(tmp_path, metrics={"val/bits_per_byte": value})).text


def test_a_killed_run_is_not_called_running(tmp_path: Path) -> None:
    run = make(tmp_path, status="running")
    assert "running" in page_of(run).words["span"]
    lock = run.claim()
    assert "running" in page_of(run).words["span"]
    lock.release()
    assert "interrupted" in page_of(run).words["span"]


def test_the_curves_are_files_as_well(tmp_path: Path) -> None:
    run = make(tmp_path)
    write_report(run)
    assert sorted(p.name for p in run.plots.iterdir()) == ["learning_rate.svg", "loss.svg"]
    for path in run.plots.iterdir():
        assert ET.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_a_report_of_a_long_run_stays_small(tmp_path: Path) -> None:
    run = make(tmp_path)
    rows = [
        "step,train/loss,val/loss",
        *(f"{s},{9 - s / 4000 + (s * 7919 % 13) / 50},{9 - s / 4000 if s % 500 == 0 else ''}" for s in range(1, 12_001)),
    ]
    run.metrics_path.write_text("\n".join(rows) + "\n")
    assert write_report(run).stat().st_size < 400_000


def test_a_secret_in_a_question_or_an_error_is_not_shown(tmp_path: Path) -> None:
    secret = "sk-abcdefghijklmnopqrstuvwx"
    run = make(tmp_path, question=f"my {secret}", error=f"failed with {secret}", status="failed")
    assert secret not in write_report(run).read_text(encoding="utf-8")


def test_what_was_found_alike_stands_below_its_text(tmp_path: Path) -> None:
    run = make(tmp_path)
    run.samples_path.unlink()
    for step in (0, 500):
        found = (Piece(text=f"Rain <{step}>.", by="search", cosine=0.913), Piece(text="Snow.", by="search", cosine=-0.05))
        append_samples(run.samples_path, [Sample(step=step, pieces=(Piece(text="The sun shone."), *found))])
    page = page_of(run)
    assert page.text.count("The sun shone.") == 1 and "What it finds alike" in page.text and "What it wrote" not in page.text
    assert all(said in page.text for said in ("Rain <0>.", "Rain <500>.", "0.91", "\N{MINUS SIGN}0.05", "step 500"))
    assert page.attributes.count(("class", "found")) == 4 and page.attributes.count(("class", "text asked")) == 1


def test_what_several_tasks_show_stands_in_sections_of_their_own(tmp_path: Path) -> None:
    run = make(tmp_path)
    run.samples_path.unlink()
    found = Sample(step=0, pieces=(Piece(text="The sun shone."), Piece(text="Snow.", by="search", cosine=0.5)))
    filled = Sample(step=0, pieces=(Piece(text="It was "), Piece(text="wet", by="model", truth="dry"), Piece(text=".")))
    written = Sample(step=0, pieces=(Piece(text="Once upon"), Piece(text=" a time", by="model")))
    append_samples(run.samples_path, [found, filled, written])
    page = write_report(run).read_text(encoding="utf-8")
    own, alike = page.index(">What it wrote<"), page.index(">What it finds alike<")
    assert own < page.index("Underlined") < page.index("Dark is what") < page.index("Once upon") < alike < page.index("The sun shone.")
