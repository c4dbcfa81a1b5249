"""Learning a vocabulary from a stream of texts: the same text gives the same vocabulary, on any number of threads.

The library's byte-pair trainer is deterministic. Its WordPiece trainer numbers the `##` characters in the order of a hash map
and breaks ties between merges by those numbers; here they are handed over in sorted order instead. Its Unigram trainer adds
up in the order of a hash map, which moves scores by 1e-11, and ranks characters it had lost in that order too; here scores
are rounded to `SCORE_DECIMALS` and those characters share one score.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from lmlab.tokenizer.config import NUM_BYTES, TokenizerConfig
from lmlab.tokenizer.specials import SpecialTokens, added_tokens, sentinel
from lmlab.tokenizer.stream import Opener, count, frequent, only, reopened, stream

log = logging.getLogger(__name__)

SCORE_DECIMALS = 4
LOST_STEP = 1e-4  # the library ranks lost characters this far apart
LOST_TOLERANCE = 1e-5  # of a step; rounding errors are smaller than a millionth of one
UNREACHABLE = 100.0  # nats below the worst piece: `<0x41>` typed in a text is cheaper as six characters than as one byte
ASCII = ("▁", *(chr(code) for code in range(0x21, 0x7F)))  # with the sign that stands for a space
BYTES = tuple(f"<0x{value:02X}>" for value in range(NUM_BYTES))  # the spelling that byte fallback looks for


def special_tokens(config: TokenizerConfig) -> SpecialTokens:
    """The special tokens of a tokenizer that is trained here."""
    return SpecialTokens(sentinels=tuple(sentinel(index) for index in range(config.num_sentinels)))


def canonical(text: str) -> str:
    """One spelling for one tokenizer: sorted keys, and no padding, truncation or dropout left switched on by whoever saved it."""
    content = json.loads(text)
    content["truncation"] = content["padding"] = None
    if content["model"].get("dropout") is not None:
        if content["model"]["dropout"]:
            log.warning("dropout of %g is switched off in the tokenizer: one text has one encoding", content["model"]["dropout"])
        content["model"]["dropout"] = None
    return json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def train(texts: Iterable[str] | Opener, config: TokenizerConfig, specials: SpecialTokens) -> str:
    """Trains the kind of tokenizer that `config` names.

    Args:
        texts: The corpus, or a function that opens it.
        config: What to train.
        specials: Special tokens, which get the first ids.

    Returns:
        Canonical tokenizer.json.

    Raises:
        DataError: If there is no text.
    """
    names = list(specials.all())
    if config.kind == "bytes":
        backend = _byte_level(config, models.BPE(vocab=_numbered([*names, *_byte_alphabet()]), merges=[]))
    else:
        build = {"bpe": _bpe, "wordpiece": _wordpiece, "unigram": _unigram, "characters": _characters}[config.kind]
        with tempfile.TemporaryFile("w+", encoding="utf-8") as spool:
            backend = build(reopened(texts, spool), config, names)
    backend.add_special_tokens(added_tokens(names, backend.get_vocab(), specials))
    size = backend.get_vocab_size()
    if config.kind in ("bpe", "wordpiece", "unigram") and size < config.vocab_size:
        log.warning("the text gives only %d of the %d tokens asked for", size, config.vocab_size)
    return canonical(backend.to_str())


def _bpe(open_texts: Opener, config: TokenizerConfig, names: list[str]) -> Tokenizer:
    backend = _byte_level(config, models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        initial_alphabet=_byte_alphabet(),
        special_tokens=[AddedToken(name, special=True, normalized=False) for name in names],
        show_progress=False,
    )
    backend.train_from_iterator(stream(open_texts, config), trainer)
    return backend


def _byte_level(config: TokenizerConfig, model: models.BPE) -> Tokenizer:
    backend = Tokenizer(model)
    if normalizer := _normalizer(config):
        backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    return backend


def _wordpiece(open_texts: Opener, config: TokenizerConfig, names: list[str]) -> Tokenizer:
    backend = _bert(config, models.WordPiece(unk_token=names[1]))
    normalizer = backend.normalizer
    room = (config.vocab_size - len(names)) // 2
    counts = count(stream(open_texts, config, normalizer))
    characters = [c for c in frequent(counts, len(counts)) if not c.isspace()]
    alphabet = characters[:room]
    inside = {c for c in alphabet if _may_continue(c, backend)}
    while len(alphabet) + len(inside) > room:  # a letter takes two places, a Chinese character one
        inside.discard(alphabet.pop())
    continuing = [f"##{c}" for c in sorted(inside)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=config.vocab_size,
        min_frequency=config.min_frequency,
        initial_alphabet=sorted(alphabet),
        special_tokens=[*names, *continuing],
        show_progress=False,
    )
    backend.train_from_iterator(only(alphabet, stream(open_texts, config, normalizer)), trainer)
    vocabulary = backend.get_vocab()
    # a Chinese character never merges with another one, so what is left of a Chinese text's vocabulary takes rarer characters
    for piece in _rarer(characters[len(alphabet) :], config.vocab_size - len(vocabulary), backend):
        vocabulary.setdefault(piece, len(vocabulary))
    return _bert(config, models.WordPiece(vocab=vocabulary, unk_token=names[1]))


def _rarer(characters: list[str], room: int, backend: Tokenizer) -> list[str]:
    """As many pieces for these characters as there is room for, most frequent first: `c`, and `##c` if it can stand inside a word."""
    pieces: list[str] = []
    for character in characters:
        if len(pieces) >= room:
            break
        pieces += [character, f"##{character}"] if _may_continue(character, backend) else [character]
    return pieces[: max(room, 0)]


def _bert(config: TokenizerConfig, model: models.WordPiece) -> Tokenizer:
    backend = Tokenizer(model)
    bert = normalizers.BertNormalizer(lowercase=config.case == "lower")
    form = {"none": [], "nfc": [normalizers.NFC()], "nfkc": [normalizers.NFKC()]}[config.normalization]
    backend.normalizer = normalizers.Sequence([*form, bert])
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return backend


def _may_continue(character: str, backend: Tokenizer) -> bool:
    """Whether a character can stand inside a word: punctuation and Chinese characters are words of their own."""
    normalizer, splitter = backend.normalizer, backend.pre_tokenizer
    assert normalizer is not None and splitter is not None  # `_bert` sets both
    return len(splitter.pre_tokenize_str(normalizer.normalize_str("a" + character))) == 1


def _unigram(open_texts: Opener, config: TokenizerConfig, names: list[str]) -> Tokenizer:
    backend = _metaspace(config, models.Unigram())
    normalizer = backend.normalizer
    room = config.vocab_size - len(names) - NUM_BYTES
    counts = count(stream(open_texts, config, normalizer))
    counts[0] = 0  # the library's trainer ends sentences with NUL, and scores one inside a text as not a number
    alphabet = frequent(counts, room // 2)
    backend.train_from_iterator(
        only(alphabet, stream(open_texts, config, normalizer)),
        trainers.UnigramTrainer(vocab_size=room + 1, special_tokens=[names[1]], unk_token=names[1], show_progress=False),
    )
    learned = [(piece, score) for piece, score in json.loads(backend.to_str())["model"]["vocab"] if piece not in {*names, *BYTES}]
    least = min(score for _, score in learned)
    pieces = [(piece, round(least if _was_lost(piece, score - least, len(learned)) else score, SCORE_DECIMALS)) for piece, score in learned]
    worst = round(least, SCORE_DECIMALS)
    missing = [c for c in ASCII if c not in dict(learned)]
    excess = len(pieces) + len(missing) - room
    pieces = sorted(pieces, key=lambda item: (len(item[0]) > 1, -item[1], item[0]))  # characters first: only longer pieces can go
    pieces = [*pieces[: len(pieces) - max(excess, 0)], *((c, worst) for c in missing)]
    pieces.sort(key=lambda item: (-item[1], item[0]))
    fixed = [(name, worst - UNREACHABLE) for name in [*names, *BYTES]]
    return _metaspace(config, models.Unigram(vocab=[*fixed, *pieces], unk_id=1, byte_fallback=True))


def _was_lost(piece: str, above_least: float, limit: int) -> bool:
    """Whether the library had lost this character in training and put it back at a score of its own making."""
    steps = above_least / LOST_STEP
    return len(piece) == 1 and round(steps) < limit and abs(steps - round(steps)) < LOST_TOLERANCE


def _metaspace(config: TokenizerConfig, model: models.Unigram) -> Tokenizer:
    backend = Tokenizer(model)
    if normalizer := _normalizer(config):
        backend.normalizer = normalizer
    # Lines and punctuation apart: a whole Chinese paragraph as one word would make the trainer's lattices enormous.
    line = pre_tokenizers.Split("\n", "isolated")
    space = pre_tokenizers.Metaspace(prepend_scheme="never")
    backend.pre_tokenizer = pre_tokenizers.Sequence([line, space, pre_tokenizers.Punctuation("contiguous")])
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return backend


def _characters(open_texts: Opener, config: TokenizerConfig, names: list[str]) -> Tokenizer:
    counts = count(stream(open_texts, config, _normalizer(config)))
    alphabet = sorted(frequent(counts, config.vocab_size - len(names) - NUM_BYTES))
    vocabulary = _numbered([*names, *BYTES, *alphabet])
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=names[1], byte_fallback=True))
    if normalizer := _normalizer(config):
        backend.normalizer = normalizer
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return backend


def _normalizer(config: TokenizerConfig) -> normalizers.Normalizer | None:
    steps = {"none": [], "nfc": [normalizers.NFC()], "nfkc": [normalizers.NFKC()]}[config.normalization]
    steps = [*steps, *([normalizers.Lowercase()] if config.case == "lower" else [])]
    return normalizers.Sequence(steps) if steps else None


def _numbered(tokens: list[str]) -> dict[str, int]:
    return {token: index for index, token in enumerate(tokens)}


def _byte_alphabet() -> list[str]:
    return sorted(pre_tokenizers.ByteLevel.alphabet())
