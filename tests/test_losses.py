"""The focal loss, by hand."""

import math

import pytest
import torch

from inctrl_lite.losses import focal_loss


@pytest.mark.parametrize(
    ("score", "label", "expected"), [(0.0, 0, 0.173), (1.0, 0, 0.702), (0.0, 1, 0.173), (1.0, 1, 0.023)]
)
def test_the_double_sigmoid_leaves_little_room(score, label, expected):
    loss = focal_loss(torch.tensor([score]), torch.tensor([float(label)]))
    assert loss.item() == pytest.approx(expected, abs=5e-4)


def test_on_probabilities_it_is_the_textbook_formula():
    loss = focal_loss(torch.tensor([0.9, 0.3]), torch.tensor([1.0, 0.0]), gamma=3.0, double_sigmoid=False)
    expected = (0.1**3 * -math.log(0.9) + 0.3**3 * -math.log(0.7)) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_gamma_zero_is_cross_entropy():
    scores, labels = torch.tensor([0.2, 0.7]), torch.tensor([0.0, 1.0])
    plain = torch.nn.functional.binary_cross_entropy(scores, labels)
    torch.testing.assert_close(focal_loss(scores, labels, gamma=0.0, double_sigmoid=False), plain)


def test_a_certain_mistake_stays_finite():
    scores = torch.tensor([0.0, 1.0], requires_grad=True)
    loss = focal_loss(scores, torch.tensor([1.0, 0.0]), double_sigmoid=False)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(scores.grad).all()
