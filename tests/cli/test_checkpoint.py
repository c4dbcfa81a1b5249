"""`lmlab checkpoint consolidate`: folders of others are pickles, which are not read unless the user says so."""

from __future__ import annotations

import os
import pickle
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lmlab.checkpoint import foreign, read_checkpoint
from lmlab.cli.dispatch import main
from tests.checkpoint.test_folder import HALF, WHOLE, a_folder
from tests.ranks import forked


class Evil:
    """Unpickling this would make a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.marker),)


def consolidate(*arguments: str | Path) -> int:
    return main(["checkpoint", "consolidate", *map(str, arguments)])


def torch_folder(path: Path) -> Path:
    """As Lightning's ModelParallelStrategy writes it."""
    from torch.distributed.checkpoint.state_dict_saver import save

    path.mkdir()
    content = {"state_dict": {"layer.w": WHOLE, "layer.b": HALF}, "optimizer_0": {"state": {"layer.w": {"exp_avg": WHOLE + 1}}}}
    save(content, checkpoint_id=str(path), no_dist=True)
    return path


def test_a_folder_of_lmlabs_becomes_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = a_folder(tmp_path / "step=0000003.ckpt")
    assert consolidate(folder, "--to", tmp_path / "one.ckpt") == 0
    content = torch.load(tmp_path / "one.ckpt", weights_only=True)
    assert torch.equal(content["state_dict"]["w"], WHOLE) and content["global_step"] == 3
    assert "step 3" in capsys.readouterr().out
    before = (tmp_path / "one.ckpt").read_bytes()
    assert consolidate(folder, "--to", tmp_path / "one.ckpt") == 2 and (tmp_path / "one.ckpt").read_bytes() == before
    assert "exists" in capsys.readouterr().err
    assert consolidate(tmp_path / "one.ckpt") == 2 and "one file already" in capsys.readouterr().err
    assert consolidate(folder, "--to", tmp_path / "one.safetensors") == 2 and "more than weights" in capsys.readouterr().err
    (folder / "shard-1.safetensors").unlink()
    assert consolidate(folder) == 2 and "is missing" in capsys.readouterr().err
    assert consolidate(tmp_path / "nowhere") == 2


def test_what_is_there_stays_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = a_folder(tmp_path / "step=0000003.ckpt")
    (folder / ".metadata").write_bytes(b"of somebody else")
    assert consolidate(folder, "--to", str(folder / "whole.ckpt")) == 2 and "is inside the folder" in capsys.readouterr().err
    assert consolidate(folder, "--to", str(tmp_path / "new" / "whole.ckpt")) == 0, "it is lmlab's, whatever else lies in it"
    assert read_checkpoint(tmp_path / "new" / "whole.ckpt")["global_step"] == 3
    (folder / "shard-1.safetensors").unlink()
    assert consolidate(folder, "--to", str(tmp_path / "failed.ckpt")) == 2 and not (tmp_path / "failed.ckpt").exists()


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_a_folder_of_torchs_needs_trust(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = torch_folder(tmp_path / "sharded")
    assert consolidate(folder) == 2
    assert "pickle" in (said := capsys.readouterr().err) and "--trust" in said and len(said.splitlines()) <= 5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["sharded"]
    assert consolidate(folder, "--trust") == 0 and "does not say which network" in capsys.readouterr().out
    assert consolidate(folder, "--trust", "--to", tmp_path / "weights.pt") == 0
    loaded = torch.load(tmp_path / "weights.pt", weights_only=True)["state_dict"]
    for weights in (load_file(tmp_path / "sharded-weights.safetensors"), loaded):
        assert weights.keys() == {"layer.w", "layer.b"}
        assert torch.equal(weights["layer.w"], WHOLE) and torch.equal(weights["layer.b"], HALF)


def test_bare_weights_are_on_the_disk_before_they_have_their_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bool] = []
    target = tmp_path / "weights.safetensors"
    monkeypatch.setattr(foreign, "sync", lambda path: synced.append(path.stat().st_size > 0 and not target.exists()))
    foreign.write_weights({"w": WHOLE}, target)
    assert synced == [True] and torch.equal(load_file(target)["w"], WHOLE)


@pytest.mark.parametrize("file", [".metadata", "zero_pp_rank_0_mp_rank_00_optim_states.pt"])
def test_code_in_a_folder_runs_only_if_it_is_trusted(tmp_path: Path, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    marker, folder = tmp_path / "was-run", tmp_path / "folder"
    folder.mkdir()
    (folder / file).write_bytes(pickle.dumps(Evil(marker)))
    assert consolidate(folder) == 2 and not marker.exists()
    assert "any code" in capsys.readouterr().err
    if file == ".metadata":
        assert consolidate(folder, "--trust") == 2 and marker.exists(), "it would have"
        assert "cannot be put together" in capsys.readouterr().err


def with_deepspeed(folder: Path) -> None:
    """A step of a small network by ZeRO, and DeepSpeed's own checkpoint."""
    from lmlab.strategies.zero import _load

    _load()
    import deepspeed

    torch.manual_seed(0)
    model = torch.nn.Linear(5, 3)
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {"stage": 2, "overlap_comm": False},
    }
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, model_parameters=list(model.parameters()))
    engine.backward(engine(torch.ones(1, 5)).sum())
    engine.step()
    engine.save_checkpoint(str(folder), tag="checkpoint")
    if os.environ["RANK"] == "0":
        torch.save({name: value.detach() for name, value in model.state_dict().items()}, folder / "expected.pt")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_folder_of_deepspeeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "zero"
    folder.mkdir()
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    forked(partial(with_deepspeed, folder))
    expected = torch.load(folder / "expected.pt", weights_only=True)
    assert consolidate(folder) == 2 and "pickles" in capsys.readouterr().err
    for given in (folder, folder / "checkpoint"):
        target = tmp_path / f"{given.name}.safetensors"
        assert consolidate(given, "--trust", "--to", target) == 0
        said = capsys.readouterr().out
        assert said.startswith(str(target)) and len(said.splitlines()) == 3, "nothing that DeepSpeed prints"
        weights = load_file(target)
        assert weights.keys() == expected.keys() and all(torch.equal(weights[name], expected[name]) for name in expected)


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        consolidate("--help")
    said = capsys.readouterr().out
    assert "--trust" in said and said.count("lmlab checkpoint consolidate") >= 3 and max(map(len, said.splitlines())) <= 140
