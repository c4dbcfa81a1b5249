"""Which optimizer, with which settings, over which groups of parameters."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch.nn import Parameter
from torch.optim import Optimizer

from lmlab.config import check_choices, require
from lmlab.errors import ConfigError, nearest
from lmlab.nn.sharded import full_shape
from lmlab.optim.classes import PREFIX, arguments_of, class_named, load_class
from lmlab.optim.groups import Entry, Kind, check_patterns, check_used, list_entries
from lmlab.optim.muon import MuonWithAdamW

DEFAULTS: dict[str, dict[str, Any]] = {
    # betas of GPT-3 (Brown et al. 2020, appendix B); at a second beta of 0.999 short runs end before it has averaged anything
    "adamw": {"lr": 1e-3, "weight_decay": 0.1, "betas": (0.9, 0.95), "eps": 1e-8},
    "muon": {"lr": 1e-3, "weight_decay": 0.1, "betas": (0.9, 0.95), "eps": 1e-8, "momentum": 0.95},
    "adafactor": {"lr": 1e-2, "weight_decay": 0.0},
    # Chen et al. 2023, section 5: a learning rate ten times smaller than AdamW's, a decay ten times larger
    "lion": {"lr": 1e-4, "weight_decay": 1.0, "betas": (0.9, 0.99)},
    "sgd": {"lr": 0.1, "weight_decay": 0.0, "momentum": 0.9},
}
"""What a setting that is left at None stands for."""

OWN_FIELDS = ("lr", "weight_decay", "betas", "eps", "momentum")
FUSED_DEVICES = ("cpu", "cuda")
FUSED_BY_DEFAULT = (torch.optim.Adam, torch.optim.AdamW)
"""Fused kernels that sharded tensors understand; that of SGD they do not."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How parameters move.

    Settings at None take the value that suits the optimizer (`DEFAULTS`); one that the optimizer does not have is refused.
    Clip gradients with the trainer's `gradient_clip_val`: it is the norm over all groups, and needs nothing from here.

    Args:
        name: `adamw`, `muon` (Muon for hidden matrices, AdamW for the rest), `adafactor`, `lion`, `sgd`, or a class of
            `torch.optim` such as `torch.optim.NAdam`.
        lr: Full learning rate, which the schedule multiplies. By name: adamw 1e-3, muon 1e-3, adafactor 1e-2, lion 1e-4, sgd 0.1.
            For adafactor it is the cap on the *relative* step, see `build`.
        weight_decay: By name: adamw 0.1, muon 0.1, lion 1.0, otherwise 0. Decoupled (multiplied by the learning rate) for adamw,
            muon, adafactor and lion; added to the gradient for sgd and where the class does so.
        betas: Averaging of gradient and squared gradient. By name: adamw and muon's AdamW (0.9, 0.95), lion (0.9, 0.99).
        eps: Added to Adam's denominator: 1e-8.
        momentum: muon 0.95, sgd 0.9.
        adamw_lr: Learning rate of muon's AdamW half; None: the same, which `adjust_lr_fn: match_rms_adamw` (the default here,
            not torch's) makes right.
        decay: Which kinds of parameters are decayed. Embeddings and positions are, as in BERT and GPT-2.
        kinds: Regular expression over names to kind, for names that `lmlab.optim.groups.PATTERNS` misjudges.
        lr_scale: Regular expression over names to a multiplier of the learning rate; the first match decides.
        implementation: `auto` takes torch's fused kernel for Adam and AdamW where the devices have one: three times as fast on a
            CPU, and as deterministic. `for_loop` where plain and distributed tensors are mixed.
        options: Further keyword arguments of the class (of `torch.optim.Muon` for muon).
    """

    name: Literal["adamw", "muon", "adafactor", "lion", "sgd"] | str = "adamw"
    lr: float | None = None
    weight_decay: float | None = None
    betas: tuple[float, float] | None = None
    eps: float | None = None
    momentum: float | None = None
    adamw_lr: float | None = None
    decay: tuple[Kind, ...] = ("matrix", "embedding", "position", "head")
    kinds: dict[str, Kind] = field(default_factory=dict)
    lr_scale: dict[str, float] = field(default_factory=dict)
    implementation: Literal["auto", "fused", "foreach", "for_loop"] = "auto"
    options: dict[str, bool | int | float | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuses unknown names, impossible values and settings without effect."""
        class_named(self.name)
        check_choices(self)
        if self.name not in DEFAULTS:
            require(self.lr is not None, self, "lr", f"lmlab has no default for {self.name}", "set it")
        for positive in ("lr", "eps", "adamw_lr"):
            value = getattr(self, positive)
            require(value is None or value > 0, self, positive, "it is positive", "set a positive number; freeze parameters to stop them")
        require(self.weight_decay is None or self.weight_decay >= 0, self, "weight_decay", "it is not negative", "set 0 or more")
        fits = self.betas is None or (len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas))
        require(fits, self, "betas", "they are two, and lie in [0, 1)", "for example [0.9, 0.95]")
        require(self.momentum is None or 0 <= self.momentum < 1, self, "momentum", "it lies in [0, 1)", "for example 0.9")
        require(self.adamw_lr is None or self.name == "muon", self, "adamw_lr", "only muon has an AdamW half", "leave it out")
        require(all(s > 0 for s in self.lr_scale.values()), self, "lr_scale", "multipliers are positive", "freeze parameters to stop them")
        check_patterns([*self.kinds, *self.lr_scale], f"{type(self).__name__}.kinds, .lr_scale")
        self._check_effect()

    def settings(self) -> dict[str, Any]:
        """The settings that are in force: `DEFAULTS`, and what was set over them."""
        given = {f: getattr(self, f) for f in OWN_FIELDS if getattr(self, f) is not None}
        return DEFAULTS.get(self.name, {}) | given | self.options

    def build(self, named_parameters: Iterable[tuple[str, Parameter]]) -> Optimizer:
        """Makes the optimizer.

        Groups are decided by name, never by shape: sharding flattens shapes. Each has a unique `name` (`decay`, `no_decay`, and
        for muon `muon_decay`, `adamw_decay` …), and its full learning rate under `initial_lr`.

        Adafactor is torch's, which differs from Shazeer & Stern 2018: the relative step is min(lr, 1/sqrt(t)) with `lr` in place of
        a constant 0.01, so a schedule lowers a cap, and acts only while it lies below 1/sqrt(t); the step is always scaled by the
        parameter's own size, max(1e-3, RMS); the squared gradient gets no epsilon, the denominator does.

        Args:
            named_parameters: Names and parameters, as `module.named_parameters()` gives them before any wrapping; prefixes that
                wrappers add are tolerated. A tied parameter under several names is taken once. Frozen ones may be among them:
                they rest until they get a gradient.

        Raises:
            ConfigError: If nothing is trainable, a pattern matches nothing, a setting does not suit the class, or muon is
                given a hidden parameter that is not a matrix.
        """
        entries = list_entries(named_parameters, self.kinds)
        names = [entry.name for entry in entries]
        if not any(entry.parameter.requires_grad for entry in entries):
            raise ConfigError(
                "there is nothing to optimise", why=f"{len(entries)} parameters, none trainable", remedy="unfreeze some of them"
            )
        check_used(self.kinds, names, "OptimizerConfig.kinds")
        check_used(self.lr_scale, names, "OptimizerConfig.lr_scale")
        groups = self._groups(entries)
        try:
            return self._make(groups, [entry.parameter for entry in entries])
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"{self.name} refuses its settings", where="optimizer", why=str(error), remedy="change the setting it names"
            ) from error

    def _groups(self, entries: list[Entry]) -> list[dict[str, Any]]:
        settings = self.settings()
        has_decay = "weight_decay" in arguments_of(self.name)
        groups: dict[str, dict[str, Any]] = {}
        for entry in entries:
            update = _update(entry) if self.name == "muon" else None
            lr = self.adamw_lr if update == "adamw" and self.adamw_lr is not None else settings["lr"]
            scale = _first_match(self.lr_scale, entry.name)
            decays = entry.kind in self.decay
            name = "_".join(filter(None, [update, "decay" if decays else "no_decay", f"x{scale}" if scale != 1 else None]))
            if name not in groups:
                groups[name] = {"params": [], "name": name, "lr": lr * scale, "initial_lr": lr * scale}
                if has_decay:
                    groups[name]["weight_decay"] = settings.get("weight_decay", 0.0) if decays else 0.0
                if update:
                    groups[name]["update"] = update
            groups[name]["params"].append(entry.parameter)
        # muon's matrices first: the first group's learning rate is the one that is logged
        return [groups[name] for name in sorted(groups, key=lambda name: (name.startswith("adamw"), name))]

    def _make(self, groups: list[dict[str, Any]], parameters: list[Parameter]) -> Optimizer:
        settings = {k: v for k, v in self.settings().items() if k not in ("lr", "weight_decay")}
        if self.name == "muon":
            adamw = {key: settings.pop(key) for key in ("betas", "eps")}
            flags = self._flags(PREFIX + "AdamW", parameters)
            for group in groups:
                group.update(flags if group["update"] == "adamw" else {})
            return MuonWithAdamW(groups, muon={"adjust_lr_fn": "match_rms_adamw"} | settings, adamw=adamw)
        # in the groups, not as an argument: there it would also make Lightning refuse gradient clipping under mixed precision,
        # for the sake of a gradient scaler that fused kernels may serve but need not
        flags = self._flags(self.name, parameters)
        for group in groups:
            group.update(flags)
        return load_class(self.name)(groups, lr=groups[0]["lr"], **settings)

    def _flags(self, name: str, parameters: list[Parameter]) -> dict[str, bool]:
        accepted = arguments_of(name)
        has_fused, has_foreach = "fused" in accepted, "foreach" in accepted
        fits = all(p.device.type in FUSED_DEVICES and p.is_floating_point() for p in parameters)
        wanted = self.implementation
        if (wanted == "fused" and not (has_fused and fits)) or (wanted == "foreach" and not has_foreach):
            why = "the class has none" if not (has_fused if wanted == "fused" else has_foreach) else "a parameter is on another device"
            raise ConfigError(
                f"{self.name} has no {wanted} implementation here", where="optimizer.implementation", why=why, remedy="set `auto`"
            )
        if wanted == "auto":
            return {"fused": True} if fits and class_named(name) in FUSED_BY_DEFAULT else {}
        return {key: key == wanted for key, known in (("fused", has_fused), ("foreach", has_foreach)) if known}

    def _check_effect(self) -> None:
        own = DEFAULTS.get(self.name)
        accepted = set(arguments_of(self.name))
        for key in OWN_FIELDS:
            if getattr(self, key) is not None and key not in (own if own is not None else accepted):
                raise ConfigError(
                    f"{self.name} has no {key}", where=f"optimizer.{key}", why="it would have no effect", remedy="leave it out"
                )
        taken = {*OWN_FIELDS, "params", "foreach", "fused"}
        for key in self.options:
            if key in taken or key not in accepted:
                where, choices = f"optimizer.options.{key}", accepted - taken
                why = "it has a field of its own" if key in taken else ""
                raise ConfigError(f"'{key}' is not an option of {self.name}", where=where, why=why, remedy=nearest(key, choices))


def _update(entry: Entry) -> str:
    """Which half of muon a parameter belongs to; stacks of matrices are AdamW's, because torch's Muon takes single ones."""
    shape = full_shape(entry.parameter)
    if entry.kind != "matrix" or len(shape) > 2:
        return "adamw"
    if len(shape) < 2:
        raise ConfigError(
            f"muon cannot orthogonalise '{entry.name}' of shape {tuple(shape)}",
            where="optimizer.kinds",
            why="by its name it is a hidden matrix, and it is not one",
            remedy=f"add `{entry.name}: vector` to optimizer.kinds",
        )
    return "muon"


def _first_match(scales: dict[str, float], name: str) -> float:
    return next((scale for pattern, scale in scales.items() if re.search(pattern, name)), 1.0)
