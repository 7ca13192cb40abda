"""check_gradients accepts right gradients and rejects wrong ones, and the naive loops compute what a hand computes."""

import math

import numpy as np
import pytest

from engine import Value
from tests.gradcheck import check_gradients, loop_conv2d, loop_max_pooling

X = np.array([[0.5, -1.0, 2.0], [1.5, 0.25, -0.75]])
WRONG = {
    "50 times too large": lambda x, g: 50 * g * 3 * x**2,
    "0.01 % too large": lambda x, g: 1.0001 * g * 3 * x**2,
    "of the wrong sign": lambda x, g: -g * 3 * x**2,
    "zero": lambda x, g: 0 * g,
    "without the gradient of the result": lambda x, g: 3 * x**2,
    "averaged": lambda x, g: np.mean(g) * 3 * x**2,
    "nan": lambda x, g: g * math.nan,
    "wrong in one element": lambda x, g: g * 3 * x**2 + 0.001 * (np.arange(6).reshape(2, 3) == 5),
    "in another order": lambda x, g: (g * 3 * x**2)[::-1],
}


def cube(v, gradient):
    x = v.data
    return Value(x**3, v, "cube", lambda grad: gradient(x, grad))


@pytest.mark.parametrize("mistake", list(WRONG))
def test_the_checker_rejects_a_gradient_that_is(mistake):
    check_gradients(lambda v: cube(v, lambda x, g: g * 3 * x**2), X)
    with pytest.raises(AssertionError, match=r"input 0 of shape \(2, 3\), element .* central differences give"):
        check_gradients(lambda v: cube(v, WRONG[mistake]), X)


def test_the_checker_rejects_swapped_gradients_and_wrong_ones_of_numbers():
    with pytest.raises(AssertionError, match="input 0"):
        check_gradients(lambda a, b: Value(a.data * b.data, (a, b), "*", lambda g: (g * a.data, g * b.data)), X, X + 3)
    check_gradients(lambda v: cube(v, lambda x, g: g * 3 * x**2), 1.5)
    with pytest.raises(AssertionError, match="input 0"):
        check_gradients(lambda v: cube(v, lambda x, g: g * 2 * x**2), 1.5)


def test_the_loops_by_hand():
    x, w = np.arange(9.0).reshape(1, 1, 3, 3), np.array([[[[1.0, 2.0], [3.0, 4.0]]]])
    out, dx, dw, db = loop_conv2d(x, w, np.array([100.0]), 1, 0, np.ones((1, 1, 2, 2)))
    np.testing.assert_array_equal(out, [[[[127, 137], [157, 167]]]])
    np.testing.assert_array_equal(dw, [[[[8, 12], [20, 24]]]])
    np.testing.assert_array_equal(dx, [[[[1, 3, 2], [4, 10, 6], [3, 7, 4]]]])
    np.testing.assert_array_equal(db, [4])
    out, dx, _, _ = loop_conv2d(x, w, None, 2, 1, np.ones((1, 1, 2, 2)))
    np.testing.assert_array_equal(out, [[[[0 * 4, 1 * 3 + 2 * 4], [3 * 2 + 6 * 4, 4 + 5 * 2 + 7 * 3 + 8 * 4]]]])
    np.testing.assert_array_equal(dx, [[[[4, 3, 4], [2, 1, 2], [4, 3, 4]]]])
    x = np.array([[[[1.0, 7, 0, 3], [7, 7, 3, 2], [9, 9, 9, 9]]]])
    out, dx = loop_max_pooling(x, 2, np.array([[[[10.0, 20.0]]]]))
    np.testing.assert_array_equal(out, [[[[7, 3]]]])
    np.testing.assert_array_equal(dx, [[[[0, 10, 0, 20], [0, 0, 0, 0], [0, 0, 0, 0]]]])
