"""Hugging Face models as trained objectives: a folder with `config.json` and weights in `.safetensors`."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from lmlab.backbones.base import BackboneConfig
from lmlab.backbones.pretrained import Family, config_from_hugging_face, convert_state_dict
from lmlab.errors import CheckpointError, ConfigError
from lmlab.nn.building import after_each_block
from lmlab.objectives.clm import CLM
from lmlab.objectives.mlm import MLM
from lmlab.objectives.span_corruption import SpanCorruption
from lmlab.objectives.tokens import TokenObjective
from lmlab.tokenizer import Tokenizer

LONGEST = 128
"""Rows for which the objective is made, where positions allow: those of a batch decide in the end."""


def is_hugging_face(path: str | Path) -> bool:
    """Whether a folder holds a model in Hugging Face layout.

    Args:
        path: Any path.
    """
    return (Path(path) / "config.json").is_file()


def read_hugging_face(folder: Path, tokenizer: Tokenizer, where: str) -> TokenObjective:
    """Reads a model.

    Tokens that a tokenizer has beyond the model's vocabulary, such as special tokens the model was made without, get the mean of its
    embeddings: then they are never likely.

    Args:
        folder: With `config.json`, `*.safetensors`, and the tokenizer's files.
        tokenizer: The student's.
        where: The setting that names the folder, for messages.

    Returns:
        BERT and RoBERTa as MLM, GPT-2 and Llama as CLM, T5 as SpanCorruption; in evaluation mode, on the CPU.

    Raises:
        CheckpointError: If a file is missing or does not fit.
        ConfigError: If the family is unknown, or the folder's tokenizer is another one.

    Source: Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language Models" (the mean).
    """
    config, family = config_in(folder)
    own = Tokenizer.load(folder, num_sentinels=len(tokenizer.sentinel_ids))
    if own.fingerprint != tokenizer.fingerprint:
        raise ConfigError(
            f"the tokenizer in {folder.name} is not the student's",
            where=f"{where}.run",
            why=f"{own.vocab_size} entries {own.fingerprint} there, {tokenizer.vocab_size} entries {tokenizer.fingerprint} here",
            remedy=f"set tokenizer.path to {folder} (tokenizer.num_sentinels: {len(tokenizer.sentinel_ids)})",
        )
    weights = convert_state_dict(family, _weights(folder), config)
    has_own = config.tie == "untied" or config.head_bias or (config.mlm_transform == "dense" and family in ("bert", "roberta"))
    if has_own and not any(name.startswith("head.") for name in weights):
        raise CheckpointError(f"{folder.name} has no head", where=str(folder), remedy="save the model with its language-modelling head")
    made = objective_of_family(family, tokenizer, config)
    with after_each_block(None):  # as `objective_from` does
        made.configure_model()
    size = made.tokenizer.vocab_size
    fitting = {name: _of_size(tensor, size) if _is_of_vocabulary(name) else tensor for name, tensor in weights.items()}
    try:
        made.load_state_dict(fitting)
    except RuntimeError as error:
        why = " ".join(str(error).split("\n")[1:2]).strip()
        raise CheckpointError(f"the weights in {folder.name} do not fit its config", where=str(folder), why=why) from error
    return made.eval()


def config_in(folder: Path) -> tuple[BackboneConfig, Family]:
    """The network in a folder of transformers, and its family.

    Args:
        folder: With `config.json`.

    Raises:
        CheckpointError: If that is broken.
        ConfigError: If the family is unknown, or a setting asks for something that is not built.
    """
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return config_from_hugging_face(settings), settings["model_type"]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        what = f"config.json in {folder.name} is broken"
        raise CheckpointError(what, where=str(folder), why=str(error), remedy="save it anew") from error


def objective_of_family(family: Family, tokenizer: Tokenizer, config: BackboneConfig) -> TokenObjective:
    """The objective that a family was trained with, not built.

    Args:
        family: BERT and RoBERTa give MLM, GPT-2 and Llama CLM, T5 SpanCorruption.
        tokenizer: Gives the vocabulary.
        config: Of the network.
    """
    length = min(LONGEST, config.max_length) if config.position == "learned" else LONGEST
    kinds: dict[str, type[MLM | CLM | SpanCorruption]] = {"bert": MLM, "roberta": MLM, "t5": SpanCorruption}
    return kinds.get(family, CLM)(tokenizer, config, length=length)


def _weights(folder: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        why = "other formats can run code when they are read"
        raise CheckpointError(f"{folder.name} holds no .safetensors", where=str(folder), why=why, remedy="save it with transformers 4.35+")
    try:
        return {name: tensor.float() for file in files for name, tensor in load_file(file).items()}
    except SafetensorError as error:
        raise CheckpointError(
            f"the weights in {folder.name} are broken", where=str(folder), why=str(error), remedy="save them anew"
        ) from error


def _is_of_vocabulary(name: str) -> bool:
    return name == "backbone.embedding.weight" or name.startswith(("head.decoder.", "head.output_bias"))


def _of_size(tensor: Tensor, size: int) -> Tensor:
    """Cut or lengthened to the entries of a tokenizer; models often have a few rows more than their tokenizer."""
    if len(tensor) >= size:
        return tensor[:size]
    return torch.cat((tensor, tensor.mean(0, keepdim=True).expand(size - len(tensor), *tensor.shape[1:])))
