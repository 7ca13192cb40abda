"""The tests over the table of operations, and what each operation does at kinks, at its limits and with wrong input."""

import math
import operator
import re

import numpy as np
import pytest

from engine import Value, cross_entropy, no_grad, stack, topological_order
from tests.gradcheck import check_gradients, upstream
from tests.operations import EPS, EVERY_OPERATION, OPERATIONS, case, examples, left_to_the_collector, naming

f32, f64 = np.float32, np.float64

# ---- Over the table -------------------------------------------------------------------------------------------------


def weighted(out):
    """The sum of the result, each element times a random number."""
    return (out * upstream(out.shape).astype(out.dtype)).sum()


def result_and_gradients(c, arrays):
    """What an operation makes of arrays, and the gradients that the arrays get."""
    operands = [Value(a) for a in arrays]
    out = c(*operands)
    weighted(out).backward_all()
    return [out.data, *(v.grad for v in operands)]


@EVERY_OPERATION
def test_results_and_gradients_are_those_of_the_references_in_any_memory_layout(name):
    for c in examples(name) + [case(name, seed=seed) for seed in range(30)]:
        with naming(c):
            expected = c.expected()
            computed = result_and_gradients(c, c.arrays)
            assert np.shape(computed[0]) == expected.shape
            np.testing.assert_allclose(computed[0], expected, rtol=c.row.tolerance, atol=c.row.tolerance)
            check_gradients(c, *c.arrays, eps=EPS)
            plain = [np.array(a, f64, order="C") for a in c.arrays]
            for a, b in zip(computed, result_and_gradients(c, plain), strict=True):
                # BLAS may add up in another order where memory is laid out in another way
                np.testing.assert_allclose(a, b, rtol=1e-14, atol=1e-15 * np.abs(b).max(initial=1))


@EVERY_OPERATION
def test_the_dtype_of_results_is_numpys_and_each_gradient_has_that_of_its_operand(name):
    for c in examples(name):
        n, arrays = len(c.arrays), [a.astype(f32) for a in c.arrays]
        double = result_and_gradients(c, [a.astype(f64) for a in arrays])
        for dtypes in {(f32,) * n, *((f64,) * i + (f32,) + (f64,) * (n - i - 1) for i in range(n))}:
            with naming(c):
                computed = result_and_gradients(c, [a.astype(d) for a, d in zip(arrays, dtypes)])
                expected = [c.row.dtype or np.result_type(*dtypes), *dtypes]
                assert [np.result_type(a) for a in computed] == expected
                for a, b in zip(computed, double, strict=True):
                    np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6 * max(1.0, np.abs(b).max(initial=0)))


@pytest.mark.parametrize("name", [name for name, row in OPERATIONS.items() if row.numbers])
def test_numbers_stay_python_floats(name):
    on_numbers = [c for c in examples(name) if all(a.shape == () for a in c.arrays)]
    assert on_numbers
    for c in on_numbers:
        with naming(c):
            check_gradients(c, *map(float, c.arrays), eps=EPS)
            operands = [Value(float(a)) for a in c.arrays]
            out = c(*operands)
            assert out.data == pytest.approx(float(c.expected()), rel=1e-15)
            assert [v.grad for v in operands] == [0.0] * len(operands)
            out.backward_all()
            assert all(type(x) is float for v in [out, *operands] for x in (v.data, v.grad))


@EVERY_OPERATION
def test_operands_are_not_modified_and_may_be_read_only(name):
    for c in examples(name):
        copies = [a.copy() for a in c.arrays]
        for a in c.arrays:
            a.flags.writeable = False
        with naming(c):
            result_and_gradients(c, c.arrays)
            np.testing.assert_equal(c.arrays, copies)


@EVERY_OPERATION
def test_each_pass_adds_exactly_once_more_whatever_data_were_assigned_meanwhile(name):
    for c in examples(name):
        with naming(c):
            leaves = c.values()
            loss = weighted(c(*[v * 1.0 for v in leaves]))
            loss.backward_all()
            nodes = topological_order(loss)
            once = {v: np.copy(v.grad) for v in nodes}
            for seed in (1, 2):
                for v in nodes:  # the graph keeps what it was computed from
                    v.data = upstream(v.shape, seed)
                loss.backward_all()
            for v in nodes:  # the gradient of a result is that of the last pass
                np.testing.assert_array_equal(v.grad, once[v] * 3 if v in leaves else once[v])


