"""Which documents are kept, and which are held out: decided by hashes of their text, so that splits never share a document."""

from __future__ import annotations

import numpy as np

from lmlab.data.order import hash64, hash64_array

SPLITS = ("train", "val", "test")
DROPPED = -1
_DUPLICATES, _SPLIT = 0, 1  # hashes that must not meet


def first_of_each(hashes: np.ndarray, repeats: np.ndarray) -> np.ndarray:
    """Which documents are not equal to an earlier one.

    Works in about 30 bytes of memory for each document.

    Args:
        hashes: (D,) uint64, of the documents' texts, in their order.
        repeats: (D,) int64, from `Document.repeat`; a repeat on purpose is another document.

    Returns:
        (D,) bool.
    """
    keys = hashes ^ np.where(repeats > 0, hash64_array(repeats, _DUPLICATES), np.uint64(0))
    keep = np.zeros(len(keys), dtype=bool)
    keep[np.unique(keys, return_index=True)[1]] = True
    return keep


def assign_splits(hashes: np.ndarray, val_share: float, test_share: float, seed: int) -> np.ndarray:
    """Deals documents out to the splits.

    A document's place depends on its own text only, so it stays when others are added; but where a share is above 0 and
    there are documents enough, a split that got none takes the document that came closest. Training comes first, then validation.

    Args:
        hashes: (D,) uint64, of the documents' texts; equal texts get the same split.
        val_share: Share of documents for validation.
        test_share: Share for the test.
        seed: Another one deals differently.

    Returns:
        (D,) int8, indices into `SPLITS`.
    """
    texts, which = np.unique(hashes, return_inverse=True)
    places = hash64_array(texts, hash64(_SPLIT, seed)) / 2.0**64  # uniform in [0, 1)
    splits = np.select([places < val_share, places < val_share + test_share], [1, 2], default=0).astype(np.int8)
    order = np.argsort(places)
    wanted = [0] + [index for index, share in ((1, val_share), (2, test_share)) if share > 0]
    needed = wanted[: len(texts)]
    for index in needed:
        sizes = np.bincount(splits, minlength=3)
        if not sizes[index]:
            # from a split that may stay empty; if there is none, some other needed one has two texts
            spare = [other for other in range(3) if other not in needed and sizes[other]]
            giver = spare[0] if spare else int(sizes.argmax())
            candidates = order[splits[order] == giver]
            splits[candidates[-1] if index == 0 else candidates[0]] = index
    return splits[which]
