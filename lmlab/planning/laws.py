"""Rules of thumb for the size of a model, of its text, of its batch and of its steps, each with its source and where it holds.

They are regularities found in some experiments, not laws of nature: each docstring says in which. All are about transformers that are
trained from scratch to predict tokens, unless it says otherwise.
"""

from __future__ import annotations

from math import sqrt
from typing import Literal, NamedTuple

from lmlab.errors import ConfigError

TOKENS_PER_PARAMETER = 20.0
"""Chinchilla's 1.4 T tokens for 70 B parameters; Hoffmann et al. 2022, table 3, has 20.0 at 0.4 B and 22 at 67 B."""


class LossLaw(NamedTuple):
    """L(N, D) = `entropy` + A / N^alpha + B / D^beta, in nats per token.

    Args:
        entropy: E, the loss that no model gets below.
        a: A, with `alpha` what a model of N parameters lacks.
        b: B, with `beta` what a text of D tokens lacks.
        alpha: Exponent of N.
        beta: Exponent of D.
    """

    entropy: float
    a: float
    b: float
    alpha: float
    beta: float

    def loss(self, parameters: float, tokens: float) -> float:
        """Nats per token after one pass; those of the tokenizer and the text it was fitted on, so only differences say something.

        Args:
            parameters: N.
            tokens: D.
        """
        return self.entropy + self.a / parameters**self.alpha + self.b / tokens**self.beta


HOFFMANN = LossLaw(1.69, 406.4, 410.7, 0.34, 0.28)
"""As printed in Hoffmann et al. 2022, equation 10; known to be inaccurate, kept to compare with."""

BESIROGLU = LossLaw(1.8172, 482.01, 2085.43, 0.3478, 0.3658)
"""The same data fitted again: Besiroglu et al. 2024, "Chinchilla Scaling: A replication attempt", table 1."""


class Allocation(NamedTuple):
    """How a compute budget is divided.

    Args:
        parameters: N.
        tokens: D.
    """

    parameters: float
    tokens: float


def training_flops(parameters: float, tokens: float) -> float:
    """C = 6 N D: two FLOPs a parameter and token forward, four backward.

    Args:
        parameters: N, without embeddings in the source; those of the head compute as well.
        tokens: D.

    Returns:
        FLOPs, without those of attention scores, which add 6 L T D_model a token: little while D_model is well above T / 12.

    Source: Kaplan et al. 2020, "Scaling Laws for Neural Language Models", section 2.1.
    """
    _positive(parameters=parameters, tokens=tokens)
    return 6.0 * parameters * tokens


def optimal_allocation(flops: float, law: LossLaw = BESIROGLU) -> Allocation:
    """The model and the text that give the lowest loss for a compute budget C = 6 N D.

    N = G (C/6)^(beta / (alpha+beta)), D = (C/6)^(alpha / (alpha+beta)) / G, with G = (alpha A / (beta B))^(1 / (alpha+beta)).

    Args:
        flops: C.
        law: The fitted loss.

    Returns:
        N and D. Fitted to models of 70 M to 16 B parameters on 5 to 500 B tokens; the further from there, the less it says.

    Source: Hoffmann et al. 2022, "Training Compute-Optimal Large Language Models", section 3.3, equation 4 (approach 3); constants: `law`.
    """
    _positive(flops=flops)
    both = law.alpha + law.beta
    ratio = (law.alpha * law.a / (law.beta * law.b)) ** (1 / both)
    return Allocation(ratio * (flops / 6) ** (law.beta / both), (flops / 6) ** (law.alpha / both) / ratio)


def optimal_tokens(parameters: float, law: LossLaw | None = None) -> float:
    """Tokens at which a model is trained with as much compute as pays: more would better go to a larger model.

    Args:
        parameters: N.
        law: With one, the D for which its best N is the given one: alpha A / N^alpha = beta B / D^beta. Without, 20 N.

    Returns:
        D. For a model that will be used much, train on far more: inference is not in this sum.

    Source: Hoffmann et al. 2022, table 3 (20 N); equation 4, solved for D.
    """
    _positive(parameters=parameters)
    if law is None:
        return TOKENS_PER_PARAMETER * parameters
    return (law.beta * law.b / (law.alpha * law.a) * parameters**law.alpha) ** (1 / law.beta)


class NoiseScale(NamedTuple):
    """What two batch sizes tell about gradients.

    Args:
        squared_norm: |G|^2 of the true gradient, estimated; may be negative where the estimate is poor.
        variance: tr(Sigma), of the gradient of one example.
    """

    squared_norm: float
    variance: float

    @property
    def batch_size(self) -> float:
        """B_simple = tr(Sigma) / |G|^2, the critical batch size, in the unit of the batch sizes that were measured with."""
        return self.variance / self.squared_norm


def gradient_noise(small: float, small_squared_norm: float, large: float, large_squared_norm: float) -> NoiseScale:
    """The gradient noise scale, from the mean squared norms of gradients of two batch sizes.

    |G|^2 = (B |G_B|^2 - b |G_b|^2) / (B - b) and tr(Sigma) = (|G_b|^2 - |G_B|^2) / (1/b - 1/B). Average both over steps before dividing:
    the ratio of two noisy numbers is biased.

    Args:
        small: b, examples or tokens.
        small_squared_norm: |G_b|^2, mean over steps.
        large: B > b, in the same unit.
        large_squared_norm: |G_B|^2.

    Returns:
        Both estimates. The scale grows as the loss falls, so it holds at the point of the run where it was measured.

    Raises:
        ConfigError: If the batch sizes are not two.

    Source: McCandlish et al. 2018, "An Empirical Model of Large-Batch Training", section 2.2, equation 2.9, and appendix A.1.
    """
    _positive(small=small, large=large)
    if large <= small:
        raise ConfigError(
            f"{large} is not above {small}", where="gradient_noise", why="two batch sizes are compared", remedy="give the larger one second"
        )
    squared = (large * large_squared_norm - small * small_squared_norm) / (large - small)
    return NoiseScale(squared, (small_squared_norm - large_squared_norm) / (1 / small - 1 / large))


