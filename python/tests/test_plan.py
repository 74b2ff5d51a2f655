"""The planner of the lane sort."""

import math

import numpy as np
import pytest
import riffle


def exact(k, lanes):
    """P(depth <= m), m = 0..k, by counting with integers: words of length k over `lanes` letters, none more than m times."""
    result = []
    for m in range(k + 1):
        words = [1] + [0] * k  # words[j]: of length j over the letters so far
        for _ in range(lanes):
            words = [
                sum(words[j - i] * math.comb(j, i) for i in range(min(m, j) + 1)) for j in range(k + 1)
            ]
        result.append(words[k] / lanes**k)
    return np.array(result)


@pytest.mark.parametrize("k,lanes", [(1, 1), (5, 1), (5, 3), (12, 8), (20, 2)])
def test_depth_probabilities_are_exact(k, lanes):
    np.testing.assert_allclose(riffle.depth_probabilities(k, lanes), np.diff(exact(k, lanes)), rtol=1e-12, atol=1e-300)


def test_depth_probabilities_known():
    p = riffle.depth_probabilities(64)
    assert p.dtype == np.float64 and p.shape == (64,)
    np.testing.assert_allclose(p[1:4], [0.13437, 0.67366, 0.17274], atol=5e-6)
    assert abs(riffle.depth_probabilities(1024).sum() - 1) < 1e-12


def test_plan():
    plan = riffle.plan_top_k(201088, 64, rows=32)
    assert plan["algorithm"] in ("bucket_maxima", "lane_sort")
    assert plan["buckets"] == math.ceil(201088 / plan["bucket_size"])
    assert all(a < b for a, b in zip(plan["depth_schedule"], plan["depth_schedule"][1:]))
    assert plan["batch_done"][-1] == 1
    p = riffle.depth_probabilities(64)
    np.testing.assert_allclose(plan["expected_depth"], p @ np.arange(1, 65), rtol=1e-9)
    below = np.concatenate([[0], np.cumsum(p)]) ** 32
    np.testing.assert_allclose(plan["expected_batch_depth"], np.diff(below) @ np.arange(1, 65), rtol=1e-9)


def test_plan_of_a_schedule():
    plan = riffle.plan_top_k(201088, 64, rows=3, lanes=256, depth_schedule=(2, 4))
    assert plan["depth_schedule"] == [2, 4]
    below = np.cumsum(riffle.depth_probabilities(64, 256))
    np.testing.assert_allclose(plan["batch_done"], below[[0, 2]] ** 3, rtol=1e-9)  # P(depth < m), m = 2 and 4
