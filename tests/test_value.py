"""A Value: which data it holds, numbers and arrays beside it, assigned data and gradients, and what Python expects."""

import copy
import math
import operator
import pickle

import numpy as np
import pytest

from engine import Value, as_value, stack
from tests.gradcheck import check_gradients
from tests.operations import spread

f16, f32, f64 = np.float16, np.float32, np.float64
ARITHMETIC = pytest.mark.parametrize("f", [operator.add, operator.sub, operator.mul, operator.truediv])

# ---- Data -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [2, 2.5, True, f64(2.5), np.int64(3), np.int8(3), np.bool_(True)], ids=repr)
def test_numbers_become_python_floats(number):
    v = Value(number)
    assert type(v.data) is float and v.data == number
    assert (v.shape, v.dtype, v.ndim) == ((), f64, 0)


@pytest.mark.parametrize("dtype", [f32, f64, np.longdouble])
@pytest.mark.parametrize("shape", [(), (3,), (0, 2)])
def test_floating_arrays_are_kept_and_not_copied(dtype, shape):
    data = np.ones(shape, dtype)
    v = Value(data)
    assert v.data is data
    assert (v.shape, v.dtype, v.ndim) == (shape, dtype, len(shape))
    np.testing.assert_array_equal(v.grad, np.zeros(shape, dtype), strict=True)


@pytest.mark.parametrize("given, kept", [(f16, f32), (bool, f32), (np.int16, f32), (np.int32, f64), (np.int64, f64)])
def test_other_data_become_floating_arrays(given, kept):
    data = np.ones((2, 2), given)
    for v in (Value(data), as_value(data)):
        np.testing.assert_array_equal(v.data, np.ones((2, 2), kept), strict=True)
    np.testing.assert_array_equal(Value([[1, 2.5], [True, 4]]).data, np.array([[1, 2.5], [1, 4]]), strict=True)
    assert [Value(kind(1)).dtype for kind in (f16, f32, np.longdouble)] == [f32, f32, np.longdouble]


NOT_DATA = [None, "1", 1j, np.ones(2, complex), np.array([1, None]), {"a": 1}, Value(1.0), [Value(1.0), Value(2.0)]]


@pytest.mark.parametrize("data", NOT_DATA, ids=str)
def test_data_that_are_not_real_numbers_are_a_type_error(data):
    v = Value(np.ones(2))
    for f in (Value, lambda data: setattr(v, "data", data)):
        with pytest.raises(TypeError):
            f(data)
    np.testing.assert_array_equal(v.data, np.ones(2))


# ---- Numbers and arrays beside a Value ------------------------------------------------------------------------------


@ARITHMETIC
@pytest.mark.parametrize(
    "constant", [3, -2.5, True, f64(1.5), np.array(2.5), np.array([[-2.0], [4.0]]), np.array([1, 2, -3]), [1, 2.5, 3]]
)
@pytest.mark.parametrize("x", [spread(np.random.default_rng(2), (2, 3)), 1.75], ids=["array", "number"])
def test_constants_on_either_side(f, constant, x):
    check_gradients(lambda v: f(v, constant), x)
    check_gradients(lambda v: f(constant, v), x)
    c = np.asarray(constant, f64)
    for out, expected in [(f(Value(x), constant), f(x, c)), (f(constant, Value(x)), f(c, x))]:
        assert type(out) is Value  # also where NumPy's array is on the left
        np.testing.assert_array_equal(out.data, expected)


def test_matrix_products_with_arrays_and_lists_on_either_side():
    v, m = Value(np.array([1.0, 2.0])), np.array([[1.0, 2.0], [3.0, 4.0]])
    for out, expected in [(m @ v, [5, 11]), (v @ m, [7, 10]), ([3, 4] @ v, 11), (v @ [3, 4], 11)]:
        np.testing.assert_array_equal(out.data, expected)


NARROW = [2, 2.5, np.sqrt(2.0), np.ones(2, bool), np.ones(2, np.int8)]
WIDE = [np.ones(2, np.int64), np.ones(2)]


@ARITHMETIC
@pytest.mark.parametrize("other, dtype", [(other, f32) for other in NARROW] + [(other, f64) for other in WIDE], ids=str)
def test_float32_stays_float32_beside_numbers_and_small_dtypes(f, other, dtype):
    for data in (np.array([1, 2], f32), np.array(2, f32)):
        for out in (f(Value(data), other), f(other, Value(data))):
            assert out.dtype == dtype
            out.sum().backward_all()


