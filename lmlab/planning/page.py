"""A prediction as a page of text, or as plain data."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from lmlab.budget import describe_seconds
from lmlab.planning import laws
from lmlab.planning.advice import Advice
from lmlab.planning.devices import USABLE
from lmlab.planning.memory import Bytes
from lmlab.planning.prediction import Prediction, Row

COLUMNS = ("weights", "gradients", "optimizer", "average", "activations", "transient", "total")
SCALES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def page(prediction: Prediction, advice: Advice) -> str:
    """What `lmlab plan` prints.

    Args:
        prediction: What a run will take.
        advice: Which strategy to take.
    """
    sections = [_model(prediction), _memory(prediction, advice), _time(prediction), _rules(prediction)]
    if prediction.notes:
        sections.append(["Notes", *(f"  {note}" for note in prediction.notes)])
    return "\n\n".join("\n".join(section) for section in sections)


def plain(prediction: Prediction, advice: Advice) -> dict[str, Any]:
    """The same as plain data: bytes, FLOPs, seconds, tokens.

    Args:
        prediction: What a run will take.
        advice: Which strategy to take.
    """
    network, cluster = prediction.network, prediction.cluster
    return {
        "objective": prediction.objective,
        "precision": prediction.precision,
        "parameters": {
            "total": network.num_parameters,
            "trainable": network.num_trainable,
            "embedding": network.num_embedding,
            "frozen": network.num_frozen,
        },
        "cluster": {**asdict(cluster), "device": cluster.device._asdict(), "usable_bytes": cluster.usable},
        "batches": asdict(prediction.batches),
        "flops_per_token": prediction.cost.flops_per_token,
        "tokens_per_step": prediction.cost.tokens,
        "strategies": [_plain_row(row) for row in prediction.rows],
        "tokens_per_second": prediction.speed,
        "budget": None if prediction.amounts is None else asdict(prediction.amounts),
        "advice": asdict(advice),
        "notes": list(prediction.notes),
    }


def _plain_row(row: Row) -> dict[str, Any]:
    counted = None if row.bytes is None else {**asdict(row.bytes), "total": row.bytes.total}
    return {"strategy": row.strategy, "fits": row.fits, "refused": row.refused or None, "bytes": counted}


def _model(prediction: Prediction) -> list[str]:
    network, batches, cost = prediction.network, prediction.batches, prediction.cost
    frozen = f", and {short(network.num_frozen)} of teachers, frozen" if network.frozen else ""
    parts = [f"{short(network.num_parameters)} parameters", f"{short(network.num_trainable)} trainable"]
    parts.append(f"{short(network.num_embedding)} in embeddings{frozen}")
    micro = batches.global_size // (batches.micro_size * prediction.cluster.data_ranks)
    cut = f"{batches.micro_size} on each of {prediction.cluster.data_ranks}" + (f", {micro} times a step" if micro > 1 else "")
    return [
        f"Model: {prediction.objective}, {prediction.precision}",
        f"  {', '.join(parts)}",
        f"  {short(cost.flops_per_token)} FLOPs to train on a token, forward and backward",
        f"  a step: {batches.global_size} examples of up to {batches.length} tokens ({cut}), {short(cost.tokens)} tokens",
    ]


def _memory(prediction: Prediction, advice: Advice) -> list[str]:
    cluster = prediction.cluster
    rows = [_cells(row, prediction, advice) for row in prediction.rows]
    shown = [name for name in COLUMNS if name != "average" or any(row.bytes and row.bytes.average for row in prediction.rows)]
    hosts = any(row.bytes and row.bytes.host for row in prediction.rows)
    head = ["strategy", *shown, *(["on host"] if hosts else []), ""]
    unit = "GiB" if max((row.bytes.total for row in prediction.rows if row.bytes), default=0) >= 2**30 else "MiB"
    scale = 2**30 if unit == "GiB" else 2**20
    table = [head]
    refused: dict[str, list[str]] = {}
    for row, (mark, word) in zip(prediction.rows, rows, strict=True):
        if row.bytes is None:
            refused.setdefault(row.refused, []).append(row.strategy)
            continue
        values = [_value(row.bytes, name) / scale for name in [*shown, *(["host"] if hosts else [])]]
        table.append([f"{mark}{row.strategy}", *(f"{value:.{1 if value < 999.5 else 0}f}" for value in values), word])
    widths = [max(len(line[i]) for line in table) for i in range(len(head))]
    shared = " shared by its ranks" if cluster.device.is_cpu and cluster.per_node > 1 else ""
    nodes = f" in {cluster.nodes} nodes" if cluster.nodes > 1 else ""
    size = f"{cluster.device.memory / 2**30:.0f} GiB{shared}"
    lines = [f"Memory of each rank, in {unit}: {cluster.devices} x {cluster.device.name} ({size}){nodes}; {USABLE:.0%} of it can be filled"]
    for line in table:
        cells = [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:-1], widths[1:-1], strict=True)), line[-1]]
        lines.append(("  " + "  ".join(cells)).rstrip())
    lines += [f"    not {', '.join(names)}: {reason}" for reason, names in refused.items()]
    said = [advice.answer] if advice.answer else []
    said.append(f"take {advice.strategy}: {advice.why}" if advice.strategy else advice.why)
    return [*lines, *(f"  -> {sentence}" for sentence in said), *(f"     or {remedy}" for remedy in advice.remedies)]


def _value(found: Bytes, name: str) -> int:
    return getattr(found, name)


def _cells(row: Row, prediction: Prediction, advice: Advice) -> tuple[str, str]:
    mark = "* " if row.strategy == advice.strategy else "  "
    if row.bytes is None:
        return mark, row.refused
    alone = row.strategy == "single" and prediction.cluster.devices > 1
    return mark, ("fits" if row.fits else "does not fit") + (", on one device alone" if alone else "")


def _time(prediction: Prediction) -> list[str]:
    cluster, cost, budget = prediction.cluster, prediction.cost, prediction.amounts
    lines = ["Time"]
    if budget is not None:
        lines.append(f"  budget: {short(budget.tokens)} tokens, {short(budget.steps)} steps, {budget.flops:.1e} FLOPs")
    peak = prediction.peak
    if prediction.speed is None:
        missing = "a peak (--flops) and a utilisation" if peak is None else "a utilisation"
        return [
            *lines,
            f"  no time is given: it takes {missing} (--utilisation); `perf/flops_per_second` of a short run is the best of both",
        ]
    assert peak is not None
    again = ", layers computed twice" if cost.recomputes > 1 else ""
    lines.append(
        f"  {short(prediction.speed)} tokens/s if {cluster.devices} x {short(peak)} FLOP/s are used at {cluster.utilisation:.0%}{again}: "
        "stated, not measured"
    )
    if budget is not None and budget.seconds is not None:
        lines.append(f"  {describe_seconds(budget.seconds)}; {budget.seconds * cluster.devices / 3600:.1f} device hours")
    return lines


def _rules(prediction: Prediction) -> list[str]:
    network, budget = prediction.network, prediction.amounts
    size = float(network.num_trainable)
    law = laws.optimal_tokens(size, laws.BESIROGLU)
    lines = [
        "Rules of thumb (lmlab/planning/laws.py says where each holds)",
        f"  tokens for {short(size)} parameters: {short(laws.optimal_tokens(size))} at 20 each (Hoffmann et al. 2022), "
        f"{short(law)} by the law refitted (Besiroglu et al. 2024)",
    ]
    if budget is None or not prediction.cost.flops:
        return lines
    rough, counted = laws.training_flops(size, budget.tokens), budget.flops
    best, asked = laws.optimal_allocation(counted), laws.empirical_hyperparameters(counted)
    low, high = laws.EMPIRICAL_RANGE
    outside = "" if low <= counted <= high else f", fitted between {low:.0e} and {high:.0e}"
    lines += [
        f"  this budget has {budget.tokens / size:.3g} tokens a parameter; the best for its FLOPs are {short(best.parameters)} parameters, "
        f"{short(best.tokens)} tokens (the same law, fitted from 70 M to 16 B)",
        f"  6 N D is {rough:.1e} FLOPs (Kaplan et al. 2020), {rough / counted:.2f} of what is counted",
        f"  AdamW at {counted:.1e} FLOPs: a learning rate of {asked.lr:.1e}, {short(asked.batch_tokens)} tokens a step "
        f"(DeepSeek-AI 2024{outside})",
    ]
    return [
        *lines,
        "  k times the batch: sqrt(k) times Adam's learning rate (Malladi et al. 2022), k times SGD's (Goyal et al. 2017),",
        "  up to the critical batch size tr(Sigma) / |G|^2 (McCandlish et al. 2018), which is measured from gradients",
        "  m times the width: 1/m times the learning rate of hidden matrices under muP (Yang et al. 2022)",
    ]


def short(number: float) -> str:
    """A number with a suffix a person reads at a glance: `1.3 M`, `68.98 B`.

    Args:
        number: Zero or more.
    """
    for scale, suffix in SCALES:
        if number >= scale:
            return f"{number / scale:.3g} {suffix}"
    return f"{number:.3g}"
