"""The sizes that the shipped overlays promise in their headers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import yaml

from lmlab.backbones import BackboneConfig, Decoder

FOLDER = Path(__file__).parents[2] / "configs" / "backbones"
SCALES = {"M": 1e6, "B": 1e9}
ROUNDING = 0.02  # headers give two or three digits


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_header(path) -> None:
    """Weights without embeddings and FLOPs a token, as built."""
    text = path.read_text()
    overlay = yaml.safe_load(text)
    assert overlay.keys() == {"model"} and overlay["model"].keys() == {"init_args"}
    with torch.device("meta"):
        backbone = Decoder(BackboneConfig(**overlay["model"]["init_args"]["backbone"]), 8192, pad_id=0)
    weights, flops = (float(x) * SCALES[scale] for x, scale in re.findall(r"([\d.]+) ([MB]) (?:weights|FLOPs)", text))
    assert backbone.num_parameters("without") == pytest.approx(weights, rel=ROUNDING)
    assert 3 * backbone.flops(1, 128) / 128 == pytest.approx(flops, rel=ROUNDING)


def test_all_sizes_are_there() -> None:
    """The names the documentation uses."""
    names = {"tiny", "mini", "small", "base", "large", "xl", "1b", "7b", "13b", "70b"}
    assert {path.stem for path in FOLDER.glob("*.yaml")} == names