def test_results_without_axes_are_python_floats():
    v = Value(np.array([1.0, 2.0]))
    assert all(type(out.data) is float for out in (v.sum(), v.mean(), v.max(), v @ v, v[0], v[0].tanh()))


@pytest.mark.parametrize(
    "f, error",
    [
        (lambda: Value(1) / 0, ZeroDivisionError),
        (lambda: Value(0) ** -1, ZeroDivisionError),
        (lambda: Value(1000).exp(), OverflowError),
        (lambda: Value(-1).log(), ValueError),
        (lambda: Value(-8) ** 0.5, TypeError),  # a complex number
    ],
)
def test_numbers_follow_pythons_rules(f, error):
    with pytest.raises(error):
        f()


# ---- Assigned data and gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("before", [2.0, np.array(2.0), np.array(2, f32), np.array([2.0, 3.0]), np.array([2, 3], f32)])
def test_an_optimizer_of_ones_own_keeps_numbers_numbers_and_arrays_arrays(before):
    p, m, v, steps = Value(before), 0.0, 0.0, 3
    for _ in range(steps):
        p.grad = 0
        (p * 4).sum().backward_all()
        m, v = 0.9 * m + 0.1 * p.grad, 0.99 * v + 0.01 * p.grad**2
        p.data = p.data - 0.1 * m / (np.sqrt(v) + 1e-8)
        assert type(p.data) is type(p.grad) is type(before)
        assert np.result_type(p.data) == np.result_type(p.grad) == np.result_type(before)
        np.testing.assert_array_equal(p.grad, np.full(p.shape, 4))
    assert np.all(p.data < before)


def test_assigned_data_keep_the_shape_and_the_gradient():
    v = Value(np.ones(2, f32))
    (v * 3).sum().backward_all()
    grad, data = v.grad, np.array([5, 6], f32)
    v.data = data
    assert v.data is data and v.grad is grad
    for given in (np.ones((2, 1)), 5.0, [1.0]):
        with pytest.raises(ValueError, match=r"\(2,\)"):
            v.data = given
    assert v.data is data and v.grad is grad
    with pytest.raises(ValueError, match=r"\(1,\)"):
        Value(1.0).data = [2.0]


def test_subtracting_from_data_changes_an_array_in_place_and_a_number_nowhere_else():
    v, number = Value(np.array([1.0, 2.0])), Value(3.0)
    array, loss = v.data, number * number
    v.data -= 1
    number.data -= 1
    assert v.data is array and list(array) == [0, 1]
    loss.backward_all()
    assert number.data == 2.0 and number.grad == 6.0  # of the 3.0 that the graph was computed from


def test_assigned_gradients_are_copied_broadcast_and_cast():
    v, given = Value(np.ones((2, 3), f32)), np.array([1.0, 2.0, 3.0])
    v.grad = given
    v.grad += 1
    np.testing.assert_array_equal(v.grad, np.array([[2, 3, 4]] * 2, f32), strict=True)
    np.testing.assert_array_equal(given, [1, 2, 3])
    for nothing in (0, None):
        v.grad = nothing
        np.testing.assert_array_equal(v.grad, np.zeros((2, 3), f32), strict=True)
        v.grad = nothing
        (v * 2).sum().backward_all()
        np.testing.assert_array_equal(v.grad, np.full((2, 3), 2))
    number = Value(2.0)
    number.grad = np.array(3)
    assert number.grad == 3.0 and type(number.grad) is float
    for wrong, error in [(np.ones(2), ValueError), (Value(1.0), TypeError)]:
        with pytest.raises(error):
            v.grad = wrong


def test_subtracting_from_a_parameter_is_refused_and_says_how_to_train_it():
    a = p = Value(np.array([1.0, 2.0]))
    with pytest.raises(TypeError, match=r"p\.data -="):
        p -= 0.1
    p += 1
    p *= 3
    p -= 1  # from a result
    p.sum().backward_all()
    np.testing.assert_array_equal(p.data, [5, 8])
    np.testing.assert_array_equal(a.grad, [3, 3])
    a.requires_grad = False
    a -= 1
    np.testing.assert_array_equal(a.data, [0, 1])


# ---- NumPy's and Python's functions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("f", [np.sum, np.asarray, lambda v: np.stack([v, v]), lambda v: np.array([v, v])])
def test_numpy_functions_name_the_way_to_the_numbers(f):
    with pytest.raises(TypeError, match=r"\.data"):
        f(Value(np.array([1.0, 2.0])))


