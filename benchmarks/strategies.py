"""Bytes that last from step to step on each of two ranks, under each strategy: weights and optimizer state, counted tensor by tensor.

python -m benchmarks.strategies [--ranks 2] [--width 768] [--layers 10] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from lmlab.backbones import BackboneConfig
from lmlab.budget import BudgetConfig
from lmlab.data.module import CorpusModule
from lmlab.nn.sharded import own_part
from lmlab.objectives.clm import CLM
from lmlab.optim import OptimizerConfig, ScheduleConfig
from lmlab.session import RunConfig
from lmlab.tokenizer import Tokenizer, TokenizerConfig
from lmlab.training import fit

STRATEGIES = ("ddp", "fsdp", "zero1", "zero2", "zero3")


class Count(Callback):
    """Counts after some steps, on each rank, and ends the run there: no checkpoint of a gigabyte is of use here."""

    def __init__(self, path: Path, steps: int) -> None:
        self.path, self.steps = path, steps

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Writes what this rank holds, in bytes."""
        if trainer.global_step < self.steps:
            return
        weights, state = _distinct(_weights(trainer, pl_module)), _distinct(_state(trainer))
        found = {"weights": sum(weights.values()), "optimizer": sum(size for place, size in state.items() if place not in weights)}
        self.path.with_suffix(f".{trainer.global_rank}").write_text(json.dumps(found))
        trainer.strategy.barrier()
        raise SystemExit(0)


def _weights(trainer: Trainer, module: LightningModule) -> Iterator[Tensor]:
    for parameter in module.parameters():
        yield getattr(parameter, "ds_tensor", None) if hasattr(parameter, "ds_tensor") else own_part(parameter)  # type: ignore[misc]
        if hasattr(parameter, "ds_tensor") and parameter.numel():
            yield parameter.data  # kept together


def _state(trainer: Trainer) -> Iterator[Tensor]:
    """State and, under ZeRO, the master copy."""
    optimizer: Any = trainer.optimizers[0]
    inner = getattr(optimizer, "optimizer", optimizer)
    yield from getattr(optimizer, "fp32_partitioned_groups_flat", ())  # stage 3
    for group in inner.param_groups if inner is not optimizer else ():
        yield from group["params"]
    for values in inner.state.values():
        yield from (own_part(value) for value in values.values() if isinstance(value, Tensor))


def _distinct(tensors: Iterator[Tensor]) -> dict[int, int]:
    """Bytes by storage, so that two views of one count once."""
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.numel()}


def train(name: str, folder: Path, config: BackboneConfig, ranks: int, steps: int = 1) -> None:
    """Trains on rows of 32 tokens; called on each rank.

    Args:
        name: Of the strategy.
        folder: Has `tokenizer.json` and `text.txt`; results go there.
        config: Of the network.
        ranks: Processes.
        steps: Of the optimizer.
    """
    from lmlab.strategies import DDP, FSDP, ZeRO

    made = {"ddp": DDP, "fsdp": FSDP}
    strategy = made[name](timeout=300) if name in made else ZeRO(stage=int(name[-1]), timeout=300)  # type: ignore[arg-type]
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    objective = CLM(tokenizer, config, OptimizerConfig(name="adamw", lr=1e-4), ScheduleConfig(), length=32)
    data = CorpusModule(folder / "text.txt", tokenizer, objective.feed(), global_batch_size=ranks, cache_dir=str(folder / "cache"))
    fit(
        objective,
        data,
        BudgetConfig(steps=steps, validations=0, checkpoints=0),
        RunConfig(name=name, root=str(folder / "runs")),
        callbacks=[Count(folder / f"{name}.bytes", steps)],
        trainer={"accelerator": "cpu", "devices": ranks, "strategy": strategy, "enable_progress_bar": False},
    )


def measure(config: BackboneConfig, ranks: int = 2, vocab_size: int = 4096) -> dict[str, dict[str, int]]:
    """The largest count of a rank under each strategy.

    Args:
        config: Of the network.
        ranks: Processes.
        vocab_size: Of the tokenizer, which is trained on Austen.

    Returns:
        By strategy: `weights` and `optimizer` in bytes.
    """
    from lmlab.data.corpus import open_corpus
    from lmlab.strategies import ZeRO

    ZeRO()  # imports DeepSpeed, once for all
    found: dict[str, dict[str, int]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = [document.text for document in open_corpus("austen").documents()][:2]
        (folder / "text.txt").write_text("\n\n".join(texts), encoding="utf-8")
        Tokenizer.train(texts, TokenizerConfig(vocab_size=vocab_size)).save(folder / "tokenizer.json")
        for strategy in STRATEGIES:
            _launch(strategy, folder, config, ranks)
            counts = [json.loads((folder / f"{strategy}.{rank}").read_text()) for rank in range(ranks)]
            found[strategy] = max(counts, key=lambda count: sum(count.values()))
    return found


def _launch(strategy: str, folder: Path, config: BackboneConfig, ranks: int) -> None:
    """Each rank a process, with a store that this one keeps, as torch's elastic agent does; forks, for this one has imported it all."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    every = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "bytes", "TORCHELASTIC_USE_AGENT_STORE": True}
    started = []
    for rank in range(ranks):
        own = {**every, "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "GROUP_RANK": 0}
        process = multiprocessing.get_context("fork").Process(target=_as_rank, args=(own, strategy, folder, config, ranks))
        process.start()
        started.append(process)
    store = TCPStore(
        "127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
    )  # its thread is not forked
    for process in started:
        process.join()
        if process.exitcode:
            raise RuntimeError(f"a rank of {strategy} ended with {process.exitcode}")
    del store


def _as_rank(environment: dict[str, Any], strategy: str, folder: Path, config: BackboneConfig, ranks: int) -> None:
    os.environ |= {key: str(value) for key, value in environment.items()}
    torch.set_num_threads(1)
    train(strategy, folder, config, ranks)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=13)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = BackboneConfig(hidden_size=options.width, num_layers=options.layers, num_heads=options.width // 64)
    found = measure(config, options.ranks)
    whole = sum(found["ddp"].values())
    print(f"{found['ddp']['weights'] / 4e6:.1f} M parameters in float32, AdamW, {options.ranks} ranks; MB on each\n")
    print("| strategy | weights | optimizer | together | of DDP |\n|---|---:|---:|---:|---:|")
    for name, count in found.items():
        total = sum(count.values())
        print(f"| {name} | {count['weights'] / 1e6:.0f} | {count['optimizer'] / 1e6:.0f} | {total / 1e6:.0f} | {total / whole:.0%} |")
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
