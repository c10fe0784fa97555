"""Noise spec v1 on the CPU: the NumPy reference and its torch twin."""

import math

import float64_reference
import numpy as np
import pytest
import torch
from scipy import stats

from fastddpm_kernels import normal
from fastddpm_kernels.noise import reference, words
from fastddpm_kernels.noise.torch_twin import _uniform

SIZES = (1, 2, 5, 33, 784, 3072)
SEEDS = (0, 2**32 + 5, 2**63 - 1)


def torch_words(seeds, step, n, **options):
    lanes = torch.stack(words(torch.tensor(seeds), step, n, **options), dim=1)
    return lanes.numpy()


def test_known_answer():
    """Random123's own vector: key 0, counter 0."""
    answer = (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    assert tuple(int(word) for word in reference.philox((0, 0), (0, 0, 0, 0))) == answer
    assert tuple(torch_words([0], 0, 1)[0, :, 0]) == answer
    assert float64_reference.philox_words(0, 0, 0, 0, 0) == answer


def test_known_answer_with_every_counter_and_key_word():
    """Random123's vector from the digits of pi."""
    counter, key = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)
    answer = (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)
    assert tuple(int(word) for word in reference.philox(key, counter)) == answer


@pytest.mark.parametrize("n", SIZES)
def test_words_agree_bit_for_bit(n):
    options = {"stream": 4, "repeat": 7}
    from_numpy = reference.words(SEEDS, 3, n, **options)
    np.testing.assert_array_equal(torch_words(SEEDS, 3, n, **options), from_numpy)
    for i, seed in enumerate(SEEDS):
        for block in (0, from_numpy.shape[2] - 1):
            assert tuple(from_numpy[i, :, block]) == float64_reference.philox_words(seed, block, 3, 4, 7)


@pytest.mark.parametrize("n", SIZES)
def test_normals_agree_with_float64(n):
    ours = normal(torch.tensor(SEEDS), 3, (n,), stream=1, repeat=2).numpy()
    in_numpy = reference.normal(SEEDS, 3, (n,), stream=1, repeat=2)
    restated = np.stack([float64_reference.sample_noise(seed, 3, (n,), 1, 2) for seed in SEEDS])
    np.testing.assert_allclose(in_numpy, restated, rtol=0, atol=1e-13)
    np.testing.assert_allclose(ours, restated, rtol=0, atol=2e-6)


def test_each_counter_word_has_its_own_place():
    """Changing one word changes the noise, and no two words are interchangeable."""
    variants = [
        {"step": 1, "stream": 2, "repeat": 3},
        {"step": 2, "stream": 1, "repeat": 3},
        {"step": 3, "stream": 2, "repeat": 1},
        {"step": 1, "stream": 3, "repeat": 2},
    ]
    seen = {reference.words([9], variant.pop("step"), 64, **variant).tobytes() for variant in variants}
    assert len(seen) == 4


@pytest.mark.parametrize("repeat", [2**32 + 1, torch.tensor(2**32 + 1)])
def test_step_and_repeat_are_taken_modulo_2_32(repeat):
    seeds = torch.tensor(SEEDS)
    ours = normal(seeds, 2**32 + 3, (5,), repeat=repeat)
    torch.testing.assert_close(ours, normal(seeds, 3, (5,), repeat=1), rtol=0, atol=0)


def test_step_may_be_a_device_counter_or_one_per_sample():
    seeds = torch.tensor(SEEDS)
    fixed = normal(seeds, 5, (3, 4, 4), repeat=2)
    for step, repeat in ((torch.tensor(5), torch.tensor(2)), (torch.tensor([5]), torch.tensor([2]))):
        assert torch.equal(normal(seeds, step, (3, 4, 4), repeat=repeat), fixed)
    per_sample = normal(seeds, torch.tensor([4, 5, 6]), (3, 4, 4), repeat=torch.tensor([2, 2, 0]))
    assert torch.equal(per_sample[1], fixed[1])
    assert torch.equal(per_sample[2], normal(seeds[2:], 6, (3, 4, 4))[0])
    in_numpy = reference.normal(SEEDS, np.array([4, 5, 6]), (3, 4, 4), repeat=np.array([2, 2, 0]))
    np.testing.assert_allclose(per_sample.numpy(), in_numpy, rtol=0, atol=2e-6)


