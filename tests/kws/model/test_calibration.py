"""Calibration: the temperature and the calibration error."""

import pytest
import torch

from kws.model.calibration import expected_calibration_error, fit_temperature


@pytest.mark.parametrize("temperature", [0.6, 1.0, 2.5])
def test_temperature_of_scores_that_are_too_sharp_or_too_flat_is_found(temperature: float) -> None:
    torch.manual_seed(0)
    honest = 2 * torch.randn(20_000, 6)
    labels = torch.distributions.Categorical(logits=honest).sample()
    assert fit_temperature(honest * temperature, labels) == pytest.approx(temperature, rel=0.03)


def test_temperature_makes_the_labels_most_likely() -> None:
    torch.manual_seed(1)
    scores, labels = 5 * torch.randn(300, 4), torch.randint(4, (300,))
    scores[torch.arange(200), labels[:200]] += 4

    def loss(temperature: float) -> float:
        return float(torch.nn.functional.cross_entropy(scores / temperature, labels))

    found = fit_temperature(scores, labels)
    assert loss(found) <= min(loss(found * factor) for factor in (0.5, 0.95, 1.05, 2))


def test_calibration_error_equals_the_one_computed_by_hand() -> None:
    # 0.9 and 0.92 lie in one bin of 10, one of the two is right: |1 - 1.82| = 0.82. 0.6 is alone and right: 0.4.
    confidence, correct = torch.tensor([0.9, 0.92, 0.6]), torch.tensor([True, False, True])
    assert expected_calibration_error(confidence, correct, num_bins=10) == pytest.approx((0.82 + 0.4) / 3, abs=1e-6)


def test_calibration_error_of_a_sure_model_is_0_if_it_is_right_and_1_if_it_is_wrong() -> None:
    sure = torch.ones(2)
    assert expected_calibration_error(sure, sure > 0) == 0
    assert expected_calibration_error(sure, sure < 0) == 1


def test_calibration_error_of_honest_probabilities_is_small() -> None:
    torch.manual_seed(0)
    probabilities = torch.randn(20_000, 5).softmax(-1)
    labels = torch.distributions.Categorical(probabilities).sample()
    confidence, predicted = probabilities.max(-1)
    assert expected_calibration_error(confidence, predicted == labels) < 0.015
