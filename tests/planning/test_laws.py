"""Rules of thumb, against the numbers their papers print and against brute force."""

from __future__ import annotations

import numpy as np
import pytest

from lmlab.errors import ConfigError
from lmlab.planning import laws

CHINCHILLA = 5.76e23  # FLOPs of Gopher and of Chinchilla (Hoffmann et al. 2022, section 4)
ROUNDED = 0.1  # papers print two digits, and count FLOPs a little differently


@pytest.mark.parametrize(("parameters", "tokens"), [(400e6, 8.0e9), (1e9, 20.2e9), (10e9, 205.1e9), (67e9, 1.5e12)])
def test_twenty_tokens_a_parameter_is_table_3_of_hoffmann(parameters: float, tokens: float) -> None:
    assert laws.optimal_tokens(parameters) == pytest.approx(tokens, rel=0.12)


def test_six_n_d_is_chinchillas_compute() -> None:
    assert laws.training_flops(70e9, 1.4e12) == pytest.approx(CHINCHILLA, rel=0.03)


@pytest.mark.parametrize("law", [laws.HOFFMANN, laws.BESIROGLU])
@pytest.mark.parametrize("flops", [1e18, CHINCHILLA])
def test_the_best_allocation_is_the_least_loss_on_a_grid(law: laws.LossLaw, flops: float) -> None:
    sizes = np.geomspace(1e6, 1e13, 200_001)
    losses = law.entropy + law.a / sizes**law.alpha + law.b / (flops / 6 / sizes) ** law.beta
    found = laws.optimal_allocation(flops, law)
    assert found.parameters == pytest.approx(sizes[losses.argmin()], rel=1e-3)
    assert laws.training_flops(*found) == pytest.approx(flops)
    assert law.loss(*found) == pytest.approx(losses.min(), rel=1e-9)


def test_refitted_constants_agree_with_chinchilla_and_the_printed_ones_do_not() -> None:
    """Besiroglu et al. 2024, section 4: about 20 tokens a parameter at Chinchilla's compute, where the printed law asks for far more."""
    new, old = laws.optimal_allocation(CHINCHILLA), laws.optimal_allocation(CHINCHILLA, laws.HOFFMANN)
    assert 15 < new.tokens / new.parameters < 25
    assert old.tokens / old.parameters > 60
    # Hoffmann et al. 2022, table 2: exponents 0.46 and 0.54 for approach 3
    assert laws.HOFFMANN.beta / (laws.HOFFMANN.alpha + laws.HOFFMANN.beta) == pytest.approx(0.46, abs=0.01)


@pytest.mark.parametrize("flops", [1e19, 1e22])
def test_tokens_of_a_size_are_the_other_side_of_the_allocation(flops: float) -> None:
    parameters, tokens = laws.optimal_allocation(flops)
    assert laws.optimal_tokens(parameters, laws.BESIROGLU) == pytest.approx(tokens, rel=1e-6)


@pytest.mark.parametrize(("parameters", "lr", "batch"), [(6.9e9, 4.2e-4, 2304 * 4096), (67e9, 3.2e-4, 4608 * 4096)])
def test_empirical_hyperparameters_are_those_of_deepseeks_models(parameters: float, lr: float, batch: int) -> None:
    """DeepSeek LLM, table 2: learning rates and batches of the 7 B and 67 B models, both trained on 2 T tokens."""
    found = laws.empirical_hyperparameters(laws.training_flops(parameters, 2e12))
    assert found.lr == pytest.approx(lr, rel=ROUNDED)
    assert found.batch_tokens == pytest.approx(batch, rel=ROUNDED)


def test_the_noise_scale_is_found_in_gradients_drawn_with_it() -> None:
    generator = np.random.default_rng(0)
    mean, deviation = np.array([0.3, -0.2, 0.1]), np.array([1.0, 2.0, 0.5])

    def squared_norm(size: int) -> float:
        drawn = mean + deviation * generator.standard_normal((100_000, 3)) / size**0.5
        return float((drawn**2).sum(1).mean())

    found = laws.gradient_noise(4, squared_norm(4), 64, squared_norm(64))
    assert found.squared_norm == pytest.approx((mean**2).sum(), rel=0.05)
    assert found.variance == pytest.approx((deviation**2).sum(), rel=0.02)
    assert found.batch_size == pytest.approx((deviation**2).sum() / (mean**2).sum(), rel=0.06)


def test_at_the_critical_batch_size_both_costs_are_twice_the_least() -> None:
    assert laws.batch_cost(1000, 1000) == (2, 2)
    small, large = laws.batch_cost(1, 1000), laws.batch_cost(1e6, 1000)
    assert small.examples == pytest.approx(1, abs=2e-3) and large.steps == pytest.approx(1, abs=2e-3)
    assert (small.steps - 1) * (small.examples - 1) == pytest.approx(1)  # McCandlish et al. 2018, equation 2.11


def test_learning_rates_scale_as_their_sources_say() -> None:
    assert laws.scaled_lr(0.1, 8192 / 256, "linear") == pytest.approx(3.2)  # Goyal et al. 2017, section 5.1
    assert laws.scaled_lr(1e-3, 4, "sqrt") == pytest.approx(2e-3)
    with pytest.raises(ConfigError, match="no rule 'cubic'"):
        laws.scaled_lr(0.1, 2, "cubic")  # type: ignore[arg-type]


def test_width_changes_what_mup_says() -> None:
    assert laws.width_transfer(256, 1024)[:4] == (0.25, 1.0, 0.5, 0.25)


def test_what_is_not_positive_is_refused() -> None:
    with pytest.raises(ConfigError, match="flops = 0"):
        laws.optimal_allocation(0)
    with pytest.raises(ConfigError, match="not above"):
        laws.gradient_noise(8, 1.0, 8, 1.0)
