"""`lmlab checkpoint consolidate`: one file of a checkpoint that is a folder."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lmlab.errors import CheckpointError, ConfigError
from lmlab.run.find import find_checkpoint

if TYPE_CHECKING:
    from lmlab.checkpoint.foreign import Foreign

ABOUT = """\
Make one file of a checkpoint that is a folder. The folder stays as it is; an existing file is not overwritten.

A folder of lmlab's (FSDP with checkpoint: sharded) becomes the ordinary checkpoint: the same file as checkpoint: file would have
written, with weights, optimizer state and averages. Commands take the folder as well: this is for sending it, or for other tools.

Folders of torch.distributed.checkpoint (Lightning's FSDP and ModelParallel strategies write them) and of DeepSpeed are pickles, and
reading a pickle can run any code its author put in. They are refused unless you say --trust. Their weights are then written by name;
which network and tokenizer they belong to is not in such a folder, so lmlab cannot load the result by itself.
"""
EXAMPLES = """\
examples:
  lmlab checkpoint consolidate runs/clm/20260101T000000Z-0-abcdef/checkpoints/step=0001000.ckpt    # writes step=0001000-whole.ckpt
  lmlab checkpoint consolidate clm --to clm.ckpt                     # the best (else the last) of the newest finished run named clm
  lmlab checkpoint consolidate from_elsewhere/ --to weights.safetensors --trust
"""
REASON = {
    "torch": "torch.distributed.checkpoint describes a folder by a pickle, .metadata, and reading a pickle can run any code",
    "deepspeed": "DeepSpeed's files are pickles, and reading a pickle can run any code",
}


def main(argv: list[str]) -> int:
    """Consolidates a checkpoint.

    Args:
        argv: Options after `lmlab checkpoint`.

    Returns:
        The exit code.

    Raises:
        CheckpointError: If there is no such folder, or it is broken.
        ConfigError: If the file exists already, or the folder is a pickle and not trusted.
    """
    parser = argparse.ArgumentParser(prog="lmlab checkpoint", description="Work on checkpoints.", allow_abbrev=False)
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    action = actions.add_parser(
        "consolidate",
        help="make one file of a checkpoint that is a folder",
        description=ABOUT,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    action.add_argument("path", metavar="PATH", help="the folder; or a run's folder or name, which stands for its checkpoint")
    action.add_argument("--to", metavar="FILE", help="what to write (default: beside the folder); *.safetensors or *.pt for bare weights")
    action.add_argument("--trust", action="store_true", help="read pickles: you know who made the folder, and that it is unchanged")
    options = parser.parse_args(argv)
    print(_consolidate(options.path, options.to, options.trust))
    return 0


def _consolidate(spec: str, to: str | None, is_trusted: bool) -> str:
    from lmlab.checkpoint import read_checkpoint, write_checkpoint

    folder, kind = _folder_of(spec)
    default = f"{folder.name.removesuffix('.ckpt')}{'-whole.ckpt' if kind is None else '-weights.safetensors'}"
    target = folder.resolve().parent / default if to is None else Path(to).expanduser()
    if kind is not None and not is_trusted:
        remedy = "say --trust if you know who made the folder; else ask for safetensors"
        raise ConfigError(f"the folder {folder.name} is not read", where="--trust", why=REASON[kind], remedy=remedy)
    if kind is None and target.suffix == ".safetensors":
        raise ConfigError(
            "a checkpoint is more than weights", where="--to", why="safetensors hold tensors only", remedy="name a .ckpt file"
        )
    if target.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(f"{target} is inside the folder", where="--to", why="the folder stays as it is", remedy="name a file elsewhere")
    with _reserved(target):
        if kind is not None:
            return _write_foreign(folder, kind, target)
        content = read_checkpoint(folder)
        write_checkpoint(content, target)
        return f"{target}: step {content.get('global_step', '?')}, {_size(target)}, an ordinary checkpoint"


@contextmanager
def _reserved(target: Path) -> Iterator[None]:
    """Makes an empty file to be replaced, so that nobody else's is: reading a large folder takes a while. It is gone if that fails."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch(exist_ok=False)
    except FileExistsError as error:
        remedy = "name another file, or delete it first"
        raise ConfigError(f"{target} exists", where="--to", why="nothing is overwritten", remedy=remedy) from error
    except OSError as error:
        raise ConfigError(f"{target} cannot be written", where="--to", why=str(error), remedy="name a file elsewhere") from error
    try:
        yield
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def _write_foreign(folder: Path, kind: Foreign, target: Path) -> str:
    from lmlab.checkpoint.foreign import foreign_weights, write_weights

    weights = foreign_weights(folder, kind)
    write_weights(weights, target)
    count = sum(tensor.numel() for tensor in weights.values())
    return (
        f"{target}: {len(weights)} tensors, {count:,} numbers, {_size(target)}\n"
        "These are weights by name and nothing else: the folder does not say which network and tokenizer they belong to, so `lmlab.load`\n"
        "cannot open this file. Build the model yourself, and load_state_dict them."
    )


def _folder_of(spec: str) -> tuple[Path, Foreign | None]:
    """The folder, and who wrote it if lmlab did not."""
    from lmlab.checkpoint.foreign import foreign_kind

    path = Path(spec).expanduser()
    kind = foreign_kind(path)
    if kind is not None:
        return path, kind
    found = path if path.is_file() else find_checkpoint(spec)
    if not found.is_dir():
        what, why = f"{found.name} is one file already", "only a checkpoint that is a folder can be consolidated"
        raise CheckpointError(what, where=str(found), why=why, remedy="copy it")
    return found, foreign_kind(found)


def _size(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:,.1f} MB"
