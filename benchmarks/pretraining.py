"""Speed of pretraining, side by side with transformers, with the matrix-multiply peak, and with a loop written by hand.

python -m benchmarks.pretraining [--size mini] [--rounds 7] [--clock wall] [--only mlm,clm,span_corruption,overhead] [--json FILE]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import transformers
from rich.console import Console
from rich.table import Table

from benchmarks.matmul import matmul_peak
from benchmarks.overhead import measure_overhead
from benchmarks.peers import OBJECTIVES, Kind, pair
from benchmarks.sizes import SIZES, Size
from benchmarks.timing import Ratio, interleave, speedup
from lmlab.data.tokenizer import tokenizer_for
from lmlab.run.environment import cpu_model
from lmlab.tokenizer import Tokenizer, TokenizerConfig

CORPUS = "austen"
Clock = Literal["wall", "cpu"]
CLOCKS: dict[Clock, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
PEERS: dict[Kind, str] = {"mlm": "BertForMaskedLM", "clm": "GPT2LMHeadModel", "span_corruption": "T5ForConditionalGeneration"}
BARS: dict[str, float] = {"mlm": 1.5, "clm": 1.0, "span_corruption": 1.0, "overhead": 1.05}
"""Times as many tokens a second as the peer, at least; seconds of `fit` over those of a loop by hand, at most."""


class Row(NamedTuple):
    """A line of the table.

    Args:
        what: Objective, or `overhead`.
        side: Who.
        num_parameters: Of the network.
        tokens_per_second: Median over rounds.
        ratio: To the peer, or of `fit` to the loop by hand; None for those it is taken against.
        utilisation: FLOPs per second over the matrix-multiply peak; None where FLOPs are not counted.
        bar: Whether the ratio is good enough; `none` if there is no bar.
    """

    what: str
    side: str
    num_parameters: int
    tokens_per_second: float
    ratio: Ratio | None = None
    utilisation: float | None = None
    bar: Literal["met", "missed", "none"] = "none"


def compare(
    kind: Kind, tokenizer: Tokenizer, size: Size, rounds: int, peak: float, clock: Clock = "wall", corpus: str = CORPUS
) -> list[Row]:
    """Times the peer, lmlab with the peer's architecture, and lmlab with its own.

    Args:
        kind: Objective.
        tokenizer: Of the corpus.
        size: Of networks and batch.
        rounds: Turns of each side.
        peak: FLOPs per second of a matrix multiplication.
        clock: `cpu` is steadier where others use the machine too; with one thread only, since waiting threads count.
        corpus: Text.
    """
    sides = pair(kind, corpus, tokenizer, size)
    steps = {"theirs": sides.theirs, "ours": sides.ours, "modern": sides.modern}
    seconds = interleave(steps, rounds, clock=CLOCKS[clock])
    names = {"theirs": f"transformers {PEERS[kind]}", "ours": "lmlab, same architecture", "modern": "lmlab, default backbone"}
    rows = []
    for side, step in steps.items():
        median = statistics.median(seconds[side])
        ratio = None if side == "theirs" else speedup(seconds["theirs"], seconds[side])
        utilisation = None if side == "theirs" else sides.flops[side] / median / peak
        bar = "none" if ratio is None or side == "modern" else ("met" if ratio.median >= BARS[kind] else "missed")
        count = sum(p.numel() for p in step.module.parameters())
        rows.append(Row(kind, names[side], count, sides.tokens / median, ratio, utilisation, bar))
    return rows


def overhead(tokenizer: Tokenizer, size: Size, rounds: int, clock: Clock = "wall", corpus: str = CORPUS) -> list[Row]:
    """Times a run's step against a loop by hand; arguments as in `compare`."""
    seconds = measure_overhead(corpus, tokenizer, size, rounds, clock=CLOCKS[clock])
    ratio, tokens = speedup(seconds["fit"], seconds["by hand"]), size.length * size.batch
    bar = "met" if ratio.median <= BARS["overhead"] else "missed"
    by_hand, whole = (tokens / statistics.median(seconds[side]) for side in ("by hand", "fit"))
    return [Row("overhead", "loop by hand", 0, by_hand), Row("overhead", "lmlab.training.fit", 0, whole, ratio, None, bar)]