class BatchCost(NamedTuple):
    """What a batch size costs, as multiples of the fewest possible.

    Args:
        steps: Of the steps that batches without noise would take.
        examples: Of the examples that the smallest batches would take.
    """

    steps: float
    examples: float


def batch_cost(batch_size: float, noise_scale: float) -> BatchCost:
    """Steps and examples to a given loss: S / S_min = 1 + B_crit / B and E / E_min = 1 + B / B_crit; at B = B_crit both are 2.

    Args:
        batch_size: B.
        noise_scale: B_crit, in the same unit.

    Returns:
        Both. Holds where the learning rate is tuned for each batch size.

    Source: McCandlish et al. 2018, equation 2.11.
    """
    _positive(batch_size=batch_size, noise_scale=noise_scale)
    return BatchCost(1 + noise_scale / batch_size, 1 + batch_size / noise_scale)


class Hyperparameters(NamedTuple):
    """What a compute budget asks for.

    Args:
        lr: Peak learning rate of AdamW.
        batch_tokens: Tokens in a step.
    """

    lr: float
    batch_tokens: float


EMPIRICAL_RANGE = (1e17, 1e20)
"""FLOPs between which `empirical_hyperparameters` was fitted and checked."""


def empirical_hyperparameters(flops: float) -> Hyperparameters:
    """Learning rate and batch size that were near the best for a compute budget.

    lr = 0.3118 C^-0.1250 and B = 0.2920 C^0.3271 tokens.

    Args:
        flops: C, without those of embeddings and head.

    Returns:
        Both. Fitted for 1e17 to 2e19 FLOPs, and checked by its authors at 1e20, for a Llama-like decoder and their text; AdamW with betas
        (0.9, 0.95) and a decay of 0.1, gradients clipped to 1, weights drawn with a deviation of 0.006.

    Source: DeepSeek-AI 2024, "DeepSeek LLM: Scaling Open-Source Language Models with Longtermism", section 3.1, equation 1.
    """
    _positive(flops=flops)
    return Hyperparameters(0.3118 * flops**-0.1250, 0.2920 * flops**0.3271)


def scaled_lr(lr: float, batch_ratio: float, rule: Literal["linear", "sqrt"]) -> float:
    """The learning rate for another batch size.

    Args:
        lr: What was right before.
        batch_ratio: k, the new batch size over the old one.
        rule: `linear` (lr * k) for SGD with a warm-up, up to batches of about 8 k images on ImageNet in the source. `sqrt` (lr * sqrt(k))
            for Adam, while noise rules the gradient, which is below the critical batch size; there 1 - beta_1 and 1 - beta_2 are to be
            multiplied by k too, and epsilon divided by sqrt(k).

    Returns:
        The new one. Above the critical batch size neither holds: the best learning rate stops growing.

    Raises:
        ConfigError: If there is no such rule.

    Source: `linear`: Goyal et al. 2017, "Accurate, Large Minibatch SGD", section 2.1; `sqrt`: Malladi et al. 2022, "On the SDEs and Scaling
    Rules for Adaptive Gradient Algorithms", definition 5.2.
    """
    _positive(lr=lr, batch_ratio=batch_ratio)
    if rule not in ("linear", "sqrt"):
        raise ConfigError(f"there is no rule '{rule}'", where="scaled_lr", remedy="choose linear (SGD) or sqrt (Adam)")
    return lr * (batch_ratio if rule == "linear" else sqrt(batch_ratio))


class WidthTransfer(NamedTuple):
    """How settings move from a narrow model to a wide one under muP with Adam.

    Args:
        hidden_lr: Factor on the learning rate of hidden matrices (and of the head, with its multiplier).
        vector_lr: Factor on that of embeddings, biases and norms.
        hidden_std: Factor on the initial deviation of hidden matrices.
        logit_multiplier: Factor on what the head puts out.
        attention_scale: Factor on attention scores instead of 1/sqrt(K): 1/K, if heads get wider.
    """

    hidden_lr: float
    vector_lr: float
    hidden_std: float
    logit_multiplier: float
    attention_scale: str


def width_transfer(narrow: int, wide: int) -> WidthTransfer:
    """What to change so that the best learning rate of a narrow model is that of a wide one.

    With m = `wide` / `narrow`: learning rates of hidden matrices times 1/m, their initial deviation times 1/sqrt(m), logits times 1/m;
    embeddings, biases and norms stay.

    Args:
        narrow: Width the settings were found at.
        wide: Width to use them at.

    Returns:
        Factors. Shown for width at equal depth, steps, batch size and text; does not carry regularisation (dropout, decay) over. lmlab
        offers learning rates by name (`optimizer.lr_scale`), `init_std` and `logit_scale`; it does not set these by itself.

    Source: Yang et al. 2022, "Tensor Programs V: Tuning Large Neural Networks via Zero-Shot Hyperparameter Transfer", table 8.
    """
    _positive(narrow=narrow, wide=wide)
    m = wide / narrow
    return WidthTransfer(1 / m, 1.0, m**-0.5, 1 / m, "1/K")


def _positive(**amounts: float) -> None:
    for name, value in amounts.items():
        if not value > 0:
            raise ConfigError(f"{name} = {value!r} is not an amount", where=name, why="it is positive", remedy="set it above 0")
