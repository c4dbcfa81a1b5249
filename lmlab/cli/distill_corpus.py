"""`lmlab distill-corpus RUN --output FILE`: a causal model writes a corpus for students with any vocabulary."""

from __future__ import annotations

import argparse
from pathlib import Path

from lmlab.budget import BudgetConfig
from lmlab.cli.allowlist import grant
from lmlab.data.loader import OrderedView
from lmlab.data.module import CorpusModule
from lmlab.errors import ConfigError
from lmlab.loading import load
from lmlab.objectives.clm import CLM
from lmlab.objectives.corpus_writing import CorpusWritingConfig, write_corpus


def main(argv: list[str]) -> int:
    """Writes.

    Args:
        argv: Options after `lmlab distill-corpus`.
    """
    options = _parser().parse_args(grant(argv)[0])
    if options.prompt_tokens is not None and not options.prompts:
        why = "texts begin from nothing"
        raise ConfigError("--prompt_tokens has no effect", where="--prompt_tokens", why=why, remedy="name a real text: --prompts CORPUS")
    teacher = load(options.run, options.checkpoint).product
    if not isinstance(teacher, CLM):
        raise ConfigError(
            f"the run '{options.run}' cannot write a corpus",
            where=options.run,
            why=f"it was trained with {type(teacher).__name__}, and only a causal model writes whole texts",
            remedy="name the run of a causal model",
        )
    config = CorpusWritingConfig(
        tokens=int(BudgetConfig(tokens=options.tokens).limit),
        length=options.length or teacher.length,
        prompt_length=1 if not options.prompts else 32 if options.prompt_tokens is None else options.prompt_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        seed=options.seed,
        batch_size=options.batch_size,
    )
    prompts = None
    if options.prompts:
        module = CorpusModule(options.prompts, teacher.tokenizer, teacher.feed())
        module.setup("validate")
        prompts = OrderedView(module.view("train"), seed=options.seed)
    written = write_corpus(teacher, Path(options.output), config, prompts)
    print(f"{written} tokens in {options.output}: lmlab fit -c CONFIG --data.corpus {options.output}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lmlab distill-corpus",
        description="Let a trained causal model write a corpus, from which students with any vocabulary can learn.",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", help="the teacher: a run's folder, a .ckpt file, or a name (its newest finished run)")
    parser.add_argument("--checkpoint", help="best, last or step=N (default: best, else last)")
    parser.add_argument("--output", required=True, help="file to write, .jsonl; an interrupted one is gone on with")
    parser.add_argument("--tokens", required=True, help="tokens to write at least, such as 500k or 2M")
    parser.add_argument("--prompts", metavar="CORPUS", help="real text whose beginnings are continued (default: texts begin from nothing)")
    parser.add_argument("--prompt_tokens", type=int, help="tokens of each beginning (default: 32)")
    parser.add_argument("--length", type=int, help="tokens of a text at most (default: those the teacher was trained on)")
    parser.add_argument("--temperature", type=float, default=1.0, help="below 1 the text is more uniform (default: 1)")
    parser.add_argument("--top_k", type=int, default=0, help="draw from the k likeliest tokens only; 0 for all (default: 0)")
    parser.add_argument("--top_p", type=float, default=1.0, help="draw from the fewest tokens with this probability (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same text (default: 0)")
    parser.add_argument("--batch_size", type=int, default=32, help="texts written at a time (default: 32)")
    parser.add_argument("--allow", metavar="PKG", help="let the checkpoint name classes of a package of yours (also LMLAB_ALLOW=PKG,PKG)")
    return parser
