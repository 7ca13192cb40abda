"""cross_entropy is the mean of -log softmax at the labels, exact for large logits, and takes integer labels only."""

import math

import numpy as np
import pytest

from engine import Value, cross_entropy
from tests.gradcheck import check_gradients
from tests.misuse import TYPE, VALUE, check, misuse

f32, f64 = np.float32, np.float64


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (4, 1), (3, 4), (5, 10)], ids=str)
@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_cross_entropy_gradients(shape, scale):
    rng = np.random.default_rng(15)
    x, y = scale * rng.standard_normal(shape), rng.integers(0, shape[1], shape[0])
    check_gradients(lambda v: cross_entropy(v, y), x)
    expected = -np.mean([math.log(math.exp(row[k]) / sum(map(math.exp, row))) for row, k in zip(x, y)])
    assert cross_entropy(x, y).data == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_cross_entropy_gradient_is_softmax_minus_onehot_over_n():
    x = Value(np.log(np.array([[1.0, 2.0, 5.0], [1.0, 1.0, 2.0]])))
    loss = cross_entropy(x, [2, 0])
    assert loss.data == pytest.approx((math.log(8 / 5) + math.log(4)) / 2, rel=1e-15)
    loss.backward_all()
    np.testing.assert_allclose(x.grad, [[1 / 16, 2 / 16, -3 / 16], [-3 / 8, 1 / 8, 2 / 8]], rtol=1e-14)


@pytest.mark.parametrize("dtype", [f32, f64])
def test_cross_entropy_is_exact_at_large_logits(dtype):
    x = Value(np.array([[1e4, -1e4], [-1e4, 1e4], [1e4, -1e4], [1e4, 1e4]], dtype))
    loss = cross_entropy(x, [1, 1, 0, 0])  # 20000, 0, 0 and log(2)
    assert loss.data == dtype((20000 + math.log(2)) / 4)
    loss.backward_all()
    expected = np.array([[0.25, -0.25], [0, 0], [0, 0], [-0.125, 0.125]], dtype)
    np.testing.assert_array_equal(x.grad, expected, strict=True)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", "uint64"])
def test_cross_entropy_takes_labels_of_every_integer_dtype(dtype):
    x = np.log(np.array([[1.0, 3.0], [1.0, 1.0]]))
    expected = (math.log(4 / 3) + math.log(2)) / 2
    assert cross_entropy(x, np.array([1, 0], dtype)).data == pytest.approx(expected, rel=1e-14)
    assert cross_entropy(x, (1, 0)).data == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("labels", [np.array([1, 0]), np.array([[1, 0], [7, 7]])[0], np.array([1, 0], np.uint8)])
def test_labels_may_be_changed_before_the_backward_pass(labels):
    x = Value(np.log(np.array([[1.0, 3.0], [1.0, 1.0]])))
    loss = cross_entropy(x, labels)
    labels[:] = [0, 1]
    loss.backward_all()
    np.testing.assert_allclose(x.grad, [[1 / 8, -1 / 8], [-1 / 4, 1 / 4]], rtol=1e-14)


def test_a_list_of_labels_may_be_changed():
    x, labels = Value(np.zeros((2, 2))), [1, 0]
    loss = cross_entropy(x, labels)
    labels[:] = [0, 1]
    loss.backward_all()
    np.testing.assert_array_equal(x.grad, [[0.25, -0.25], [-0.25, 0.25]])


def entropy(y, x=(2, 3)):
    return cross_entropy(np.ones(x), y)


