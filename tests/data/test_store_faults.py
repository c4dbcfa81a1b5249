"""Builds that are killed, builds at the same time, and text that is larger than memory should ever be."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
import zipfile
from concurrent.futures import Future
from pathlib import Path

import pytest

from lmlab.cache import write_atomic
from lmlab.data.cleaning import CleaningConfig, CleaningCounts
from lmlab.data.corpus import JsonlCorpus, TextCorpus
from lmlab.data.store import StoreConfig, TokenStore, build_store
from lmlab.data.store.encoding import Encoder
from lmlab.data.store.shards import RawShard, ShardWriter, cut_shards
from lmlab.data.store.workers import WorkerPool
from lmlab.errors import DataError
from lmlab.tokenizer import Tokenizer
from tests.data.conftest import ENGLISH

CONFIG = StoreConfig(shard_characters=10_000, num_processes=2)
ALONE = StoreConfig(shard_characters=10_000, num_processes=1)  # the same shards without the time that processes take to start
MAX_GROWTH_MB = 120  # of peak memory from 10 to 100 MB of text; what grows is 30 bytes for each document

BUILD = """
import pickle, resource, sys
from pathlib import Path
from lmlab.data.store import build_store
tokenizer, corpus, config, cache = pickle.load(sys.stdin.buffer)
stores = build_store(corpus, tokenizer, config, cache_dir=Path(cache))
children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
status = Path("/proc/self/status")  # of this process alone; the other number outlives an exec
own = next((int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM:")), own) if status.exists() else own
print(own // 1024, children // 1024, sum(store.num_tokens for store in stores.values()))
"""


def start(tokenizer: Tokenizer, corpus: TextCorpus | JsonlCorpus, config: StoreConfig, cache: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)}
    process = subprocess.Popen([sys.executable, "-c", BUILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    assert process.stdin is not None
    pickle.dump((tokenizer, corpus, config, str(cache)), process.stdin)
    process.stdin.close()
    process.stdin = None  # `communicate` would flush it
    return process


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file() and file.suffix != ".lock"}


@pytest.fixture
def corpus(tmp_path: Path) -> JsonlCorpus:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": f"{n}: {text}" * 20}) + "\n" for n in range(3) for text in ENGLISH))
    return JsonlCorpus(paths=(str(path),))


def test_a_killed_build_goes_on_and_gives_the_same_store(
    corpus: JsonlCorpus, bpe_tokenizer: Tokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    process = start(bpe_tokenizer, corpus, CONFIG, tmp_path / "killed")
    deadline = time.monotonic() + 60
    while not (started := list((tmp_path / "killed").glob("stores/*.building/shard-00000[1-9].npz"))):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    time.sleep(0.5)  # its workers see the end of their pipe
    folder = started[0].parent
    assert len(list(folder.glob("shard-*.npz"))) < 100
    assert not (folder.parent / folder.name.removesuffix(".building")).exists()

    build_store(corpus, bpe_tokenizer, ALONE, cache_dir=tmp_path / "killed")
    assert "from an interrupted build" in caplog.text
    build_store(corpus, bpe_tokenizer, ALONE, cache_dir=tmp_path / "whole")
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")
    assert len(list((tmp_path / "killed" / "stores").iterdir())) == 2  # the store and its lock


def test_parts_of_another_size_are_not_taken_over(corpus: JsonlCorpus, bpe_tokenizer: Tokenizer, tmp_path: Path) -> None:
    whole = build_store(corpus, bpe_tokenizer, StoreConfig(num_processes=1), cache_dir=tmp_path / "whole")
    folder = tmp_path / "left" / "stores" / f"{whole['train'].fingerprint}.building"
    folder.mkdir(parents=True)
    writer = ShardWriter(folder, bpe_tokenizer, CleaningConfig())
    for raw in cut_shards(corpus.documents(), 100_000):
        writer.write(raw, Encoder(bpe_tokenizer))
    build_store(corpus, bpe_tokenizer, StoreConfig(num_processes=1), cache_dir=tmp_path / "left")
    assert files_of(tmp_path / "left") == files_of(tmp_path / "whole")


def test_two_processes_do_not_build_twice(corpus: JsonlCorpus, bpe_tokenizer: Tokenizer, tmp_path: Path) -> None:
    processes = [start(bpe_tokenizer, corpus, StoreConfig(num_processes=1), tmp_path / "cache") for _ in range(2)]
    answers = [process.communicate()[0].split()[-1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert answers[0] == answers[1]
    assert len(list((tmp_path / "cache" / "stores").iterdir())) == 2


def test_a_dead_worker_is_named_and_its_work_can_go_on(corpus: JsonlCorpus, bpe_tokenizer: Tokenizer, tmp_path: Path) -> None:
    class Mortal(WorkerPool):
        def submit(self, raw: RawShard) -> Future[CleaningCounts]:
            if raw.number == 5:
                for worker in self._workers:
                    worker.kill()
            return super().submit(raw)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lmlab.data.store.building.WorkerPool", Mortal)
        with pytest.raises(DataError, match=r"has died[\s\S]*-9[\s\S]*num_processes"):
            build_store(corpus, bpe_tokenizer, CONFIG, cache_dir=tmp_path / "cache")
    build_store(corpus, bpe_tokenizer, ALONE, cache_dir=tmp_path / "cache")
    assert len(list((tmp_path / "cache" / "stores").iterdir())) == 2


def test_a_full_disk_keeps_what_was_done(corpus: JsonlCorpus, bpe_tokenizer: Tokenizer, tmp_path: Path) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    def full_file(path: Path, data: bytes) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("lmlab.cache.os.fsync", full)
            write_atomic(path, data)

    config = StoreConfig(shard_characters=50_000, num_processes=1)
    merging = "lmlab.data.store.merging"
    for place, fault in (
        ("lmlab.data.store.shards.np.savez", full),
        (f"{merging}._ArrayWriter.write", full),
        (f"{merging}.write_atomic", full_file),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(place, fault)
            with pytest.raises(DataError, match=r"No space left[\s\S]*LMLAB_CACHE"):
                build_store(corpus, bpe_tokenizer, config, cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache").glob("stores/*.building/shard-000000.npz"))
    build_store(corpus, bpe_tokenizer, config, cache_dir=tmp_path / "cache")
    assert len(list((tmp_path / "cache" / "stores").iterdir())) == 2


def interrupted(corpus: JsonlCorpus, tokenizer: Tokenizer, cache: Path) -> Path:
    """Builds three parts and stops; gives the folder they are in."""

    class Stopped(ShardWriter):
        def write(self, raw: RawShard, encoder: Encoder) -> CleaningCounts:
            if raw.number == 3:
                raise KeyboardInterrupt
            return super().write(raw, encoder)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lmlab.data.store.building.ShardWriter", Stopped)
        with pytest.raises(KeyboardInterrupt):
            build_store(corpus, tokenizer, ALONE, cache_dir=cache)
    (folder,) = cache.glob("stores/*.building")
    assert len(list(folder.glob("shard-*.npz"))) == 3
    return folder


@pytest.mark.parametrize("name", ["tokens", "sentences", "note", ""])
def test_a_damaged_part_is_made_again(
    corpus: JsonlCorpus, bpe_tokenizer: Tokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    caplog.set_level("INFO")
    file = interrupted(corpus, bpe_tokenizer, tmp_path / "damaged") / "shard-000001.npz"
    data = bytearray(file.read_bytes())
    if name:
        with zipfile.ZipFile(file) as archive:
            place = archive.getinfo(f"{name}.npy").header_offset + 300  # in the numbers, not in the head
        data[place] ^= 1
    file.write_bytes(data if name else data[:100])
    build_store(corpus, bpe_tokenizer, ALONE, cache_dir=tmp_path / "damaged")
    assert "is damaged; it is made again" in caplog.text
    assert "took over 2 of" in caplog.text
    build_store(corpus, bpe_tokenizer, ALONE, cache_dir=tmp_path / "whole")
    assert files_of(tmp_path / "damaged") == files_of(tmp_path / "whole")


def test_parts_of_another_text_are_not_taken_over(
    corpus: JsonlCorpus, bpe_tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a source whose fingerprint does not know its text, such as a data set of the hub
    monkeypatch.setattr(JsonlCorpus, "fingerprint", lambda self: "0" * 16)
    interrupted(corpus, bpe_tokenizer, tmp_path / "changed")
    path = Path(corpus.paths[0])
    path.write_text(path.read_text().replace("home", "back"))  # as long as before
    build_store(corpus, bpe_tokenizer, ALONE, cache_dir=tmp_path / "changed")
    build_store(corpus, bpe_tokenizer, ALONE, cache_dir=tmp_path / "whole")
    assert files_of(tmp_path / "changed") == files_of(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_one_line_of_50_megabytes(tmp_path: Path, bpe_tokenizer: Tokenizer, kind: str) -> None:
    text, path = "".join(f"He was not at home {n}. " for n in range(1_900_000)), tmp_path / f"x.{kind}"
    assert len(text) > 50_000_000 - 5_000_000
    path.write_text(text if kind == "txt" else json.dumps({"text": text}))
    corpus = TextCorpus(paths=(str(path),)) if kind == "txt" else JsonlCorpus(paths=(str(path),))
    process = start(bpe_tokenizer, corpus, StoreConfig(num_processes=1), tmp_path / "cache")
    megabytes, _, tokens = map(int, process.communicate()[0].split())
    assert tokens >= 0.1 * len(text)
    assert megabytes < (400 if kind == "txt" else 1500)  # a JSON line has to be read as a whole


@pytest.mark.slow
def test_memory_does_not_grow_with_the_text(tmp_path: Path, bpe_tokenizer: Tokenizer) -> None:
    peaks = []
    for megabytes in (10, 100):
        path = tmp_path / f"{megabytes}.txt"
        with path.open("w") as file:
            for n in range(megabytes * 1000):
                file.write((f"Paragraph {n} has words. " * 45)[:998] + "\n\n")
        process = start(bpe_tokenizer, TextCorpus(paths=(str(path),)), StoreConfig(num_processes=2), tmp_path / "cache")
        own, child, tokens = map(int, process.communicate()[0].split())
        assert tokens > 0.1 * megabytes * 1e6
        peaks.append(own + 2 * child)
    assert peaks[1] - peaks[0] < MAX_GROWTH_MB


def test_an_open_store_can_be_used_after_its_folder_moved(corpus: JsonlCorpus, bpe_tokenizer: Tokenizer, tmp_path: Path) -> None:
    store = build_store(corpus, bpe_tokenizer, ALONE, cache_dir=tmp_path / "cache")["train"]
    store.path.parent.rename(tmp_path / "moved")
    assert TokenStore.open(tmp_path / "moved" / "train", verify="full").num_tokens == store.num_tokens