def table(rows: list[Row]) -> Table:
    """The rows, for a person."""
    made = Table("", "side", "weights", "tokens/s", "ratio (min–max)", "of peak", "bar", box=None, pad_edge=False)
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio.median:.2f}× ({row.ratio.lowest:.2f}–{row.ratio.highest:.2f})"
        sign = "≤" if row.what == "overhead" else "≥"
        bar = "" if row.bar == "none" else f"{sign} {BARS[row.what]:g} {row.bar}"
        share = "" if row.utilisation is None else f"{row.utilisation:.0%}"
        weights = f"{row.num_parameters / 1e6:.2f} M" if row.num_parameters else ""
        made.add_row(row.what, row.side, weights, f"{row.tokens_per_second:,.0f}", ratio, share, bar)
    return made


def caption(size: Size, rounds: int) -> str:
    """What the numbers are of."""
    sizes = f"D {size.hidden}, L {size.layers}, H {size.heads}, V {size.vocab}, T {size.length}, B {size.batch}"
    return (
        f"{sizes}; {rounds} rounds in turns, medians; bf16 autocast, no dropout, fused AdamW on both sides. "
        "Ratios are of tokens per second; of overhead, of seconds per step."
    )


def machine() -> str:
    """What it ran on, and how busy that was."""
    load = f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "load unknown"
    capability = torch.backends.cpu.get_cpu_capability()
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return f"{cpu_model()} ({capability}), {torch.get_num_threads()} of {os.cpu_count()} cores, {load}; {versions}"


def main(argv: list[str] | None = None) -> int:
    """Measures and prints; the exit code is 0 whatever comes out."""
    choices: list[Kind | Literal["overhead"]] = [*OBJECTIVES, "overhead"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--size", choices=list(SIZES), default="mini")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each side (default: 7)")
    parser.add_argument("--batch", type=int, help="examples in a batch (default: 16)")
    parser.add_argument("--length", type=int, help="tokens in an example (default: 128)")
    parser.add_argument("--only", default=",".join(choices), help=f"some of {','.join(choices)}")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu, with OMP_NUM_THREADS=1, on a busy machine")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    options = parser.parse_args(argv)
    only = options.only.split(",")
    if set(only) - set(choices):
        parser.error(f"--only: there is no {', '.join(sorted(set(only) - set(choices)))}; choose from {','.join(choices)}")
    given = {name: getattr(options, name) for name in ("batch", "length") if getattr(options, name)}
    size = dataclasses.replace(SIZES[options.size], **given)
    warnings.filterwarnings("ignore", module="transformers")
    transformers.logging.set_verbosity_error()
    console = Console(highlight=False, width=None if Console().is_terminal else 140)
    console.print(machine())
    tokenizer = tokenizer_for(CORPUS, TokenizerConfig(vocab_size=size.vocab))
    peak = matmul_peak(torch.bfloat16, clock=CLOCKS[options.clock])
    console.print(f"matrix-multiply peak, bf16: {peak / 1e9:.0f} GFLOP/s")
    rows: list[Row] = []
    for what in choices:
        if what not in only:
            continue
        if what == "overhead":
            part = overhead(tokenizer, size, options.rounds, options.clock)
        else:
            part = compare(what, tokenizer, size, options.rounds, peak, options.clock)
        console.print(table(part))  # at once: what comes later may be interrupted
        rows += part
    console.print(caption(size, options.rounds))
    if options.json:
        content = {
            "machine": machine(),
            "peak_flops": peak,
            "size": dataclasses.asdict(size),
            "rounds": options.rounds,
            "clock": options.clock,
        }
        plain = [{**row._asdict(), "ratio": row.ratio and row.ratio._asdict()} for row in rows]
        options.json.write_text(json.dumps({**content, "rows": plain}, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
