"""Teachers: runs, or Hugging Face models, that a student learns from. They are read when training or measuring needs them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path

import torch
from torch import nn

from lmlab.backbones import EncoderDecoder
from lmlab.backbones.base import Backbone, BackboneConfig
from lmlab.backbones.features import stacks_of
from lmlab.checkpoint import objective_from, read_checkpoint
from lmlab.config import require
from lmlab.data.batch import Batch, Feed
from lmlab.errors import CheckpointError, ConfigError
from lmlab.nn.sharded import load_whole
from lmlab.objectives.base import Objective
from lmlab.objectives.hugging_face import is_hugging_face, read_hugging_face
from lmlab.objectives.nested import take_out
from lmlab.objectives.span_corruption import SpanCorruption
from lmlab.objectives.tokens import TokenObjective
from lmlab.run.find import find_checkpoint
from lmlab.tokenizer import Tokenizer

ANOTHER_WAY = "let the teacher write a text and train the student on that: lmlab distill-corpus RUN --output FILE"
"""What works between two vocabularies."""
NOT_OF_THE_FUNCTION = {
    *("num_layers", "num_decoder_layers", "init", "init_std", "residual_init", "checkpointing"),
    *("dropout", "embedding_dropout", "attention_dropout", "feedforward_dropout", "output_dropout"),
}
"""Settings in which two networks may differ whose layers compute the same."""


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Who teaches.

    Args:
        run: A run's folder, a `.ckpt` file, a name (its newest finished run), or a folder with a Hugging Face model.
        checkpoint: `best`, `last` or `step=N`; None takes the best, else the last. Not for Hugging Face.
        weight: Its share in the mean of several teachers' probabilities.
        lends: Layers, counted from 1, that the student's layers start from; embeddings, norms and head come along. Empty: the student
            starts at random.

    Source: Sanh et al. 2019, "DistilBERT", section 2 (a student that starts from one layer in two).
    """

    run: str
    checkpoint: str | None = None
    weight: float = 1.0
    lends: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuses a teacher without a name or a say."""
        require(bool(self.run), self, "run", "a teacher is a run or a folder", "name one; `lmlab runs` lists them")
        require(0 < self.weight < inf, self, "weight", "it is a share", "set a positive number, or leave the teacher out")
        require(all(layer >= 1 for layer in self.lends), self, "lends", "layers are counted from 1", "for example [2, 4]")


def check_teachers(configs: Sequence[TeacherConfig], answers: bool) -> None:
    """Refuses a list of teachers of which one would have no effect.

    Args:
        configs: Who teaches.
        answers: Whether their answers are asked for.

    Raises:
        ConfigError: Then.
    """
    if not configs:
        raise ConfigError("there is nobody to learn from", where="teachers", remedy="set teachers: [{run: NAME}]; `lmlab runs` lists runs")
    if len(configs) > 1 and not answers:
        why = "layers are matched with the first, and answers are not asked for"
        raise ConfigError("the second teacher has no say", where="teachers", why=why, remedy="set loss.response, or name one teacher")
    if len(configs) == 1 and configs[0].weight != 1.0:
        why = "it is a share among several teachers"
        raise ConfigError(
            "the weight of an only teacher has no effect", where="teachers[0].weight", why=why, remedy="set loss.response.weight"
        )
    if sum(bool(config.lends) for config in configs) > 1:
        raise ConfigError("the student can start from one teacher only", where="teachers", remedy="leave the other `lends` out")


def read_teacher(config: TeacherConfig, tokenizer: Tokenizer, part: str, where: str) -> TokenObjective:
    """Reads a trained teacher.

    Args:
        config: Who it is.
        tokenizer: The student's.
        part: What the student predicts; of a run of several tasks, that which predicts the same teaches, or else the first that predicts.
        where: The setting, for messages.

    Raises:
        CheckpointError: If it is not there, or broken.
        ConfigError: If it does not predict tokens, or has another vocabulary.
    """
    folder = Path(config.run).expanduser()
    if is_hugging_face(folder):
        if config.checkpoint is not None:
            why = f"{folder.name} is a Hugging Face folder, which holds one model"
            raise ConfigError("there is no checkpoint to choose", where=f"{where}.checkpoint", why=why, remedy="leave it out")
        return read_hugging_face(folder, tokenizer, where)
    try:
        path = find_checkpoint(config.run, config.checkpoint)
        found = objective_from(read_checkpoint(path), path)
    except CheckpointError as error:
        raise CheckpointError(error.what, where=f"{where}.run = {config.run}", why=error.why, remedy=error.remedy) from error
    product = teacher_in(found, config, part, where)
    if product.tokenizer.fingerprint != tokenizer.fingerprint:
        raise ConfigError(
            f"the teacher '{config.run}' reads with another tokenizer than the student",
            where=f"{where}.run",
            why=f"{product.tokenizer.vocab_size} entries {product.tokenizer.fingerprint} there, "
            f"{tokenizer.vocab_size} entries {tokenizer.fingerprint} here; states and probabilities are of tokens",
            remedy=f"take the teacher's tokenizer (tokenizer.path: its run's tokenizer.json), or {ANOTHER_WAY}",
        )
    return product


def teacher_in(found: nn.Module, config: TeacherConfig, part: str, where: str) -> TokenObjective:
    """What of a run can teach.

    Args:
        found: The objective of the run, built.
        config: Who it is.
        part: What the student predicts; see `read_teacher`.
        where: The setting, for messages.

    Raises:
        ConfigError: If nothing of it predicts tokens from hidden states.
    """
    trained = found.products if isinstance(found, Objective) else ()
    able = [one for one in trained if isinstance(one, TokenObjective) and "head" in one._modules]  # an n-gram model has no head
    if not able:
        kinds = ", ".join(type(one).__name__ for one in trained)
        raise ConfigError(
            f"the run '{config.run}' cannot teach",
            where=f"{where}.run",
            why=f"it was trained with {kinds}, which does not predict tokens from hidden states",
            remedy="name a run of a masked, causal or span-corruption model",
        )
    product = next((one for one in able if one.part == part), able[0])
    take_out(product)
    return product


def check_kind(teacher: TokenObjective, student: TokenObjective, feed: Feed, answers: bool, where: str) -> None:
    """Refuses a teacher that cannot read what the student reads, or predicts other positions.

    Args:
        teacher: Built.
        student: Built.
        feed: The student's.
        answers: Whether its predictions are asked for.
        where: The setting, for messages.

    Raises:
        ConfigError: Then.
    """
    if answers and teacher.part != student.part:
        raise ConfigError(
            f"the teacher's answers are to another question: it was trained on '{teacher.part}', the student on '{student.part}'",
            where=f"{where}.run",
            why="their probabilities are of different positions, given different neighbours",
            remedy="name a teacher of the student's kind, or set loss.response to null and match features",
        )
    theirs, ours = teacher.backbone, student.backbone
    if isinstance(theirs, EncoderDecoder) != isinstance(ours, EncoderDecoder):
        raise ConfigError(
            f"a {type(theirs).__name__} cannot read what a {type(ours).__name__} reads", where=f"{where}.run", remedy="choose one of a kind"
        )
    if not isinstance(theirs, Backbone):
        return
    sizes = student.sizes if isinstance(student, SpanCorruption) else None
    lengths = {"the student's rows": feed.length} if sizes is None else {"the student's inputs": sizes.inputs, "its targets": sizes.targets}
    try:
        type(theirs).check(theirs.config, lengths)
    except ConfigError as error:
        remedy = "name a teacher with more positions, or shorten the rows: student.settings.length"
        raise ConfigError(f"the teacher cannot read that far: {error.what}", where=f"{where}.run", why=error.why, remedy=remedy) from error
    if feed.view == "sentence_pairs" and theirs.config.num_segments < 2:
        raise ConfigError(
            "the teacher cannot tell the two sentences of a pair apart",
            where=f"{where}.run",
            why=f"the student reads pairs of sentences, the teacher's network has {theirs.config.num_segments} segments",
            remedy="name a teacher that was trained on pairs",
        )


def fingerprint_of(teacher: nn.Module) -> str:
    """A short name of weights: the first 16 hex digits of the SHA-256 of all names and bytes.

    Args:
        teacher: Built and trained.
    """
    digest = hashlib.sha256()
    for name, tensor in teacher.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def check_same(configs: Sequence[TeacherConfig], found: Sequence[str], began_with: Sequence[str]) -> None:
    """Refuses other teachers than those a run began with.

    Args:
        configs: Who teaches.
        found: Fingerprints of who was read.
        began_with: Fingerprints of who has taught so far.

    Raises:
        CheckpointError: Then.
    """
    for number, (config, now, before) in enumerate(zip(configs, found, began_with, strict=True)):
        if now != before:
            raise CheckpointError(
                f"'{config.run}' is not the teacher that this run began with",
                where=f"teachers[{number}].run",
                why="its weights are others; a name stands for its newest finished run",
                remedy="put the newer run of that name aside, or start anew with a run's folder in place of the name",
            )


def backbone_of(objective: TokenObjective, who: str, where: str) -> Backbone:
    """The network of an objective, if it has layers to look into.

    Args:
        objective: Built.
        who: Whose it is, for messages.
        where: The setting that asks, for messages.

    Raises:
        ConfigError: If it is not made of attention layers.
    """
    if not isinstance(objective.backbone, Backbone) or not stacks_of(objective.backbone):
        raise ConfigError(
            f"the {who}'s network has no layers of attention to look into",
            where=where,
            why=f"it is a {type(objective.backbone).__name__}",
            remedy="leave that out, and learn from its answers: loss.response",
        )
    return objective.backbone


def forward_flops(teacher: TokenObjective, batch: Batch, num_rows: int) -> int:
    """Multiplications and additions of a teacher's pass over the student's batch.

    Args:
        teacher: Built.
        batch: What the student's collator made.
        num_rows: Rows its head scores; 0 if its answers are not asked for.
    """
    size, length = batch["input_ids"].shape
    target = batch["decoder_input_ids"].shape[1:] if "decoder_input_ids" in batch else ()
    return teacher.backbone.flops(size, length, *target) + (teacher.head.flops(num_rows) if num_rows else 0)  # type: ignore[union-attr,operator]


def lend_layers(teacher: TokenObjective, student: TokenObjective, layers: tuple[int, ...], where: str) -> None:
    """Gives a student the weights of some of its teacher's layers, and all that is not a layer.

    Args:
        teacher: Built and trained.
        student: Built.
        layers: One of the teacher's for each of the student's, counted from 1.
        where: The setting, for messages.

    Raises:
        ConfigError: If numbers or sizes do not fit; it names them.
    """
    theirs, ours = backbone_of(teacher, "teacher", f"{where}.lends"), backbone_of(student, "student", f"{where}.lends")
    depth, own_depth = len(theirs.blocks), len(ours.blocks)
    if len(layers) != own_depth or max(layers) > depth:
        raise ConfigError(
            f"layers {list(layers)} of a teacher of {depth} do not make a student of {own_depth}",
            where=f"{where}.lends",
            why="each layer of the student starts from one of the teacher's, counted from 1",
            remedy=f"name {own_depth} layers from 1 to {depth}",
        )
    differing = _differing(theirs.config, ours.config)
    if differing or type(theirs) is not type(ours):
        shown = ", ".join(f"{name} ({was} there, {mine} here)" for name, was, mine in differing[:4])
        raise ConfigError(
            "the student cannot start from layers of another make",
            where=f"{where}.lends",
            why=shown or f"a {type(theirs).__name__} there, a {type(ours).__name__} here",
            remedy="give the student's backbone the teacher's settings but for num_layers, or leave `lends` out",
        )
    for number, block in zip(layers, ours.blocks, strict=True):
        _copy(theirs.blocks[number - 1], block, where)
    own = {name for name in student.state_dict() if ".blocks." not in name}
    around = {name: tensor for name, tensor in teacher.state_dict().items() if name in own}
    missing = load_whole(student, around, strict=False)
    missing = [name for name in missing if name in own and name.startswith(("backbone.", "head."))]  # further heads are the student's own
    if missing:
        raise ConfigError(f"the teacher has no {missing[0]}", where=f"{where}.lends", remedy="leave `lends` out")


def _copy(source: nn.Module, target: nn.Module, where: str) -> None:
    try:
        load_whole(target, source.state_dict())
    except RuntimeError as error:
        why = " ".join(str(error).split("\n")[1:2]).strip()
        raise ConfigError("a layer does not fit", where=f"{where}.lends", why=why, remedy="leave `lends` out") from error


def _differing(theirs: BackboneConfig, ours: BackboneConfig) -> list[tuple[str, object, object]]:
    unread = set() if ours.position == "learned" else {"max_length"}  # other positions have no limit
    names = [field.name for field in dataclasses.fields(ours) if field.name not in NOT_OF_THE_FUNCTION | unread]
    return [(name, getattr(theirs, name), getattr(ours, name)) for name in names if getattr(theirs, name) != getattr(ours, name)]