def test_a_sample_depends_on_its_seed_alone():
    seeds = torch.tensor([7, 2**40, 7, 0, 2**63 - 1])
    batch = normal(seeds, 2, (3, 8, 8))
    for i, seed in enumerate(seeds):
        assert torch.equal(batch[i], normal(seed[None], 2, (3, 8, 8))[0])
    assert torch.equal(batch[0], batch[2])


def test_elements_are_in_row_major_order_whatever_the_shape():
    seeds = torch.tensor([3])
    flat = normal(seeds, 1, (48,))
    assert torch.equal(normal(seeds, 1, (3, 4, 4)), flat.reshape(1, 3, 4, 4))


def test_moments_and_distribution():
    z = normal(torch.arange(64), 1, (1, 64, 64)).double().flatten().numpy()
    standard_error = 1 / math.sqrt(z.size)
    assert abs(z.mean()) < 4 * standard_error
    assert abs(z.var() - 1) < 4 * math.sqrt(2) * standard_error
    assert abs(stats.skew(z)) < 4 * math.sqrt(6) * standard_error
    assert abs(stats.kurtosis(z)) < 4 * math.sqrt(24) * standard_error
    assert stats.kstest(z, "norm").pvalue > 0.01


@pytest.mark.parametrize("lane", range(4))
def test_each_lane_is_normal(lane):
    z = normal(torch.arange(16), 1, (4, 32, 32)).reshape(16, 4, -1)[:, lane].flatten()
    assert stats.kstest(z.numpy(), "norm").pvalue > 0.01


def correlation(a, b):
    """Of two equally long sets, in standard errors."""
    return float(np.corrcoef(a.flatten(), b.flatten())[0, 1]) * math.sqrt(a.numel())


def test_neighbours_are_uncorrelated():
    shape, seeds = (4, 32, 32), torch.arange(1000, 1016)
    z = normal(seeds, 1, shape)
    lanes = z.reshape(16, 4, -1)
    pairs = {
        "seeds": (z[:-1], z[1:]),
        "steps": (z, normal(seeds, 2, shape)),
        "streams": (z, normal(seeds, 1, shape, stream=1)),
        "repeats": (z, normal(seeds, 1, shape, repeat=1)),
        "blocks": (lanes[:, :, :-1], lanes[:, :, 1:]),
        **{f"lanes {i} and {j}": (lanes[:, i], lanes[:, j]) for i in range(4) for j in range(i)},
    }
    for name, (a, b) in pairs.items():
        assert abs(correlation(a, b)) < 4, name
        assert abs(correlation(a**2, b**2)) < 4, f"squares of {name}"


def test_no_words_repeat():
    every = reference.words(np.arange(32), 1, 4096)
    # 131,072 words of 32 bits: the birthday bound expects 2.0 pairs of equals.
    assert every.size - np.unique(every).size < 10


def test_uniforms_stay_strictly_inside_0_and_1():
    """The largest radius and the smallest are finite and positive."""
    ends = _uniform(torch.tensor([0, 2**32 - 1]))
    assert ends.tolist() == [2.0**-24, 1 - 2.0**-24]


def test_compiles_into_one_graph():
    def draw(seeds, counter):
        return normal(seeds, counter[:1] + 1, (3, 5, 7), repeat=counter[1:])

    seeds, counter = torch.tensor(SEEDS), torch.tensor([4, 2])
    compiled = torch.compile(draw, fullgraph=True)(seeds, counter)
    torch.testing.assert_close(compiled, draw(seeds, counter), rtol=0, atol=2e-6)
