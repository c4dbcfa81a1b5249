"""`lmlab demo`: a causal and a masked model learn from Jane Austen, at the same budget, in a few minutes on a laptop."""

from __future__ import annotations

import argparse
import shlex
import time

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lmlab.backbones import BackboneConfig
from lmlab.budget import BudgetConfig, Spent, describe
from lmlab.data.module import CorpusModule
from lmlab.data.tokenizer import tokenizer_for
from lmlab.decoding import DecodingConfig
from lmlab.objectives.base import Objective
from lmlab.objectives.clm import CLM
from lmlab.objectives.mlm import MLM
from lmlab.optim import OptimizerConfig, ScheduleConfig
from lmlab.rulers.pseudo_likelihood import pseudo_bits_per_byte
from lmlab.run.directory import RunDirectory
from lmlab.run.record import Record
from lmlab.session import RunConfig
from lmlab.tokenizer import Tokenizer, TokenizerConfig
from lmlab.training import fit

PROMPTS = {
    "austen": ("It was a truth", "Elizabeth looked at him, and", "“My dear Mr. Bennet,” said"),
    "sanguo": ("却说曹操", "玄德曰：", "孔明笑曰："),
    "songci": ("明月几时有", "春风", "独上高楼，"),
}
GAPS = {
    "austen": ("She was very {mask} to see him.", "Mr. Darcy {mask} to her sister.", "They walked into the {mask} together."),
    "sanguo": ("玄德大{mask}，急令军士退后。", "孔明{mask}曰：“吾自有计。”", "曹操引{mask}追赶。"),
    "songci": ("春{mask}又绿江南岸。", "独上高{mask}，望尽天涯路。", "明月几时{mask}。"),
}
LENGTH, BATCH = 128, 16
OPTIMIZER = OptimizerConfig(name="muon", lr=0.01)  # in a million tokens it gets markedly further than AdamW, the masked model above all
MASK_PROB = 0.3  # at a budget this small more masks teach more: Wettig et al. 2023, "Should You Mask 15%?", section 3
PLL_BLOCKS = 4
SHOWN = 3


def main(argv: list[str]) -> int:
    """Trains both models and prints what came out.

    Args:
        argv: Options after `lmlab demo`.
    """
    parser = argparse.ArgumentParser(prog="lmlab demo", description=__doc__, allow_abbrev=False)
    parser.add_argument("--tokens", default="1M", help="budget of each model, in tokens of text (default: 1M)")
    parser.add_argument("--corpus", default="austen", help="austen, sanguo, songci, a file or a glob (default: austen)")
    parser.add_argument("--seed", type=int, default=0, help="seed of both runs (default: 0)")
    options = parser.parse_args(argv)
    console, started = Console(highlight=False), time.perf_counter()
    budget = BudgetConfig(tokens=options.tokens, validations=5, checkpoints=1)
    tokenizer = tokenizer_for(options.corpus, TokenizerConfig(vocab_size=4096))
    backbone = BackboneConfig(hidden_size=128, num_layers=4, num_heads=4)
    schedule = ScheduleConfig(kind="cosine", warmup=0.05)
    causal = CLM(tokenizer, backbone, OPTIMIZER, schedule, length=LENGTH)
    masked = MLM(tokenizer, backbone, OPTIMIZER, schedule, length=LENGTH, mask_prob=MASK_PROB)
    causal_data, masked_data = _prepare(causal, options.corpus, options.seed), _prepare(masked, options.corpus, options.seed)

    console.rule("[bold]1 of 2: a causal model reads from left to right")
    question = "How well does a small causal model predict the next token?"
    causal_run = _train(causal, causal_data, budget, options.seed, "demo-clm", question)
    console.rule("[bold]2 of 2: a masked model fills gaps")
    masked_run = _train(masked, masked_data, budget, options.seed, "demo-mlm", "How well does a small masked model fill gaps?")

    console.rule("[bold]What they write")
    prompts = PROMPTS.get(options.corpus) or _beginnings(causal_data, tokenizer)
    writing = DecodingConfig(max_new_tokens=40, top_p=0.9, seed=options.seed)
    for prompt, text in zip(prompts, causal.generate(prompts, writing), strict=True):
        console.print(Text.assemble(prompt, (text, "bold cyan")))
    mask = tokenizer.token(tokenizer.mask_id)
    for gap in GAPS.get(options.corpus) or _gaps(masked_data, tokenizer):
        choices = masked.fill(gap.format(mask=mask), num_choices=SHOWN)[0]
        said = ", ".join(f"{c.text.strip()} {c.probability:.0%}" for c in choices)
        console.print(Text.assemble(gap.format(mask="____"), "  ", (said, "bold cyan")))

    console.rule("[bold]What came out")
    console.print(_table(causal_run, masked_run, masked, masked_data))
    for run in (causal_run, masked_run):
        console.print(f"report: {run.report_path}", soft_wrap=True)
    took = (time.perf_counter() - started) / 60
    console.print(f"took {took:.1f} min. Next: `lmlab runs`, `lmlab generate demo-clm --prompt {shlex.quote(prompts[0])}`", soft_wrap=True)
    return 0