@EVERY_OPERATION
def test_a_failing_pass_changes_no_gradient(name):
    def fragile(v):
        return Value(v.data, v, "fragile", lambda grad: grad / divisor[0])

    c, divisor = case(name), [1]
    leaves = c.values()
    loss = weighted(c(*map(fragile, leaves)))
    loss.backward_all()
    before = [(v, v.grad, np.copy(v.grad)) for v in topological_order(loss)]
    divisor[0] = None
    with pytest.raises(TypeError):
        loss.backward_all()
    for v, grad, copy in before:
        assert v.grad is grad
        np.testing.assert_array_equal(grad, copy)


@EVERY_OPERATION
def test_leaf_gradients_are_arrays_of_their_own_and_gradients_of_results_are_read_only(name):
    for c in examples(name):
        with naming(c):
            leaves = c.values()
            loss = c(*[v + 0.0 for v in leaves])
            loss.backward_all()
            nodes = topological_order(loss)
            for v in nodes:
                if v.requires_grad and v.shape:  # without axes, it may be a Python float
                    assert v.grad.flags.writeable == (v in leaves)
            for v in leaves:
                assert not any(np.shares_memory(v.grad, w.data) for w in nodes)
                assert not any(np.shares_memory(v.grad, w.grad) for w in nodes if w is not v)


@EVERY_OPERATION
def test_no_grad_records_nothing(name):
    for c in examples(name):
        with naming(c):
            leaves = c.values()
            recorded = c(*leaves)
            with no_grad():
                out = c(*leaves)
            np.testing.assert_array_equal(out.data, recorded.data)
            assert topological_order(out) == [out] and not out.requires_grad and recorded.requires_grad


@EVERY_OPERATION
def test_a_graph_leaves_nothing_to_the_garbage_collector(name):
    def step():
        for c in cases:
            c(*c.values()).sum().backward_all()

    cases = examples(name)
    assert left_to_the_collector(step) == 0


# ---- At kinks and limits --------------------------------------------------------------------------------------------


def gradient(f, x):
    v = Value(x)
    f(v).sum().backward_all()
    return v.grad


@pytest.mark.parametrize(
    "f, x, out, grad",
    [
        (lambda v: v.relu(), [-1, -0.0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 1]),
        (lambda v: v**0, [-2, 0, 3], [1, 1, 1], [0, 0, 0]),
        (lambda v: v**2, [-2, 0], [4, 0], [-4, 0]),
        (lambda v: v**1.5, [0], [0], [0]),
        (lambda v: v.tanh(), [-1000, 0, 1000], [-1, 0, 1], [0, 1, 0]),
        (lambda v: v.log(), [0], [math.log(1e-12)], [1 / 1e-12]),
    ],
)
def test_at_kinks_and_limits(f, x, out, grad):
    x = np.array(x, float)
    np.testing.assert_array_equal(f(Value(x)).data, out)
    np.testing.assert_array_equal(gradient(f, x), grad)
    assert [f(Value(float(n))).data for n in x] == pytest.approx(out, rel=1e-15)
    assert [gradient(f, float(n)) for n in x] == grad


@pytest.mark.parametrize(
    "x, axis, expected",
    [
        ([1, 7, 7, 3], None, [0, 1 / 2, 1 / 2, 0]),
        ([[1, 7], [7, 7]], None, [[0, 1 / 3], [1 / 3, 1 / 3]]),
        ([[1, 7], [7, 7]], -1, [[0, 1], [1 / 2, 1 / 2]]),
    ],
)
def test_equal_elements_share_the_gradient_of_max(x, axis, expected):
    for keepdims in (False, True):
        np.testing.assert_allclose(gradient(lambda v, k=keepdims: v.max(axis, k), np.array(x, float)), expected)


# ---- Shape, indexing, stack, matrices -------------------------------------------------------------------------------


def test_sizes_and_axes_may_be_given_one_by_one():
    x = np.arange(24.0).reshape(2, 3, 4)
    weights = upstream((4, 3, 2))
    np.testing.assert_array_equal(gradient(lambda v: v.reshape(4, 3, -1) * weights, x), weights.reshape(2, 3, 4))
    np.testing.assert_array_equal(gradient(lambda v: v.transpose(2, 1, 0) * weights, x), weights.T)
    np.testing.assert_array_equal(gradient(lambda v: v.transpose() * weights, x), weights.T)


