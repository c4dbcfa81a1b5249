"""Teachers: found or refused with a reason, read from Hugging Face folders, and lending layers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything

from lmlab.backbones import BackboneConfig, RecurrentConfig
from lmlab.checkpoint import write_checkpoint
from lmlab.errors import CheckpointError, ConfigError
from lmlab.objectives.base import Objective
from lmlab.objectives.distillation import Distillation
from lmlab.objectives.distillation_losses import DistillationLoss, ResponseConfig
from lmlab.objectives.layer_map import FeatureMatch
from lmlab.objectives.mlm import MLM
from lmlab.objectives.multitask import Multitask
from lmlab.objectives.nested import ObjectiveConfig
from lmlab.objectives.ngram import NGram
from lmlab.objectives.nsp import NextSentence
from lmlab.objectives.recurrent_lm import RecurrentLM
from lmlab.objectives.task_config import TaskConfig
from lmlab.objectives.teachers import TeacherConfig, read_teacher
from lmlab.tokenizer import Tokenizer, TokenizerConfig
from tests.objectives.teaching import KINDS, STUDENT, TEACHER, batches, described, student, taught, teacher
from tests.objectives.toy import LENGTH, TEXT, tokenizer

RESPONSE = DistillationLoss(response=ResponseConfig())
GPT2 = b'{"model_type": "gpt2", "vocab_size": 300, "n_embd": 8, "n_layer": 1, "n_head": 1, "n_positions": 32}'
HIDDEN = DistillationLoss(features=(FeatureMatch(feature="hidden", teacher=-1, student=-1, loss="mse", projection="linear"),))


@pytest.fixture(scope="module")
def tok() -> Tokenizer:
    return tokenizer()


def saved(objective: Objective, path: Path) -> str:
    content: dict[str, Any] = {"state_dict": objective.state_dict()}
    objective.on_save_checkpoint(content)
    write_checkpoint(content, path)
    return str(path)


def test_a_checkpoint_teaches_as_it_was_trained(tok: Tokenizer, tmp_path: Path) -> None:
    guide = teacher("clm", tok)
    read = read_teacher(TeacherConfig(run=saved(guide, tmp_path / "t.ckpt")), tok, "mlm", "teachers[0]")
    batch = batches(guide, tok)[0]
    assert torch.equal(read.states(batch), guide.states(batch)) and not read.training


def test_a_student_can_teach_in_its_turn(tok: Tokenizer, tmp_path: Path) -> None:
    made = taught("mlm", tok, RESPONSE)
    read = read_teacher(TeacherConfig(run=saved(made, tmp_path / "t.ckpt")), tok, "mlm", "teachers[0]")
    assert isinstance(read, MLM) and torch.equal(read.head.weight, made.student.head.weight)


@pytest.mark.parametrize("kind", ["mlm", "clm"])
def test_of_a_run_of_several_tasks_that_of_the_students_kind_teaches(kind: str, tok: Tokenizer, tmp_path: Path) -> None:
    """And has the backbone that the tasks shared for its own: it rests, is lent from, and moves with it."""
    seed_everything(0, verbose=False)
    tasks = {name: TaskConfig(objective=described(name).objective, settings={"length": LENGTH}) for name in ("clm", "mlm")}
    both = Multitask(tok, TEACHER, tasks=tasks)
    both.configure_model()
    lending = (TeacherConfig(run=saved(both, tmp_path / "t.ckpt"), lends=(1, 2, 3)),)
    made = student(kind, tok, RESPONSE, TEACHER, teachers=lending)
    made.setup("fit")
    guide = made.teachers[0].module  # type: ignore[union-attr]
    batch = batches(made, tok)[0]
    assert torch.equal(guide.states(batch), both.child(kind).states(batch))  # type: ignore[operator]
    assert type(guide) is KINDS[kind] and made(batch).parts["response"].sum == 0
    assert guide.backbone in guide.children() and not any(p.requires_grad for p in guide.backbone.parameters())
    assert made.double()(batch).parts["response"].sum.dtype == torch.float64 and not made.train().teachers[0].module.backbone.training  # type: ignore[union-attr]


def test_setup_reads_teachers_for_all_but_predicting(tok: Tokenizer, tmp_path: Path) -> None:
    run = saved(teacher("mlm", tok), tmp_path / "t.ckpt")
    for stage, num in (("predict", 0), ("fit", 1), ("validate", 1)):
        made = student("mlm", tok, RESPONSE, teachers=(TeacherConfig(run=run),))
        made.setup(stage)
        assert len(made.teachers) == num
        made.setup(stage)
        assert len(made.teachers) == num, "read once"


def test_a_teacher_that_is_not_there_is_named(tok: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMLAB_RUNS", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"no run 'mml'[\s\S]*teachers\[0\].run"):
        student("mlm", tok, RESPONSE, teachers=(TeacherConfig(run="mml"),)).setup("fit")


def test_another_vocabulary_is_refused_and_another_way_named(tok: Tokenizer, tmp_path: Path) -> None:
    run = saved(teacher("mlm", tok), tmp_path / "t.ckpt")
    other = Tokenizer.train([TEXT] * 3, TokenizerConfig(vocab_size=290, num_sentinels=8))
    made = student("mlm", other, RESPONSE, teachers=(TeacherConfig(run=run),))
    with pytest.raises(ConfigError, match=r"another tokenizer[\s\S]*distill-corpus"):
        made.setup("fit")


@pytest.mark.parametrize(("theirs", "ours"), [("clm", "mlm"), ("mlm", "clm"), ("span_corruption", "mlm"), ("clm", "span_corruption")])
def test_answers_to_another_question_are_refused(theirs: str, ours: str, tok: Tokenizer) -> None:
    with pytest.raises(ConfigError, match=f"trained on '{theirs}', the student on '{ours}'"):
        student(ours, tok, RESPONSE).learn_from([teacher(theirs, tok)])


def pairs(tok: Tokenizer) -> NextSentence:
    made = NextSentence(tok, dataclasses.replace(TEACHER, num_segments=2), length=LENGTH)
    made.configure_model()
    return made


def test_a_teacher_of_blocks_is_refused_by_a_student_of_pairs(tok: Tokenizer) -> None:
    task = ObjectiveConfig(objective="lmlab.objectives.nsp.NextSentence", settings={"length": LENGTH})
    segments = dataclasses.replace(STUDENT, num_segments=2)
    made = Distillation(tok, segments, student=task, teachers=(TeacherConfig(run="x"),), loss=RESPONSE)
    with pytest.raises(ConfigError, match=r"two sentences of a pair[\s\S]*0 segments"):
        made.learn_from([teacher("mlm", tok)])
    blocks = student("mlm", tok, RESPONSE)
    for one, parts in ((made, {"mlm", "nsp", "response"}), (blocks, {"mlm", "response"})):
        one.learn_from([pairs(tok)])
        assert one(batches(one, tok)[0]).parts.keys() == parts


def test_an_ngram_model_has_nothing_to_show(tok: Tokenizer, tmp_path: Path) -> None:
    made = NGram(tok, length=LENGTH)
    made.configure_model()
    with pytest.raises(ConfigError, match=r"cannot teach[\s\S]*NGram, which does not predict tokens from hidden states"):
        read_teacher(TeacherConfig(run=saved(made, tmp_path / "t.ckpt")), tok, "mlm", "teachers[0]")


def test_a_recurrent_teacher_answers_and_lends_nothing(tok: Tokenizer) -> None:
    guide = RecurrentLM(tok, RecurrentConfig(hidden_size=16, num_layers=1), length=LENGTH)
    guide.configure_model()
    made = student("clm", tok, RESPONSE)
    made.learn_from([guide])
    assert made(batches(made, tok)[0]).parts["response"].sum > 0
    with pytest.raises(ConfigError, match=r"no layers of attention[\s\S]*teachers\[0\].lends"):
        student("clm", tok, RESPONSE, teachers=(TeacherConfig(run="x", lends=(1, 2)),)).learn_from([guide])


def test_a_causal_teacher_may_show_a_masked_student_its_states(tok: Tokenizer) -> None:
    made = student("mlm", tok, HIDDEN)
    made.learn_from([teacher("clm", tok)])
    assert made(batches(made, tok)[0]).parts["hidden_last_mse"].sum > 0
    with pytest.raises(ConfigError, match="cannot read what"):
        student("mlm", tok, HIDDEN).learn_from([teacher("span_corruption", tok)])


def test_a_teacher_with_too_few_positions_is_refused(tok: Tokenizer) -> None:
    short = teacher("mlm", tok, BackboneConfig(hidden_size=32, num_layers=1, num_heads=2, position="learned", max_length=LENGTH))
    made = Distillation(
        tok,
        STUDENT,
        student=dataclasses.replace(described("mlm"), settings={"length": LENGTH + 1}),
        teachers=(TeacherConfig(run="x"),),
        loss=RESPONSE,
    )
    with pytest.raises(ConfigError, match=r"do not fit into 16 learned positions[\s\S]*where: teachers\[0\].run"):
        made.learn_from([short])


def test_a_teacher_that_learned_positions_reads_rows_of_its_own_length(tok: Tokenizer) -> None:
    """In span corruption these are shorter than the text they are made of."""
    config = BackboneConfig(hidden_size=32, num_layers=1, num_heads=2, position="learned", max_length=LENGTH)
    made = student("span_corruption", tok, RESPONSE)
    assert made._student_feed.length > LENGTH
    made.learn_from([teacher("span_corruption", tok, config)])
    made(batches(made, tok)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_starts_from_the_layers_it_is_lent(kind: str, tok: Tokenizer) -> None:
    guide = teacher(kind, tok)
    config = dataclasses.replace(
        TEACHER, num_layers=2, num_decoder_layers=1 if kind == "span_corruption" else None, dropout=0.1, max_length=99
    )
    layers = (1, 3, 5) if kind == "span_corruption" else (1, 3)
    made = student(kind, tok, RESPONSE, config, teachers=(TeacherConfig(run="x", lends=layers),))
    made.learn_from([guide])
    ours, theirs = made.student.backbone, guide.backbone
    for mine, number in zip(ours.blocks, layers, strict=True):  # type: ignore[union-attr]
        for name, value in theirs.blocks[number - 1].state_dict().items():  # type: ignore[union-attr,index]
            assert torch.equal(mine.state_dict()[name], value)
    around = {name: value for name, value in made.student.state_dict().items() if ".blocks." not in name}
    assert around and all(torch.equal(value, guide.state_dict()[name]) for name, value in around.items())


def test_trained_weights_are_not_overwritten(tok: Tokenizer) -> None:
    lending = (TeacherConfig(run="x", lends=(1, 3)),)
    config = dataclasses.replace(TEACHER, num_layers=2)
    made = student("mlm", tok, RESPONSE, config, teachers=lending)
    made.configure_model()
    seed_everything(9, verbose=False)
    drawn = {name: torch.randn_like(value) for name, value in made.state_dict().items()}
    made.load_state_dict(drawn)
    made.learn_from([teacher("mlm", tok)])
    assert all(torch.equal(value, drawn[name]) for name, value in made.state_dict().items())


@pytest.mark.parametrize(
    ("layers", "config", "why"),
    [
        ((1, 4), {}, r"layers \[1, 4\] of a teacher of 3"),
        ((1,), {}, "do not make a student of 2"),
        ((1, 3), {"hidden_size": 16}, r"hidden_size \(32 there, 16 here\)"),
        ((1, 3), {"activation": "geglu"}, r"activation \(swiglu there, geglu here\)"),
        ((1, 3), {"tie": "untied"}, "tie"),
    ],
)
def test_layers_of_another_make_are_refused(layers: tuple[int, ...], config: dict[str, Any], why: str, tok: Tokenizer) -> None:
    own = dataclasses.replace(TEACHER, **{"num_layers": 2} | config)
    made = student("mlm", tok, RESPONSE, own, teachers=(TeacherConfig(run="x", lends=layers),))
    with pytest.raises(ConfigError, match=why):
        made.learn_from([teacher("mlm", tok)])


def test_a_head_that_is_not_there_is_not_left_at_random(tok: Tokenizer) -> None:
    config = dataclasses.replace(TEACHER, head_bias=True)
    guide, made = teacher("mlm", tok, config), student("mlm", tok, RESPONSE, config, teachers=(TeacherConfig(run="x", lends=(1, 2, 3)),))
    guide.head.output_bias = None
    with pytest.raises(ConfigError, match=r"has no head.output_bias"):
        made.learn_from([guide])


@pytest.mark.parametrize(
    ("files", "checkpoint", "error", "why"),
    [
        ({"config.json": b"{oops"}, None, CheckpointError, "config.json in model is broken"),
        ({"config.json": b"{}"}, None, ConfigError, "model type 'None'"),
        ({"config.json": GPT2, "model.safetensors": b"garbage"}, None, CheckpointError, "weights in model are broken"),
        ({"config.json": GPT2, "pytorch_model.bin": b""}, None, CheckpointError, "no .safetensors"),
        ({"config.json": GPT2}, "best", ConfigError, "no checkpoint to choose"),
    ],
)
def test_a_broken_hugging_face_folder_is_named(
    files: dict[str, bytes], checkpoint: str | None, error: type[Exception], why: str, tok: Tokenizer, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    tok.save(folder)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    with pytest.raises(error, match=why):
        read_teacher(TeacherConfig(run=str(folder), checkpoint=checkpoint), tok, "mlm", "teachers[0]")


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_a_hugging_face_folder_teaches(family: str, tok: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    seed_everything(0, verbose=False)
    tok.save(tmp_path)
    size = tok.vocab_size + (5 if family == "bert" else -3)  # a vocabulary that is longer, or lacks the last tokens
    if family == "bert":
        config = transformers.BertConfig(
            vocab_size=size, hidden_size=24, num_hidden_layers=3, num_attention_heads=2, intermediate_size=40, initializer_range=0.3
        )
        model = transformers.BertForMaskedLM(config)
    else:
        model = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=size, n_embd=24, n_layer=3, n_head=2, initializer_range=0.3)
        )
    model.eval().save_pretrained(tmp_path, safe_serialization=True)
    kind = "mlm" if family == "bert" else "clm"
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    made = student(kind, tok, RESPONSE, teachers=(TeacherConfig(run=f"~/{tmp_path.name}"),))
    made.setup("fit")
    known = min(size, tok.vocab_size)
    batch = {key: value % known if key == "input_ids" else value for key, value in batches(made, tok, size=8)[0].items()}
    batch = {key: value for key, value in batch.items() if key not in ("document_ids", "position_ids")}
    guide = made.teachers[0].module  # type: ignore[union-attr]
    with torch.no_grad():
        wanted = model(input_ids=batch["input_ids"]).logits
        found = guide.head(guide.states(batch))
    torch.testing.assert_close(found[..., :known], wanted[..., :known], rtol=1e-4, atol=1e-4)
    unknown = wanted.mean(-1, keepdim=True).expand_as(found[..., known:])  # the mean embedding has the mean score
    torch.testing.assert_close(found[..., known:], unknown, rtol=1e-4, atol=1e-4)
    assert not guide.training and found.shape[-1] == tok.vocab_size
    made(batch).total(batch["counts"]).backward()
    other = student(
        kind, Tokenizer.train([TEXT] * 3, TokenizerConfig(vocab_size=290, num_sentinels=8)), RESPONSE, teachers=made.teacher_configs
    )
    with pytest.raises(ConfigError, match="is not the student's"):
        other.setup("fit")
    if family == "bert":
        model.bert.save_pretrained(tmp_path, safe_serialization=True)
        with pytest.raises(CheckpointError, match="has no head"):
            student(kind, tok, RESPONSE, teachers=made.teacher_configs).setup("fit")
