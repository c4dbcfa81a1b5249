"""Which example is the n-th, and random numbers that belong to a place: pure functions without state.

Every function here gives the same answer in every process, on every platform and in every version of lmlab: a run that is
resumed, moved to other workers or repeated sees the same text in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import overload

import numpy as np

from lmlab.errors import ConfigError

_MASK = 2**64 - 1
_GOLDEN = 0x9E3779B97F4A7C15  # increment of splitmix64: 2^64 / golden ratio, made odd
_MULTIPLY_1, _MULTIPLY_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # multipliers of its finaliser
_ROUNDS, _SMALL_ROUNDS, _SMALL = 8, 24, 256  # below 256 elements 8 rounds visibly prefer some permutations, 16 just do not


class _Key(np.random.bit_generator.ISeedSequence):
    # hands Philox its key as it is; the constructor's own `key` argument asks the system for entropy first, at twice the price
    def __init__(self, words: np.ndarray) -> None:
        self.words = words

    def generate_state(self, n_words: int, dtype: object = np.uint32) -> np.ndarray:
        return self.words


def hash64(*values: int) -> int:
    """A 64-bit hash of a list of integers, in which order and number count.

    Args:
        values: Integers of any sign; only their lowest 64 bits are used.

    Returns:
        An integer in [0, 2^64).

    Source: Steele, Lea & Flood 2014, "Fast Splittable Pseudorandom Number Generators", section 3 (the finaliser, variant 13 of
    Stafford's mix).
    """
    state = len(values)
    for value in values:
        state = _mix((state ^ (value & _MASK)) + _GOLDEN)
    return state


def hash64_array(values: np.ndarray, key: int) -> np.ndarray:
    """A keyed 64-bit hash of each element.

    Args:
        values: Integers of any shape, taken as uint64.
        key: Another key gives an independent hash.

    Returns:
        uint64 array of the same shape.
    """
    return _round_array(values.astype(np.uint64), hash64(key))


def rng(seed: int, *counters: int) -> np.random.Generator:
    """Randomness of its own for each list of counters, such as (stream, position, index).

    Args:
        seed: Seed of the run.
        counters: Where the randomness is needed; another number in any place gives an independent generator.

    Returns:
        A generator at the beginning of its stream; about 8 microseconds to make.

    Source: Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3", section 3.2 (Philox).
    """
    low = hash64(seed, *counters)
    return np.random.Generator(np.random.Philox(_Key(np.array([low, _mix(low ^ _MASK)], np.uint64))))  # type: ignore[arg-type]


@overload
def permute(n: int, size: int, key: int) -> int: ...
@overload
def permute(n: np.ndarray, size: int, key: int) -> np.ndarray: ...
def permute(n: int | np.ndarray, size: int, key: int) -> int | np.ndarray:
    """Where a random permutation of [0, size) sends n, without ever holding the permutation.

    The range is laid out as a rectangle of about sqrt(size) rows, just large enough. A Feistel network shifts the row by a hash of
    the column and the column by a hash of the row, in turn; each such step can be undone, so all of them together are a bijection
    of the rectangle. What lands outside [0, size) is sent through again until it lands inside (cycle walking), which is a bijection
    of [0, size) and rarely needed, because less than one row is outside.

    Args:
        n: Element or int64 array of elements of [0, size).
        size: Size of the range, up to 2^62.
        key: Which permutation.

    Returns:
        An element, or an int64 array of the shape of `n`.

    Raises:
        ConfigError: If `n` is outside [0, size).

    Source: Black & Rogaway 2002, "Ciphers with Arbitrary Finite Domains", sections 4 (cycle walking) and 5 (generalised Feistel).
    """
    _check_range(n, size)
    rows = math.isqrt(size - 1) + 1
    columns = -(-size // rows)
    keys = _round_keys(key, _ROUNDS if size >= _SMALL else _SMALL_ROUNDS)
    if isinstance(n, np.ndarray):
        return _permute_array(n, size, rows, columns, keys)
    while True:
        row, column = divmod(n, columns)
        for i in range(0, len(keys), 2):
            row = (row + _mix((column ^ keys[i]) + _GOLDEN)) % rows
            column = (column + _mix((row ^ keys[i + 1]) + _GOLDEN)) % columns
        n = row * columns + column
        if n < size:
            return n


def example_at(position: int, size: int, seed: int) -> int:
    """Which example is the n-th since the start: every epoch is another permutation.

    Args:
        position: n, from 0.
        size: Examples in one epoch.
        seed: Decides the order of all epochs.

    Returns:
        Index of the example, in [0, size).

    Raises:
        ConfigError: If there is no example to choose from.
    """
    if size < 1:
        raise ConfigError("there is no order over no examples", why=f"the view has {size} examples", remedy="use a longer text")
    epoch, n = divmod(position, size)
    return permute(n, size, hash64(seed, epoch))


def _check_range(n: int | np.ndarray, size: int) -> None:
    low, high = (int(n.min(initial=0)), int(n.max(initial=0))) if isinstance(n, np.ndarray) else (n, n)
    if not (low >= 0 and high < size):
        raise ConfigError(f"{low if low < 0 else high} is not in the range [0, {size})", why="a permutation maps a range onto itself")


@lru_cache(maxsize=64)  # an epoch asks for the same ones again and again
def _round_keys(key: int, rounds: int) -> tuple[int, ...]:
    return tuple(hash64(key, i) for i in range(rounds))


def _permute_array(n: np.ndarray, size: int, rows: int, columns: int, keys: Sequence[int]) -> np.ndarray:
    values = n.astype(np.uint64).ravel()
    todo = np.arange(values.size)
    while todo.size:
        row, column = np.divmod(values[todo], np.uint64(columns))
        for i in range(0, len(keys), 2):
            # reduced before adding: unlike Python's integers, a uint64 sum would wrap
            row = (row + _round_array(column, keys[i]) % np.uint64(rows)) % np.uint64(rows)
            column = (column + _round_array(row, keys[i + 1]) % np.uint64(columns)) % np.uint64(columns)
        values[todo] = row * np.uint64(columns) + column
        todo = todo[values[todo] >= size]
    return values.astype(np.int64).reshape(n.shape)


def _mix(state: int) -> int:
    state &= _MASK
    state = ((state ^ (state >> 30)) * _MULTIPLY_1) & _MASK
    state = ((state ^ (state >> 27)) * _MULTIPLY_2) & _MASK
    return state ^ (state >> 31)


def _round_array(values: np.ndarray, key: int) -> np.ndarray:
    return _mix_array((values ^ np.uint64(key)) + np.uint64(_GOLDEN))


def _mix_array(state: np.ndarray) -> np.ndarray:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(_MULTIPLY_1)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(_MULTIPLY_2)
    return state ^ (state >> np.uint64(31))
