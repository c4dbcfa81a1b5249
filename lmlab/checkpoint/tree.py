"""A checkpoint's content taken apart into big tensors and the rest, and put together again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

MARK = "lmlab_shard"
"""The only key of a dict that stands in the rest where a tensor was; its value is the tensor's key."""


def cut(content: Any, is_big: Callable[[Any], bool], place: tuple[str, ...] = ()) -> tuple[Any, dict[str, Tensor]]:
    """Takes tensors out of nested dicts, lists and tuples.

    Args:
        content: Is not changed.
        is_big: Which leaves to take out.
        place: Keys that lead here.

    Returns:
        The rest, with a mark at each place; and the tensors by key, which is the way to it: `state_dict/net.embedding.weight`.
    """
    if is_big(content):
        key = "/".join(place)
        return {MARK: key}, {key: content}
    if not isinstance(content, (dict, list, tuple)):
        return content, {}
    pairs = list(content.items()) if isinstance(content, dict) else list(enumerate(content))
    parts = [cut(value, is_big, (*place, str(key))) for key, value in pairs]
    tensors = {key: tensor for _, found in parts for key, tensor in found.items()}
    if not tensors:
        return content, {}
    if isinstance(content, dict):
        return {key: rest for (key, _), (rest, _) in zip(pairs, parts, strict=True)}, tensors
    return [rest for rest, _ in parts], tensors


def join(rest: Any, tensors: Mapping[str, Any]) -> Any:
    """Puts tensors back in their places.

    Args:
        rest: From `cut`, read back.
        tensors: By key; None for one whose place is to be left out of the dict it was in.

    Raises:
        KeyError: If a tensor is marked and not given.
    """
    if isinstance(rest, dict):
        if _is_mark(rest):
            return tensors[rest[MARK]]
        left = {key for key, value in rest.items() if _is_mark(value) and tensors[value[MARK]] is None}
        return {key: join(value, tensors) for key, value in rest.items() if key not in left}
    if isinstance(rest, list):
        return [join(value, tensors) for value in rest]
    return tuple(join(value, tensors) for value in rest) if type(rest) is tuple else rest


def _is_mark(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {MARK}
