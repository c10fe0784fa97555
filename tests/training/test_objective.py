"""The training objective: targets, weights, and what a sample's ordinal fixes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastddpm import NoiseSchedule
from fastddpm.training.objective import Noiser, Objective
from fastddpm_kernels.noise.reference import normal

SCHEDULE = NoiseSchedule.linear(1000)


def noised(objective=None, ordinals=range(64), seed=7, **options):
    noiser = Noiser(SCHEDULE, objective or Objective(), seed=seed, **options)
    ordinals = torch.tensor(list(ordinals))
    x_0 = torch.linspace(-1, 1, len(ordinals) * 12).reshape(-1, 3, 2, 2)
    return noiser, x_0, noiser(x_0, ordinals % 10, ordinals)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_targets_against_their_definitions(prediction_type):
    _, x_0, batch = noised(Objective(prediction_type=prediction_type))
    for i in range(64):
        eps = normal(np.array([7]), i, (3, 2, 2), stream=1)[0].astype(np.float64)
        abar = SCHEDULE.alphas_cumprod[batch.t[i]]
        image = x_0[i].double().numpy()
        expected = {
            "epsilon": eps,
            "sample": image,
            "v_prediction": math.sqrt(abar) * eps - math.sqrt(1 - abar) * image,
        }[prediction_type]
        assert abs(batch.target[i].numpy() - expected).max() < 5e-6
        x_t = math.sqrt(abar) * image + math.sqrt(1 - abar) * eps
        assert abs(batch.x_t[i].numpy() - x_t).max() < 5e-6


def test_a_sample_depends_on_its_ordinal_and_the_seed_alone():
    _, _, all_at_once = noised(ordinals=range(64), class_dropout=0.5, null_label=10)
    for start in (0, 32):
        _, _, half = noised(ordinals=range(start, start + 32), class_dropout=0.5, null_label=10)
        assert torch.equal(half.t, all_at_once.t[start : start + 32])
        assert torch.equal(half.class_labels, all_at_once.class_labels[start : start + 32])
        assert torch.equal(half.target, all_at_once.target[start : start + 32])
    _, _, other = noised(seed=8)
    assert (other.t == all_at_once.t).float().mean() < 0.1
    # Beyond 32 bits the ordinal goes on in the counter's last word.
    _, _, later = noised(ordinals=range(2**32, 2**32 + 64))
    assert (later.t == all_at_once.t).float().mean() < 0.1


def test_timesteps_are_even_and_dropped_classes_independent_of_them():
    noiser = Noiser(SCHEDULE, Objective(), seed=3, class_dropout=0.25, null_label=10)
    count = 200_000
    x_0 = torch.zeros(count, 1, 1, 1)
    batch = noiser(x_0, torch.zeros(count, dtype=torch.int64), torch.arange(count))
    assert (batch.t.min(), batch.t.max()) == (0, 999)
    # 200 in each of 1000 bins: chi-square has mean 999 and standard deviation 45.
    counts = torch.bincount(batch.t, minlength=1000).double()
    assert ((counts - 200) ** 2 / 200).sum().item() == pytest.approx(999, abs=5 * 45)
    dropped = (batch.class_labels == 10).double()
    assert dropped.mean().item() == pytest.approx(0.25, abs=5 * math.sqrt(0.1875 / count))
    correlation = torch.corrcoef(torch.stack((dropped, batch.t.double())))[0, 1]
    assert abs(correlation) < 5 / math.sqrt(count)


def test_losses_per_sample():
    prediction, target = torch.tensor([[0.0, 3.0], [0.5, 0.0]]), torch.zeros(2, 2)
    expected = {"l2": [4.5, 0.125], "l1": [1.5, 0.25], "huber": [1.25, 0.0625]}
    for loss, values in expected.items():
        assert Objective(loss=loss).distance(prediction, target).tolist() == pytest.approx(values)


@pytest.mark.parametrize("weighting", ["min_snr", "p2"])
def test_weights_mean_the_same_for_every_prediction_type(weighting):
    """An error of x_0 costs the same whatever the network predicts."""
    weights = {
        kind: Objective(prediction_type=kind, weighting=weighting).weights(SCHEDULE).double()
        for kind in ("epsilon", "sample", "v_prediction")
    }
    for t in (0, 300, 999):
        abar = SCHEDULE.alphas_cumprod[t]
        # e is the error of x_0; eps = (x_t - alpha x_0)/sigma and v = (alpha x_t - x_0)/sigma.
        squared = {"sample": 1.0, "epsilon": abar / (1 - abar), "v_prediction": 1 / (1 - abar)}
        costs = [weights[kind][t].item() * squared[kind] for kind in squared]
        assert costs == pytest.approx([costs[0]] * 3, rel=1e-5)
        snr = abar / (1 - abar)
        expected = min(snr, 5.0) if weighting == "min_snr" else snr / (1 + snr)
        assert costs[0] == pytest.approx(expected, rel=1e-5)


def test_weights_are_finite_at_zero_terminal_snr():
    schedule = NoiseSchedule.linear().rescaled_zero_terminal_snr()
    for kind in ("epsilon", "sample", "v_prediction"):
        for weighting in ("none", "min_snr", "p2"):
            assert Objective(prediction_type=kind, weighting=weighting).weights(schedule).isfinite().all()


def test_the_loss_is_the_weighted_mean():
    noiser, _, batch = noised(Objective(weighting="p2"))
    prediction = torch.zeros_like(batch.target)
    per_sample = [
        float(SCHEDULE.snr[t] + 1) ** -1 * float((target.double() ** 2).mean())
        for t, target in zip(batch.t, batch.target, strict=True)
    ]
    assert noiser.loss(prediction, batch).item() == pytest.approx(np.mean(per_sample), rel=1e-5)


@pytest.mark.parametrize("field", ["prediction_type", "loss", "weighting"])
def test_unknown_choices_are_refused(field):
    with pytest.raises(ValueError, match=f"{field}: .* given, one of"):
        Objective(**{field: "other"})