def _prepare(objective: Objective, corpus: str, seed: int) -> CorpusModule:
    return CorpusModule(corpus, objective.tokenizer, objective.feed(), global_batch_size=BATCH, seed=seed, eval_examples=256)


def _train(objective: Objective, data: CorpusModule, budget: BudgetConfig, seed: int, name: str, question: str) -> RunDirectory:
    run = fit(objective, data, budget, RunConfig(name=name, question=question), seed=seed)
    objective.eval()
    return run


def _beginnings(data: CorpusModule, tokenizer: Tokenizer) -> list[str]:
    """The first tokens of some held-out blocks."""
    view = data.evaluation("val")
    return [tokenizer.decode(view[i].input_ids[:8]).replace("\n", " ") for i in range(min(SHOWN, len(view)))]


def _gaps(data: CorpusModule, tokenizer: Tokenizer) -> list[str]:
    """The first tokens of some held-out blocks, one of them hidden."""
    view = data.evaluation("val")
    found = []
    for i in range(min(SHOWN, len(view))):
        pieces = [piece.replace("{", "").replace("}", "") for piece in tokenizer.pieces(view[i].input_ids[:16].tolist())]
        pieces[8] = " {mask}" if pieces[8].startswith(" ") else "{mask}"
        found.append("".join(pieces).replace("\n", " "))
    return found


def _table(causal: RunDirectory, masked: RunDirectory, model: MLM, data: CorpusModule) -> Table:
    table = Table("", "bits per byte", "validation loss (nats)", "spent", box=None, pad_edge=False)
    first, second = Record.load(causal.record_path), Record.load(masked.record_path)
    for name, bits_per_byte in first.anchors.items():
        table.add_row(name, f"{bits_per_byte:.2f}")
    table.add_row("causal LM", f"{first.metrics['val/bits_per_byte']:.2f}", f"{first.metrics['val/loss']:.2f} per token", _spent(first))
    view = data.view("val")
    blocks = [view[i * len(view) // PLL_BLOCKS] for i in range(PLL_BLOCKS)]
    with torch.inference_mode():
        pseudo = pseudo_bits_per_byte(model, blocks)
    accuracy = second.metrics["val/accuracy"]
    table.add_row("masked LM", f"{pseudo:.2f} (pseudo)", f"{second.metrics['val/loss']:.2f} per mask, {accuracy:.0%} right", _spent(second))
    table.caption = "The masked model sees both sides of a gap: its pseudo bits per byte are not comparable with the others."
    return table


def _spent(record: Record) -> str:
    plain = {k: v for k, v in record.spent.items() if k != "peak_memory_bytes"}
    return describe(Spent.from_plain({k: (v if k == "seconds" else int(v)) for k, v in plain.items()}))