def test_an_index_may_pick_an_element_twice_and_be_changed_before_the_backward_pass():
    mask, integers, integer = np.array([True, False, True]), np.array([0, 2, -3]), np.array(2)
    for array, expected in [(mask, [2, 0, 2]), (integers, [4, 0, 2]), (integer, [0, 0, 2])]:
        for index in (array.copy(), (..., array.copy())):
            x = Value(np.zeros(3))
            loss = (x[index] * 2).sum()
            (index[1] if type(index) is tuple else index)[...] = 1
            loss.backward_all()
            np.testing.assert_array_equal(x.grad, expected)


def test_stack_takes_values_arrays_and_numbers():
    constant = np.array([1.0, 2.0])
    check_gradients(lambda a, b: stack([a, constant, b, a]), np.array([3.0, 4.0]), np.array([5.0, 6.0]))
    np.testing.assert_array_equal(stack((Value(3.0), 2, 4.5)).data, [3, 2, 4.5])
    for numbers in ([1.5, Value(f32(2))], [Value(f32(2)), Value(1.5)]):  # a number takes the dtype of the arrays
        assert stack(numbers).dtype == f32
    with pytest.raises(ValueError):
        stack([])


PRODUCTS = [((3,), (4,)), ((2, 3), (2, 3)), ((5, 2, 3), (2, 4)), ((2, 3), ()), ((), (3,)), ((), ())]
WRONG_SHAPES = [(operator.matmul, shapes) for shapes in PRODUCTS]
WRONG_SHAPES += [(lambda a, b: stack([a, b]), shapes) for shapes in [((2, 3), (3,)), ((1,), ()), ((2,), (3,))]]


@pytest.mark.parametrize("f, shapes", WRONG_SHAPES)
def test_matrix_products_and_stacks_name_the_shapes_that_do_not_fit(f, shapes):
    a, b = (np.ones(s) for s in shapes)
    for operands in ((Value(a), Value(b)), (Value(a), b), (a, Value(b))):
        with pytest.raises(ValueError, match=".*".join(re.escape(str(s)) for s in shapes)):
            f(*operands)


def test_astype_takes_floating_dtypes():
    x = Value(np.array([1.5, 2.5], f32))
    assert x.astype("float32") is x and Value(1.5).astype(float).data == 1.5
    assert x.astype("longdouble").dtype == np.longdouble and Value(1.5).astype(f32).dtype == f32
    for dtype in (int, bool, complex, np.float16):
        with pytest.raises(TypeError):
            x.astype(dtype)


# ---- cross_entropy --------------------------------------------------------------------------------------------------


def test_cross_entropy_by_hand():
    x = Value(np.log(np.array([[1.0, 2.0, 5.0], [1.0, 1.0, 2.0]])))
    labels = np.array([2, 0])
    loss = cross_entropy(x, labels)
    labels[:] = 1  # too late
    assert loss.data == pytest.approx((math.log(8 / 5) + math.log(4)) / 2, rel=1e-15)
    loss.backward_all()  # (softmax(x) - onehot(labels)) / 2
    np.testing.assert_allclose(x.grad, [[1 / 16, 2 / 16, -3 / 16], [-3 / 8, 1 / 8, 2 / 8]], rtol=1e-14)


@pytest.mark.parametrize("dtype", [f32, f64])
def test_cross_entropy_is_exact_at_large_logits(dtype):
    x = Value(np.array([[1e4, -1e4], [-1e4, 1e4], [1e4, -1e4], [1e4, 1e4]], dtype))
    loss = cross_entropy(x, [1, 1, 0, 0])  # 20000, 0, 0 and log(2)
    assert loss.data == dtype((20000 + math.log(2)) / 4)
    loss.backward_all()
    np.testing.assert_array_equal(x.grad, [[0.25, -0.25], [0, 0], [0, 0], [-0.125, 0.125]])


@pytest.mark.parametrize(
    "shape, labels, error, message",
    [
        ((2, 3), [0, -1], ValueError, "-1"),
        ((2, 3), [0, 3], ValueError, "3"),
        ((2, 3), [0], ValueError, r"\(1,\)"),
        ((2, 3), [0.0, 1.0], TypeError, "float64"),
        ((2, 3), [True, False], TypeError, "bool"),
        ((3,), [0], ValueError, r"\(3,\)"),
        ((0, 3), np.zeros(0, int), ValueError, r"\(0, 3\)"),
        ((2, 0), [0, 0], ValueError, r"\(2, 0\)"),
    ],
)
def test_cross_entropy_refuses_wrong_shapes_and_labels(shape, labels, error, message):
    with pytest.raises(error, match=message):
        cross_entropy(np.ones(shape), labels)
