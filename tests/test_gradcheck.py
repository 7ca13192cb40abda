"""check_gradients accepts right gradients and rejects wrong ones, and the loops compute what is computed by hand."""

import math

import numpy as np
import pytest

from tests.gradcheck import apart, check_gradients, loop_conv2d, loop_max_pooling, operation, upstream

X = np.array([[0.5, -1.0, 2.0], [1.5, 0.25, -0.75]])
SQUARE = np.array([[0.5, -1.0], [1.5, 0.25]])
WRONG = {
    "50 times too large": lambda x, g: 50 * g * 3 * x**2,
    "0.01 % too large": lambda x, g: 1.0001 * g * 3 * x**2,
    "a factor missing": lambda x, g: g * x**2,
    "the wrong sign": lambda x, g: -g * 3 * x**2,
    "zero": lambda x, g: 0 * g,
    "the upstream gradient ignored": lambda x, g: 3 * x**2,
    "the upstream gradient passed on": lambda x, g: g,
    "the upstream gradient averaged": lambda x, g: np.mean(g) * 3 * x**2,
    "nan": lambda x, g: g * math.nan,
    "infinite": lambda x, g: g * math.inf,
    "one element wrong": lambda x, g: g * 3 * x**2 + 0.001 * (np.arange(6).reshape(2, 3) == 5),
    "reversed": lambda x, g: (g * 3 * x**2)[::-1],
}


def cube(v, gradient):
    return operation(v.data**3, (v,), lambda g: (gradient(v.data, g),))


def test_checker_accepts_a_right_gradient():
    check_gradients(lambda v: cube(v, lambda x, g: g * 3 * x**2), X)


@pytest.mark.parametrize("mistake", list(WRONG))
def test_checker_rejects_a_gradient_that_is(mistake):
    with pytest.raises(AssertionError, match=r"input 0 of shape \(2, 3\), element .* central differences give"):
        check_gradients(lambda v: cube(v, WRONG[mistake]), X)


def test_checker_rejects_a_transposed_gradient():
    with pytest.raises(AssertionError, match=r"input 0 of shape \(2, 2\)"):
        check_gradients(lambda v: cube(v, lambda x, g: (g * 3 * x**2).T), SQUARE)


def test_checker_rejects_a_missing_gradient():
    with pytest.raises(AssertionError, match="input 1"):
        check_gradients(lambda a, b: operation(a.data * b.data, (a, b), lambda g: (g * b.data,)), X, X + 3)


def test_checker_rejects_swapped_gradients():
    with pytest.raises(AssertionError, match="input 0"):
        check_gradients(lambda a, b: operation(a.data * b.data, (a, b), lambda g: (g * a.data, g * b.data)), X, X + 3)


def test_checker_rejects_a_wrong_gradient_of_a_python_number():
    check_gradients(lambda v: cube(v, lambda x, g: g * 3 * x**2), 1.5)
    with pytest.raises(AssertionError, match="input 0"):
        check_gradients(lambda v: cube(v, lambda x, g: g * 2 * x**2), 1.5)


def test_checker_rejects_a_function_that_modifies_its_input():
    def f(v):
        v.data *= 2
        return v * 1.0

    with pytest.raises(AssertionError, match="input 0 was modified"):
        check_gradients(f, X)


def test_checker_does_not_modify_its_inputs():
    x = X.copy()
    check_gradients(lambda v: v * v, x)
    np.testing.assert_array_equal(x, X)


# ---- What the tests share -------------------------------------------------------------------------------------------


def test_loop_conv2d_by_hand():
    x, w = np.arange(9.0).reshape(1, 1, 3, 3), np.array([[[[1.0, 2.0], [3.0, 4.0]]]])
    out, dx, dw, db = loop_conv2d(x, w, np.array([100.0]), 1, 0, np.ones((1, 1, 2, 2)))
    np.testing.assert_array_equal(out, [[[[127, 137], [157, 167]]]])
    np.testing.assert_array_equal(dw, [[[[8, 12], [20, 24]]]])
    np.testing.assert_array_equal(dx, [[[[1, 3, 2], [4, 10, 6], [3, 7, 4]]]])
    np.testing.assert_array_equal(db, [4])
    out, dx, _, _ = loop_conv2d(x, w, None, 2, 1, np.ones((1, 1, 2, 2)))
    np.testing.assert_array_equal(out, [[[[0 * 4, 1 * 3 + 2 * 4], [3 * 2 + 6 * 4, 4 + 5 * 2 + 7 * 3 + 8 * 4]]]])
    np.testing.assert_array_equal(dx, [[[[4, 3, 4], [2, 1, 2], [4, 3, 4]]]])


def test_loop_max_pooling_by_hand():
    x = np.array([[[[1.0, 7, 0, 3], [7, 7, 3, 2], [9, 9, 9, 9]]]])
    out, dx = loop_max_pooling(x, 2, np.array([[[[10.0, 20.0]]]]))
    np.testing.assert_array_equal(out, [[[[7, 3]]]])
    np.testing.assert_array_equal(dx, [[[[0, 10, 0, 20], [0, 0, 0, 0], [0, 0, 0, 0]]]])


def test_numbers_apart_are_far_from_each_other_and_from_zero():
    x = np.sort(np.append(apart(np.random.default_rng(0), (4, 5)).reshape(-1), 0))
    assert np.diff(x).min() >= 0.005 - 1e-12
    assert (x < 0).any() and (x > 0).any()
    assert upstream((3, 4)).shape == (3, 4)