@pytest.mark.parametrize(
    "f",
    [
        np.exp,
        lambda v: np.add(np.ones(2), v),
        float,
        int,
        abs,
        math.exp,
        lambda v: v // 2,
        lambda v: v**v,
        lambda v: 2**v,
    ]
    + [lambda v: 1.0 in v, lambda v: operator.setitem(v, 0, 1.0), lambda v: operator.iadd(np.ones(2), v)]
    + [lambda v: operator.setitem(np.ones(2), np.s_[:], v)],
)
def test_functions_that_would_lose_the_gradient_are_type_errors(f):
    for v in (Value(np.array([1.0, 2.0])), Value(2.0)):
        with pytest.raises(TypeError):
            f(v)


@pytest.mark.parametrize("data", [2.5, f32(2.5), np.array(2.5), np.array([[2.5]], f32)], ids=repr)
def test_one_element_is_a_number(data):
    v = Value(data)
    assert type(v.item()) is float and v.item() == 2.5
    assert f"{v:.3f}" == "2.500" and f"{v:8.1e}" == " 2.5e+00"
    assert bool(v) and not Value(data * 0)
    with pytest.raises((TypeError, ValueError)):  # not without its gradient
        np.ones(2)[0] = v


def test_several_elements_are_not_a_number_and_repr_shows_them():
    v = Value(np.array([1.0, 2.5]), label="w")
    for f in (Value.item, bool, lambda v: f"{v:.2f}"):
        with pytest.raises(ValueError):
            f(v)
    assert str(v) == f"{v}" == repr(v) and "2.5" in repr(v) and "w" in repr(v)


@pytest.mark.parametrize("f", [operator.lt, operator.le, operator.gt, operator.ge])
@pytest.mark.parametrize("other", [2, f64(2), np.array([2.0, 1.0, 2.0]), np.array([[1], [3]])], ids=str)
def test_comparisons_are_those_of_data(f, other):
    for data in (2.0, np.array([1.0, 2.0, 3.0])):
        for out, expected in [
            (f(Value(data), other), f(data, other)),
            (f(other, Value(data)), f(other, data)),
            (f(Value(data), Value(other)), f(data, other)),
        ]:
            np.testing.assert_array_equal(out, expected, strict=isinstance(expected, np.ndarray))


def test_equality_is_identity_and_values_are_keys():
    a, b = Value(np.array([1.0])), Value(np.array([1.0]))
    for other in (b, a.data, 1.0, None):
        assert (a == other) is False and (other == a) is False and (a != other) is True
    assert {a: 1, b: 2}[b] == 2 and a in [b, a] and a not in [b]


def test_length_iteration_and_unpacking_follow_the_first_axis():
    check_gradients(lambda v: sum(row * (i + 1) for i, row in enumerate(v)), np.arange(6.0).reshape(3, 2))
    first, second = v = Value(np.array([[1.0, 2.0], [3.0, 4.0]]))
    (first * second).sum().backward_all()
    np.testing.assert_array_equal(v.grad, [[3, 4], [1, 2]])
    assert len(v) == 2 and list(Value(np.zeros((0, 3)))) == []
    for number in (Value(2.0), Value(np.array(2.0))):
        for f in (len, list):
            with pytest.raises(TypeError):
                f(number)


# ---- Copies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("f", [copy.copy, copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))])
@pytest.mark.parametrize("data", [2.0, np.array([1.0, 2.0]), np.array([[1.0]], f32)], ids=str)
def test_a_copy_of_a_leaf_is_another_leaf(data, f):
    v = Value(data, label="w")
    (v * 3).sum().backward_all()
    c = f(v)
    assert c != v and c.is_leaf and c.requires_grad and c.label == "w"
    for a, b in [(c.data, v.data), (c.grad, v.grad)]:
        np.testing.assert_array_equal(a, b, strict=type(data) is not float)
        assert type(a) is type(b)
    (c * 2).sum().backward_all()
    np.testing.assert_array_equal(c.grad, np.full(v.shape, 5))
    np.testing.assert_array_equal(v.grad, np.full(v.shape, 3))


def test_a_deep_copy_of_a_graph_has_leaves_of_its_own():
    x, w = Value(np.array([1.0, 2.0])), Value(np.array([3.0, 4.0]))
    loss = stack([x * w, x @ w * w]).tanh().exp().sum()
    loss.backward_all()
    before = [(v, v.grad, v.grad.copy()) for v in (x, w)]
    x_copy, w_copy, loss_copy = copy.deepcopy([x, w, loss])
    x_copy.grad = w_copy.grad = None
    loss_copy.backward_all()
    for (v, grad, numbers), c in zip(before, (x_copy, w_copy)):
        assert v.grad is grad
        np.testing.assert_array_equal(grad, numbers)
        np.testing.assert_array_equal(c.grad, numbers)