@misuse(
    ("negative", lambda: entropy([0, -1]), VALUE, r"labels.*0 \.\.\. 2.*-1"),
    ("as_many_as_there_are_classes", lambda: entropy([0, 3]), VALUE, r"labels.*0 \.\.\. 2.*3"),
    ("far_too_large", lambda: entropy(np.array([0, 2**63], np.uint64)), VALUE, r"labels.*0 \.\.\. 2"),
    ("too_few", lambda: entropy([0]), VALUE, r"label.*2.*\(1,\)"),
    ("too_many", lambda: entropy([0, 1, 2]), VALUE, r"label.*2.*\(3,\)"),
    ("one_for_all", lambda: entropy(1), VALUE, r"label.*2.*\(\)"),
    ("one_hot", lambda: entropy(np.eye(3, dtype=int)[[0, 1]]), VALUE, r"label.*2.*\(2, 3\)"),
    ("a_column", lambda: entropy([[0], [1]]), VALUE, r"label.*2.*\(2, 1\)"),
    ("ragged", lambda: entropy([[0], [1, 2]]), VALUE, "inhomogeneous"),
    ("fractions", lambda: entropy([0.5, 1]), TYPE, "labels.*integers"),
    ("whole_floats", lambda: entropy(np.array([0.0, 1.0])), TYPE, "labels.*integers"),
    ("one_hot_floats", lambda: entropy(np.eye(3)[[0, 1]]), TYPE, "labels.*integers"),
    ("booleans", lambda: entropy([True, False]), TYPE, "labels.*integers"),
    ("strings", lambda: entropy(["0", "1"]), TYPE, "labels.*integers"),
    ("objects", lambda: entropy(np.array([0, 1], object)), TYPE, "labels.*integers"),
    ("none", lambda: entropy(None), TYPE, "labels.*integers.*NoneType"),
    ("a_value", lambda: entropy(Value([0, 1])), TYPE, "labels.*integers.*Value"),
    ("values", lambda: entropy([Value(0), Value(1)]), TYPE, "labels.*integers|Value"),
)
def test_cross_entropy_rejects_labels_that_are(call, error, message):
    check(call, error, message)


@pytest.mark.parametrize("mask", [False, [False, True], [True, True]], ids=str)
@pytest.mark.parametrize("dtype", [int, np.uint8, float])
def test_cross_entropy_rejects_masked_labels(dtype, mask):
    labels = np.ma.array([0, 1], dtype=dtype, mask=mask)
    check(lambda: entropy(labels), TYPE, "^labels must be integers.*MaskedArray")


def test_labels_that_x_has_no_column_for_are_told_with_the_columns():
    check(lambda: cross_entropy(np.zeros((2, 9)), [0, 9]), VALUE, "0 ... 8, the columns of x, got 0 ... 9")


def test_cross_entropy_rejects_masked_logits():
    for data in (np.ma.array([[1.0, 2.0]], mask=[[0, 1]]), np.ma.array([[1, 2]], mask=[[0, 1]])):
        check(lambda data=data: cross_entropy(data, [0]), TYPE, "^x must be real numbers.*MaskedArray")


@misuse(
    ("one_axis", lambda: entropy([0], (3,)), VALUE, r"x \(N, classes\).*\(3,\)"),
    ("three_axes", lambda: entropy([0, 1], (2, 3, 1)), VALUE, r"x \(N, classes\).*\(2, 3, 1\)"),
    ("a_number", lambda: entropy([0], ()), VALUE, r"x \(N, classes\).*\(\)"),
    ("an_empty_batch", lambda: entropy(np.zeros(0, int), (0, 3)), VALUE, r"empty.*\(0, 3\)"),
    ("without_classes", lambda: entropy([0, 0], (2, 0)), VALUE, r"empty.*\(2, 0\)"),
    ("none", lambda: cross_entropy(None, [0]), TYPE, "real numbers.*NoneType"),
    ("strings", lambda: cross_entropy([["a", "b"]], [0]), TYPE, "real numbers.*list"),
)
def test_cross_entropy_rejects_logits_that_are(call, error, message):
    check(call, error, message)


def test_cross_entropy_of_a_perfect_answer_is_no_negative_zero():
    assert f"{cross_entropy(Value(np.array([[100.0, 0.0]])), [0]):.4f}" == "0.0000"
