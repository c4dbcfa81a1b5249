"""Special tokens: the roles every tokenizer fills, and how the known families spell them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from tokenizers import AddedToken

ROLES = ("pad", "unk", "bos", "eos", "cls", "sep", "mask")

SPELLINGS: dict[str, tuple[str, ...]] = {
    "pad": ("[PAD]", "<pad>", "<|pad|>", "<|finetune_right_pad_id|>", "<PAD>"),
    "unk": ("[UNK]", "<unk>", "<|unk|>", "<UNK>"),
    "bos": ("[BOS]", "<s>", "<bos>", "<|begin_of_text|>", "<|startoftext|>", "<|endoftext|>"),
    "eos": ("[EOS]", "</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>"),
    "cls": ("[CLS]", "<cls>"),
    "sep": ("[SEP]", "<sep>"),
    "mask": ("[MASK]", "<mask>", "<|mask|>"),
}
"""Spellings by role, preferred first: lmlab's and BERT's, then RoBERTa, T5 and Llama 2, then GPT-2 and Llama 3."""

ALIASES: dict[str, tuple[str, str]] = {
    "cls": ("<s>", "<mask>"),
    "sep": ("</s>", "<mask>"),
    "bos": ("[CLS]", "[MASK]"),
    "eos": ("[SEP]", "[MASK]"),
}
"""Role to (token, token that must also exist): RoBERTa opens with `<s>`; BERT begins and ends text with `[CLS]` and `[SEP]`."""

_SENTINEL = re.compile(r"<extra_id_(\d+)>")


@dataclass(frozen=True, kw_only=True)
class SpecialTokens:
    """How the special tokens of one tokenizer are spelled. Two roles may share a token, as in BERT and RoBERTa.

    Args:
        pad: Fills a row up.
        unk: Stands for what the vocabulary cannot express.
        bos: Begins a text.
        eos: Ends a text.
        cls: Its hidden state stands for the whole input.
        sep: Ends a sentence of a pair.
        mask: Hides a token.
        sentinels: `<extra_id_0>`, ... in this order.
    """

    pad: str = "[PAD]"
    unk: str = "[UNK]"
    bos: str = "[BOS]"
    eos: str = "[EOS]"
    cls: str = "[CLS]"
    sep: str = "[SEP]"
    mask: str = "[MASK]"
    sentinels: tuple[str, ...] = ()

    def all(self) -> tuple[str, ...]:
        """Every spelling once, roles first."""
        return tuple(dict.fromkeys([*(getattr(self, role) for role in ROLES), *self.sentinels]))


def sentinel(index: int) -> str:
    """Spelling of the `index`-th sentinel.

    Source: Raffel et al. 2020, "Exploring the Limits of Transfer Learning", section 3.1.4; the spelling is that of its released vocabulary.
    """
    return f"<extra_id_{index}>"


def added_tokens(names: Iterable[str], vocabulary: Iterable[str], specials: SpecialTokens) -> list[AddedToken]:
    """Special tokens as the library takes them.

    Where a space belongs to the word after it, a gap in a text takes the space before it along, as `<mask>` does in RoBERTa: masking
    hides whole tokens, so the model never sees a space alone before a mask.

    Args:
        names: Tokens to add.
        vocabulary: What the tokenizer has already.
        specials: Their roles.
    """
    gaps = {specials.mask, *specials.sentinels} if any(len(piece) > 1 and piece[0] in "Ġ▁" for piece in vocabulary) else set()
    return [AddedToken(name, special=True, normalized=False, lstrip=name in gaps) for name in names]


def recognise(vocabulary: Collection[str], named: Mapping[str, str], num_sentinels: int) -> SpecialTokens:
    """Finds the special tokens of a loaded vocabulary.

    Args:
        vocabulary: Every token it has.
        named: Role to token, as the files beside it say; these win over spellings.
        num_sentinels: How many sentinels there must be at least.

    Returns:
        A spelling for each role; one that is not in `vocabulary` has to be appended to it.
    """
    found: dict[str, str] = {}
    for role in ROLES:
        token = named.get(role, "")
        alias, witness = ALIASES.get(role, ("", ""))
        choices = [token, *SPELLINGS[role]]
        if witness in vocabulary:
            choices.insert(1, SPELLINGS[role][0])
            choices.insert(2, alias)
        found[role] = next((choice for choice in choices if choice and choice in vocabulary), SPELLINGS[role][0])
    if found["pad"] in (found["bos"], found["eos"]):  # labels that equal the padding would vanish, so the end could not be learned
        found["pad"] = SPELLINGS["pad"][0]
    known = sorted(int(match[1]) for match in map(_SENTINEL.fullmatch, vocabulary) if match)
    indices = sorted({*known, *range(num_sentinels)})
    return SpecialTokens(**found, sentinels=tuple(sentinel(index) for index in indices))
