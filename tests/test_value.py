"""A Value holds real numbers, computes with + - * / **, and is a number or a sequence where Python expects one."""

import copy
import math
import operator
import pickle
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

from engine import MLP, Optimizer, Value, as_value, cross_entropy, no_grad, stack
from tests.gradcheck import check_gradients
from tests.misuse import NOT_DATA, TYPE, VALUE, check, misuse, values
from tests.operations import spread

f16, f32, f64 = np.float16, np.float32, np.float64
ARITHMETIC = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}

# ---- What data may be -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data, expected",
    [(2, 2.0), (2.5, 2.5), (True, 1.0), (np.int8(3), 3.0), (np.uint64(3), 3.0), (np.bool_(True), 1.0), (-0.0, -0.0)],
)
def test_numbers_become_python_floats(data, expected):
    assert type(Value(data).data) is float
    assert repr(Value(data).data) == repr(expected)
    assert Value(data).shape == ()


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "int16", "int32", "int64", "uint64"])
def test_integer_and_boolean_arrays_become_float64(dtype):
    data = np.array([[0, 1], [1, 1]], dtype)
    value = Value(data)
    np.testing.assert_array_equal(value.data, np.array([[0.0, 1.0], [1.0, 1.0]]), strict=True)
    assert value.shape == (2, 2)


@pytest.mark.parametrize("dtype", ["float32", "float64", "longdouble"])
@pytest.mark.parametrize("shape", [(), (3,), (0, 2)])
def test_floating_arrays_keep_their_dtype_and_are_not_copied(dtype, shape):
    data = np.ones(shape, dtype)
    value = Value(data)
    assert value.data is data
    assert value.grad.dtype == dtype and value.grad.shape == shape


def test_lists_become_arrays():
    np.testing.assert_array_equal(Value([[1, 2], [3, 4]]).data, np.array([[1.0, 2.0], [3.0, 4.0]]), strict=True)
    np.testing.assert_array_equal(Value((1.5, 2)).data, np.array([1.5, 2.0]), strict=True)


@pytest.mark.parametrize("shape", [(), (3,), (0, 2)], ids=str)
def test_float16_becomes_float32(shape):
    data = np.ones(shape, f16)
    np.testing.assert_array_equal(Value(data).data, np.ones(shape, f32), strict=True)
    assert Value(f16(0.1)).dtype == f32 and Value(f16(0.1)).data == f16(0.1)
    assert as_value(data).dtype == (Value(np.ones(shape, f32)) * data).dtype == f32
    assert data.dtype == f16


def test_float16_data_are_computed_with_in_float32():
    """Sums of halves would overflow beyond 65,504, and log's eps would be 0."""
    halves = Value(np.full(70_000, 0.5, f16))
    mean = halves.mean()
    assert (mean.data, mean.dtype) == (0.5, f32)
    assert halves.sum().data == 35_000
    logits = Value(np.zeros((70_000, 2), f16))
    loss = cross_entropy(logits, np.zeros(70_000, int))
    assert loss.data == pytest.approx(math.log(2), rel=1e-5) and loss.dtype == f32
    loss.backward_all()
    np.testing.assert_allclose(logits.grad, [[-0.5 / 70_000, 0.5 / 70_000]] * 70_000, rtol=1e-5)
    zero = Value(np.zeros(1, f16))
    log = zero.log()
    np.testing.assert_allclose(log.data, [math.log(1e-12)], rtol=1e-6)
    log.backward_all()
    np.testing.assert_allclose(zero.grad, [1e12], rtol=1e-6)


@misuse(
    *((key, lambda data=data: Value(data), error, message) for key, (data, error, message) in NOT_DATA.items()),
    ("masked_integers", lambda: Value(np.ma.array([1, 2], mask=[0, 1])), TYPE, "data.*real numbers.*MaskedArray"),
    ("masked_without_mask", lambda: Value(np.ma.array([1.0, 2.0])), TYPE, "data.*real numbers.*MaskedArray"),
    ("value", lambda: Value(Value(1.0)), TYPE, "data.*number or an array.*Value"),
    ("list_of_values", lambda: Value([Value(1.0), Value(2.0)]), TYPE, "Value.*stack"),
    ("children_that_are_no_values", lambda: Value(1.0, (1.0,)), AttributeError, "requires_grad"),
    ("children_that_are_no_tuple", lambda: Value(1.0, 3), TYPE, "not iterable"),
    ("children_of_which_one_is_no_value", lambda: Value(1.0, (Value(1.0), 5)), AttributeError, "requires_grad"),
    ("a_backward_without_children", lambda: Value(1.0, _backward=print), VALUE, "_backward needs _children"),
    ("a_backward_that_is_no_function", lambda: Value(1.0, (Value(1.0),), "op", 5), TYPE, "_backward.*function.*int"),
    ("a_leafs_backward_that_is_none", lambda: Value(1.0, _backward=5), TYPE, "_backward.*function.*int"),
    ("no_data", lambda: Value(), TYPE, "data"),
)
def test_value_rejects(call, error, message):
    check(call, error, message)


@pytest.mark.parametrize("key", [key for key in NOT_DATA if key not in ("ragged_list", "huge_int")])
def test_refused_data_are_named(key):
    """What is wrong is called what the caller knows it by: data, an operand, x, w, b, grad ..."""
    data, error, _ = NOT_DATA[key]
    v = values((2,))[0]

    def assign(name):
        setattr(v, name, data)

    for call, name in [
        (lambda: Value(data), "data"),
        (lambda: assign("data"), "data"),
        (lambda: assign("grad"), "grad"),
        (lambda: as_value(data), "an operand"),
        (lambda: as_value(data, "mine"), "mine"),
        (lambda: stack([v, data]), "values"),
    ]:
        check(call, error, f"^{name} must be ")


# ---- Assigned data --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given, expected",
    [
        (np.arange(3), np.array([0.0, 1.0, 2.0])),
        (np.array([True, False]), np.array([1.0, 0.0])),
        ([1, 2], np.array([1.0, 2.0])),
        (np.array([1, 2], f16), np.array([1, 2], f32)),
        (np.array([1, 2], f32), np.array([1, 2], f32)),
        (np.ones((2, 2)), np.ones((2, 2))),
    ],
)
def test_assigned_data_become_what_the_constructor_makes(given, expected):
    for v in (Value(np.ones(3)), Value(2.0)):
        v.data = given
        np.testing.assert_array_equal(v.data, expected, strict=True)
        np.testing.assert_array_equal(v.grad, np.zeros_like(expected), strict=True)


@pytest.mark.parametrize("given", [2, True, np.int8(2), np.bool_(True), 2.0])
def test_assigned_numbers_become_python_floats(given):
    for v in (Value(np.ones(3)), Value(1.0)):
        v.data = given
        assert type(v.data) is float and v.data == float(given)
        assert type(v.grad) is float and v.grad == 0.0


def test_assigned_arrays_are_not_copied():
    v, data = Value(np.ones(3)), np.zeros(3)
    v.data = data
    assert v.data is data


@pytest.mark.parametrize("key", list(NOT_DATA))
def test_assigned_data_that_are_refused_change_nothing(key):
    given, error, message = NOT_DATA[key]
    v = Value(np.array([1.0, 2.0]))
    (v * 3).sum().backward_all()
    data, grad = v.data, v.grad

    def assign():
        v.data = given

    check(assign, error, message)
    assert v.data is data and v.grad is grad
    np.testing.assert_array_equal(data, [1, 2])
    np.testing.assert_array_equal(grad, [3, 3])


def test_assigned_value_is_refused():
    v = Value(1.0)

    def assign():
        v.data = Value(2.0)

    check(assign, TYPE, "data.*number or an array.*Value")
    assert v.data == 1.0


@pytest.mark.parametrize("looked_at", [False, True], ids=["not_looked_at", "looked_at"])
@pytest.mark.parametrize("inner", [False, True], ids=["leaf", "inner"])
@pytest.mark.parametrize("given", [np.zeros(3), np.zeros((1, 2)), np.zeros((2, 1)), np.zeros(2, f32), 5.0], ids=repr)
def test_gradient_does_not_survive_data_of_another_kind(given, inner, looked_at):
    x = Value(np.ones(2))
    v = x * 1 if inner else x
    (v * 3).sum().backward_all()
    if looked_at:
        np.testing.assert_array_equal(v.grad, [3, 3])
    v.data = given
    np.testing.assert_array_equal(v.grad, np.zeros_like(given), strict=True)


@pytest.mark.parametrize("before, after", [(np.array(2.0), 5), (2.0, np.array(5.0)), (2.0, np.float64(5))], ids=repr)
def test_gradient_of_an_array_is_none_of_a_number(before, after):
    v = Value(before)
    (v * 3).backward_all()
    v.data = after
    assert v.grad == 0.0 and isinstance(v.grad, float) == (type(v.data) is float)


def test_gradient_survives_data_of_the_same_shape_and_dtype():
    for x, given in [
        (Value(np.ones(2)), np.array([5.0, 6.0])),
        (Value(np.ones(2, f32)), np.ones(2, f32)),
        (Value(1.0), 7),
    ]:
        (x * 3).sum().backward_all()
        grad = x.grad
        x.data = given
        assert x.grad is grad
        np.testing.assert_array_equal(grad, np.full(x.shape, 3.0))


def test_data_assigned_after_the_forward_pass_do_not_matter():
    x, y = values((2,), (2,))
    out = (x * y).sum()
    x.data = np.array([100.0, 200.0])
    out.backward_all()
    np.testing.assert_array_equal(y.grad, [1, 2])


# ---- Numbers and arrays as operands ---------------------------------------------------------------------------------

CONSTANTS = {
    "int": 3,
    "float": -2.5,
    "bool": True,
    "numpy_float64": np.float64(1.5),
    "numpy_int": np.int64(-4),
    "array_without_axes": np.array(2.5),
    "array_that_fits": np.array([[1.5, -2.0, 3.0], [0.5, 1.0, -1.0]]),
    "array_that_is_stretched": np.array([[-2.0], [4.0]]),
    "array_that_stretches": np.array([[[2.0]], [[-3.0]]]),
    "integer_array": np.array([1, 2, -3]),
    "bool_array": np.array([True, True, True]),
    "list": [1, 2.5, 3],
}


@pytest.mark.parametrize("symbol", list(ARITHMETIC))
@pytest.mark.parametrize("constant", list(CONSTANTS.values()), ids=list(CONSTANTS))
@pytest.mark.parametrize("x", [spread(np.random.default_rng(2), (2, 3)), 1.75], ids=["array", "number"])
def test_arithmetic_with_a_constant_on_either_side(symbol, constant, x):
    f = ARITHMETIC[symbol]
    check_gradients(lambda v: f(v, constant), x)
    check_gradients(lambda v: f(constant, v), x)
    c = np.asarray(constant, np.float64)
    np.testing.assert_array_equal(f(Value(x), constant).data, f(x, c))
    np.testing.assert_array_equal(f(constant, Value(x)).data, f(c, x))


@pytest.mark.parametrize("symbol", list(ARITHMETIC))
def test_arithmetic_of_python_numbers(symbol):
    check_gradients(ARITHMETIC[symbol], 1.5, -2.25)
    check_gradients(ARITHMETIC[symbol], 1.5, np.array([2.0, -0.5, 1.0]))
    check_gradients(ARITHMETIC[symbol], np.array([2.0, -0.5, 1.0]), 1.5)


def test_division_of_integers_divides():
    assert (Value(1) / 2).data == 0.5
    assert (1 / Value(2)).data == 0.5
    np.testing.assert_array_equal((Value(np.array([1, 2, 3])) / np.array([2, 4, 8])).data, [0.5, 0.5, 0.375])


def test_arrays_and_numpy_numbers_on_the_left_give_values():
    v, m = Value(np.array([1.0, 2.0])), np.array([[1.0, 2.0], [3.0, 4.0]])
    for out, expected in [
        (m + v, [[2, 4], [4, 6]]),
        (m - v, [[0, 0], [2, 2]]),
        (m * v, [[1, 4], [3, 8]]),
        (m / v, [[1, 1], [3, 2]]),
        (m @ v, [5, 11]),
        (v @ m, [7, 10]),
        (np.float64(2) * v, [2, 4]),
        (np.float32(2) - v, [1, 0]),
        (np.int64(2) / v, [2, 1]),
        (np.float64(2) + v, [3, 4]),
        ([3, 4] @ v, 11),
    ]:
        assert type(out) is Value
        np.testing.assert_array_equal(out.data, expected)


def test_builtin_sum_adds_values():
    a, b = Value(1.0), Value(2.0)
    total = sum([a, b, a])
    total.backward_all()
    assert (total.data, a.grad, b.grad) == (4.0, 2.0, 1.0)


def test_augmented_assignment_makes_a_new_value():
    a = b = Value(np.array([1.0, 2.0]))
    b += 1
    b *= 3
    np.testing.assert_array_equal(a.data, [1, 2])
    np.testing.assert_array_equal(b.data, [6, 9])
    b.sum().backward_all()
    np.testing.assert_array_equal(a.grad, [3, 3])


@pytest.mark.parametrize(
    "f",
    [
        np.exp,
        np.tanh,
        np.asarray,
        np.array,
        np.float64,
        np.sum,
        np.isfinite,
        lambda v: np.add(np.ones(2), v),
        lambda v: np.multiply(v, 2.0),
        lambda v: np.array([v, v]),
        lambda v: np.stack([v, v]),
        lambda v: np.dot(np.ones(2), v),
        lambda v: np.power(v, 2),
    ],
)
def test_numpy_functions_of_a_value_are_a_type_error(f):
    v = Value(np.array([1.0, 2.0]))
    with pytest.raises(TypeError):
        f(v)


@pytest.mark.parametrize("f", [operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.imatmul])
def test_augmented_assignment_to_an_array_is_a_type_error(f):
    """It leaves the array as it is."""
    a = np.array([1.0, 2.0])
    with pytest.raises(TypeError):
        f(a, Value(np.array([3.0, 4.0])))
    np.testing.assert_array_equal(a, [1, 2])


@pytest.mark.parametrize("f", ARITHMETIC.values(), ids=list(ARITHMETIC))
def test_float16_and_integer_arrays_are_converted_as_operands(f):
    """Integers and booleans become the floats that NumPy's rules give beside the other operand."""
    v = Value(np.array([1.0, 2.0], f32))
    for dtype, expected in [
        ("int8", f32),
        ("int16", f32),
        ("int32", f64),
        ("int64", f64),
        (bool, f32),
        (f16, f32),
        (f64, f64),
    ]:
        constant = np.array([1, 1]).astype(dtype)
        for out in (f(v, constant), f(constant, v)):
            assert out.dtype == expected, dtype


# ---- Dtypes of results ----------------------------------------------------------------------------------------------

NUMBERS = [2, 2.5, True, -1, 1e-3]
ON_SCALARS = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "r+": lambda a, n: n + a,
    "r-": lambda a, n: n - a,
    "r*": lambda a, n: n * a,
    "r/": lambda a, n: n / a,
    "**": operator.pow,
    "log": lambda a, n: a.log(abs(n)),
    "+ Value": lambda a, n: a + Value(n),
    "Value /": lambda a, n: Value(n) / a,
}


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("op", list(ON_SCALARS))
@pytest.mark.parametrize("scalar", [f32(1.5), np.array(1.5, f32)], ids=["scalar", "array"])
def test_float32_without_axes_stays_float32_beside_numbers(scalar, op, number):
    a = Value(scalar)
    out = ON_SCALARS[op](a, number)
    assert out.data.dtype == f32 and out.shape == ()
    assert out.data == pytest.approx(ON_SCALARS[op](Value(1.5), number).data, rel=1e-6)
    out.backward_all()
    assert a.grad.dtype == f32 and a.grad.shape == ()


def test_float32_sums_and_means_stay_float32():
    x = Value(np.ones((2, 3), f32))
    out = -(((x.sum() * 2.0 + 1) / 3 - 0.5).tanh().exp().log() ** 2).relu().mean()
    assert out.data.dtype == f32
    out.backward_all()
    assert x.grad.dtype == f32


ELEMENTWISE = {
    "tanh": lambda v: v.tanh(),
    "relu": lambda v: v.relu(),
    "exp": lambda v: v.exp(),
    "log": lambda v: v.log(),
    "sum": lambda v: v.sum(),
    "mean": lambda v: v.mean(),
    "neg": lambda v: -v,
    "+": lambda v: v + 1,
    "r+": lambda v: 1 + v,
    "-": lambda v: v - 1,
    "r-": lambda v: 1 - v,
    "*": lambda v: v * 2,
    "r*": lambda v: True * v,
    "/": lambda v: v / 2,
    "r/": lambda v: 2 / v,
    "**": lambda v: v**3,
    "** 0": lambda v: v**0,
    "+ Value": lambda v: v + Value(2),
}


@pytest.mark.parametrize("op", list(ELEMENTWISE))
def test_python_numbers_stay_python_floats(op):
    v = Value(0.75)
    out = ELEMENTWISE[op](v)
    assert type(out.data) is float
    assert type(out.grad) is float and type(v.grad) is float and v.grad == 0.0
    out.backward_all()
    assert type(out.grad) is float and type(v.grad) is float


def test_python_number_beside_an_array():
    """The result is an array, the number's gradient a Python float."""
    v, a = Value(2.0), Value(np.array([1.0, 2.0], f32))
    out = v * a
    assert out.data.dtype == f32
    out.sum().backward_all()
    assert type(v.grad) is float and v.grad == 3.0
    np.testing.assert_array_equal(a.grad, np.array([2, 2], f32), strict=True)


@pytest.mark.parametrize("f", [operator.add, operator.sub, operator.mul], ids=["+", "-", "*"])
@pytest.mark.parametrize("mask", [np.array([True, False, True]), np.True_, np.array(True)], ids=repr)
def test_a_boolean_mask_leaves_float32_float32(mask, f):
    x = Value(np.array([1.0, 2.0, 3.0], f32))
    for out in (f(x, mask), f(mask, x)):
        assert out.data.dtype == f32
        np.testing.assert_allclose(np.abs(out.data), np.abs(f(x.data, np.asarray(mask, f32))))


@pytest.mark.parametrize("f", [operator.add, operator.mul, operator.truediv, operator.matmul])
def test_float32_and_float64_combine_to_float64(f):
    """Each operand gets a gradient of its own dtype."""
    a, b = Value(np.ones((2, 2), f32)), Value(np.ones((2, 2), f64))
    out = f(a, b)
    assert out.data.dtype == f64
    out.sum().backward_all()
    assert a.grad.dtype == f32 and b.grad.dtype == f64


# ---- Operands that are refused --------------------------------------------------------------------------------------

OPERATORS = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "@": operator.matmul,
}
NOT_OPERANDS = [key for key in NOT_DATA if key not in ("set", "dict", "function", "decimal")]


@pytest.mark.parametrize("key", NOT_OPERANDS)
@pytest.mark.parametrize("symbol", list(OPERATORS))
def test_operators_reject_on_either_side(symbol, key):
    data, error, message = NOT_DATA[key]
    (v,) = values((2,))
    check(lambda: OPERATORS[symbol](v, data), error, message)
    if not isinstance(data, (np.ma.MaskedArray, np.complex64)):  # NumPy's own types answer these in their own way
        check(lambda: OPERATORS[symbol](data, v), error, message)
    np.testing.assert_array_equal(v.data, [1, 2])


@pytest.mark.parametrize(
    "data",
    [np.complex64(1), np.ma.array([1.0, 2.0], mask=[0, 1]), np.ma.array([1, 2], mask=[0, 1])],
    ids=["complex", "masked", "masked_integers"],
)
@pytest.mark.parametrize("symbol", list(OPERATORS))
def test_operators_never_answer_numpys_other_types_on_the_left(symbol, data):
    with pytest.raises(TypeError):
        OPERATORS[symbol](data, values((2,))[0])


@pytest.mark.parametrize("symbol", list(OPERATORS))
def test_operators_reject_masked_integers(symbol):
    for mask in ([0, 1], False):
        masked = np.ma.array([1, 2], mask=mask)
        check(lambda m=masked: OPERATORS[symbol](values((2,))[0], m), TYPE, "operand.*real numbers.*MaskedArray")


@pytest.mark.parametrize("symbol", ["+", "-", "*", "/"])
@pytest.mark.parametrize(
    "shapes", [((3,), (4,)), ((2, 3), (2,)), ((2, 3), (3, 2)), ((0,), (2,)), ((2, 1, 3), (2, 2))], ids=str
)
def test_arithmetic_rejects_shapes_that_do_not_broadcast(symbol, shapes):
    a, b = values(*shapes)
    f = OPERATORS[symbol]
    for call in (lambda: f(a, b), lambda: f(a, b.data), lambda: f(a.data, b)):
        with pytest.raises(ValueError, match="broadcast") as caught:
            call()
        assert type(caught.value) is ValueError
        for s in shapes:
            assert str(s).replace(" ", "") in str(caught.value).replace(" ", "")
    for v, s in zip((a, b), shapes):
        np.testing.assert_array_equal(v.data, values(s)[0].data)


@misuse(
    *(
        (key, lambda e=e: values((2,))[0] ** e, TYPE, f"exponent.*real number.*{kind}")
        for key, e, kind in [
            ("value", Value(2.0), "Value"),
            ("array", np.array([1.0, 2.0]), "ndarray"),
            ("array_without_axes", np.array(2.0), "ndarray"),
            ("list", [1, 2], "list"),
            ("string", "2", "str"),
            ("complex", 1j, "complex"),
            ("none", None, "NoneType"),
            ("decimal", Decimal(2), "Decimal"),
        ]
    ),
    ("huge_int", lambda: values((2,))[0] ** 10**400, OverflowError, "too large"),
    ("number_to_the_value", lambda: 2 ** values((2,))[0], TYPE, "exponent.*Value"),
    ("array_to_the_value", lambda: np.ones(2) ** values((2,))[0], TYPE, "exponent.*Value"),
    ("numpy_number_to_the_value", lambda: np.float64(2) ** values((2,))[0], TYPE, "exponent.*Value"),
    ("modulus", lambda: pow(values((2,))[0], 2, 3), TYPE, "pow"),
)
def test_power_rejects(call, error, message):
    check(call, error, message)


def test_power_takes_every_real_number():
    for exponent in (2, 2.0, np.float32(2), np.int64(2), Fraction(2)):
        np.testing.assert_array_equal((values((3,))[0] ** exponent).data, [1, 4, 9])


# ---- The gradient of a Value ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [np.ones((2, 3)), np.ones((2, 3), f32), np.array(1.0), np.zeros((0, 2), f32)])
def test_gradient_before_backward_is_zeros_like_data(data):
    for value in (Value(data), Value(data) * 2):
        np.testing.assert_array_equal(value.grad, np.zeros(data.shape, data.dtype), strict=True)


def test_gradient_of_a_number_before_backward_is_0():
    assert Value(3).grad == 0.0 and type(Value(3).grad) is float


def test_assigned_gradient_is_copied_broadcast_and_cast():
    a = Value(np.ones((2, 3), f32))
    given = np.array([1.0, 2.0, 3.0])
    a.grad = given
    np.testing.assert_array_equal(a.grad, np.array([[1, 2, 3]] * 2, f32), strict=True)
    a.grad += 1
    np.testing.assert_array_equal(given, [1, 2, 3])
    a.grad = 0
    np.testing.assert_array_equal(a.grad, np.zeros((2, 3), f32), strict=True)
    v = Value(2.0)
    v.grad = np.array(3)
    assert v.grad == 3.0 and type(v.grad) is float
    (v * 2).backward_all()
    assert v.grad == 5.0


@misuse(
    ("another_shape", np.ones(3), VALUE, r"grad.*\(2,\).*\(3,\)"),
    ("more_axes", np.ones((3, 2)), VALUE, r"grad.*\(2,\).*\(3, 2\)"),
    ("none", None, TYPE, "NoneType"),
    ("string", "0", TYPE, "str"),
    ("value", Value(1.0), TYPE, "Value"),
    ("complex", 1j, TYPE, "complex"),
)
def test_gradient_rejects_to_be(call, error, message):
    v = values((2,))[0]
    v.grad = [3, 4]

    def assign():
        v.grad = call

    check(assign, error, message)
    np.testing.assert_array_equal(v.grad, [3, 4])


# ---- Shape, dtype, ndim ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data", [2, 2.5, f32(2), np.array(2.0), np.ones(3, f32), np.ones((2, 0, 3)), np.ones(2, "longdouble")]
)
def test_shape_dtype_and_ndim_are_numpys(data):
    for v in (Value(data), Value(data) * 1, as_value(data)):
        expected = np.asarray(data, None if hasattr(data, "dtype") else float)
        assert (v.shape, v.dtype, v.ndim) == (expected.shape, expected.dtype, expected.ndim)
        assert type(v.shape) is tuple and type(v.ndim) is int and isinstance(v.dtype, np.dtype)


def test_shape_dtype_and_ndim_cannot_be_assigned():
    for name in ("shape", "dtype", "ndim"):
        with pytest.raises(AttributeError):
            setattr(Value(1.0), name, 1)


# ---- As a number ----------------------------------------------------------------------------------------------------

ONE_NUMBER = [2.5, f32(2.5), np.array(2.5), np.array([2.5]), np.array([[[2.5]]], f32)]


@pytest.mark.parametrize("data", ONE_NUMBER, ids=repr)
def test_one_element_is_a_number(data):
    for v in (Value(data), Value(data) * 1):
        for number in (v.item(), float(v)):
            assert type(number) is float and number == 2.5
        assert f"{v:.3f}" == "2.500" and f"{v:8.1e}" == " 2.5e+00"
        assert format(v, "") == f"{v}" == str(v) == repr(v)
        assert math.sqrt(v) == math.sqrt(2.5)


@pytest.mark.parametrize("s", [(2,), (0,), (1, 3), (2, 2)], ids=str)
def test_several_elements_are_no_number(s):
    (v,) = values(s)
    for call in (v.item, lambda: float(v), lambda: f"{v:.2f}"):
        check(call, TYPE, r"Value of shape \(.*not one number.*\.data")
    assert f"{v}" == str(v) == repr(v)


@pytest.mark.parametrize(
    "f",
    [np.asarray, np.array, lambda v: np.array([v, v]), lambda v: np.asarray(v, float), lambda v: np.stack([v, v])],
)
def test_a_value_rejects_to_become_an_array(f):
    check(lambda: f(values((2,))[0]), TYPE, "Value.*array.*data")


@pytest.mark.parametrize(
    "f",
    [float, int, abs, lambda v: v.item(), lambda v: f"{v:.2f}", lambda v: 1.0 in v, lambda v: v // 2, lambda v: v % 2],
)
def test_what_a_value_cannot_do_is_a_type_error(f):
    check(lambda: f(values((2,))[0]), TYPE, "Value")


@pytest.mark.parametrize(
    "data", [0.0, 1.0, -2.0, math.nan, np.array(0.0), np.array([3.0]), np.array([[0.0]], f32)], ids=repr
)
def test_bool_follows_numpy(data):
    assert bool(Value(data)) is bool(np.asarray(data))


@pytest.mark.parametrize("s", [(2,), (2, 2), (3, 1)], ids=str)
def test_bool_of_several_elements_is_a_value_error(s):
    with pytest.raises(ValueError, match="truth value"):
        bool(Value(np.zeros(s)))


def test_bool_of_no_elements_is_what_numpy_says():
    """A ValueError, or in NumPy 2.0 and 2.1 a DeprecationWarning that announces it."""
    errors = []
    for thing in (np.zeros(0), Value(np.zeros(0))):
        with pytest.raises((ValueError, DeprecationWarning), match="truth value of an empty array") as caught:
            bool(thing)
        errors.append(caught.type)
    assert errors[0] is errors[1]


# ---- Comparisons ----------------------------------------------------------------------------------------------------

COMPARISONS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
COMPARED = [1, 2.0, np.float64(2), f32(3), np.array([2.0, 1.0, 2.0]), np.array([[1], [3]]), [2, 2, math.nan], True]


@pytest.mark.parametrize("symbol", list(COMPARISONS))
@pytest.mark.parametrize("other", COMPARED, ids=lambda other: repr(other).replace("\n", ""))
@pytest.mark.parametrize(
    "data", [2.0, np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, math.nan], f32)], ids=["2", "123", "nan"]
)
def test_comparisons_compare_data(symbol, other, data):
    f, v = COMPARISONS[symbol], Value(data)
    for out, expected in [
        (f(v, other), f(np.asarray(data), np.asarray(other))),
        (f(other, v), f(np.asarray(other), np.asarray(data))),
        (f(v, Value(other)), f(np.asarray(data), np.asarray(other))),
    ]:
        assert isinstance(out, (np.ndarray, np.bool_))
        np.testing.assert_array_equal(out, expected)
        assert out.dtype == bool and out.shape == expected.shape
    assert v.requires_grad and not np.any(v.grad)


@pytest.mark.parametrize("symbol", list(COMPARISONS))
def test_comparisons_reject_what_is_no_number(symbol):
    f, v = COMPARISONS[symbol], values((2,))[0]
    for other in (None, "a", 1j, np.ma.array([1, 2], mask=[0, 1])):
        check(lambda other=other: f(v, other), TYPE, "operand.*real numbers")
    with pytest.raises(ValueError, match="broadcast"):
        f(v, np.ones(3))


def test_equality_is_identity_and_values_are_keys():
    a, b = Value(np.array([1.0, 2.0])), Value(np.array([1.0, 2.0]))
    for other in (b, a.data, [1.0, 2.0], None):
        assert (a == other) is False and (other == a) is False
        assert (a != other) is True and (other != a) is True
    assert operator.eq(a, a) is True and operator.ne(a, a) is False
    assert (Value(1.0) == 1.0) is False
    names = {a: "a", b: "b"}
    assert len(names) == 2 and names[a] == "a" and names[b] == "b"
    assert {a, b, a} == {b, a} and a in [b, a] and a not in [b]
    assert [b, a].index(a) == 1


@pytest.mark.parametrize("x", [1.0, np.float64(1), None, Value(1.0)], ids=repr)
def test_membership_in_a_value_is_a_type_error(x):
    """It would compare with ==, which is identity."""
    for v in (Value([1.0, 2.0]), Value(1.0)):
        check(lambda v=v: x in v, TYPE, "'Value' object is not a container|argument of type 'Value'")
        check(lambda v=v: x not in v, TYPE, "'Value' object is not a container|argument of type 'Value'")


# ---- As a sequence --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("s", [(3,), (1,), (0,), (2, 3), (0, 3), (3, 0), (2, 1, 2)], ids=str)
def test_length_and_iteration_follow_the_first_axis(s):
    (v,) = values(s)
    assert len(v) == s[0]
    rows = list(v)
    assert len(rows) == s[0] and all(type(row) is Value for row in rows)
    for row, expected in zip(rows, v.data):
        np.testing.assert_array_equal(row.data, expected)
        assert row.shape == s[1:]


def test_rows_of_an_iteration_have_gradients():
    check_gradients(
        lambda v: sum(row * (i + 1) for i, row in enumerate(v)), np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    )
    first, second = v = values((2, 2))[0]
    (first * second).sum().backward_all()
    np.testing.assert_array_equal(v.grad, [[3, 4], [1, 2]])


@pytest.mark.parametrize("data", [2.0, np.array(2.0), f32(2)], ids=repr)
def test_numbers_have_no_length_and_no_rows(data):
    check(lambda: len(Value(data)), TYPE, "len|unsized")
    check(lambda: list(Value(data)), TYPE, "len|unsized|iter")
    check(lambda: iter(Value(data)), TYPE, "len|unsized|iter")


# ---- repr -----------------------------------------------------------------------------------------------------------


def test_repr_of_a_value_shows_what_there_is():
    assert repr(Value(3)) == "Value(3.0)"
    assert repr(Value(np.array([1.0, 2.0], f32))) == "Value([1., 2.], shape=(2,), dtype=float32)"
    x = Value([[1.0, 2.0], [3.0, 4.0]], label="x")
    x.sum().backward_all()
    assert repr(x) == (
        "Value([[1., 2.],\n       [3., 4.]], shape=(2, 2), dtype=float64, label='x', grad=[[1., 1.],\n [1., 1.]])"
    )


@pytest.mark.parametrize(
    "make, expected",
    [
        (lambda: Value(2.5, label="w"), "Value(2.5, label='w')"),
        (lambda: Value(f32(1.5)), "Value(1.5, shape=(), dtype=float32)"),
        (lambda: Value(np.array(1.5)), "Value(1.5, shape=(), dtype=float64)"),
        (lambda: Value(np.zeros((0, 2))), "Value([], shape=(0, 2), dtype=float64)"),
        (lambda: Value(1.0) * 2, "Value(2.0)"),
    ],
    ids=["label", "float32", "array_without_axes", "empty", "result"],
)
def test_repr_shows_data_shape_dtype_and_label(make, expected):
    assert repr(make()) == expected


def test_repr_shows_the_gradient_once_there_is_one():
    x = Value(2.0)
    y = x * 3
    z = y + 1
    assert "grad" not in repr(x) + repr(y)
    z.backward_all()
    assert (repr(x), repr(y), repr(z)) == ("Value(2.0, grad=3.0)", "Value(6.0, grad=1.0)", "Value(7.0, grad=1.0)")
    assert x.grad == 3.0
    Optimizer([x]).zero_grad()
    assert repr(x) == "Value(2.0)"


# ---- Copies ---------------------------------------------------------------------------------------------------------

COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{f"pickle_{n}": lambda v, n=n: pickle.loads(pickle.dumps(v, n)) for n in range(2, pickle.HIGHEST_PROTOCOL + 1)},
}
EVERY_COPY = pytest.mark.parametrize("how", list(COPIES))


@EVERY_COPY
@pytest.mark.parametrize("data", [2.0, np.array([1.0, 2.0]), np.array([[1.0]], f32), np.array(3.0)], ids=repr)
def test_leaves_are_copied_with_data_gradient_and_label(data, how):
    v = Value(data, label="w")
    (v * 3).sum().backward_all()
    c = COPIES[how](v)
    assert type(c) is Value and c is not v and c != v
    np.testing.assert_array_equal(c.data, v.data, strict=True)
    np.testing.assert_array_equal(c.grad, v.grad, strict=True)
    assert (type(c.data), type(c.grad)) == (type(v.data), type(v.grad))
    assert (c.label, c.requires_grad, c._prev, c._op, c._backward) == ("w", True, (), "", None)


@EVERY_COPY
def test_a_copied_leaf_shares_no_gradient(how):
    v = Value(np.array([1.0, 2.0]))
    (v * 3).sum().backward_all()
    c = COPIES[how](v)
    assert not np.shares_memory(c.grad, v.grad)
    c.grad[0] = 100.0
    np.testing.assert_array_equal(v.grad, [3, 3])
    (c * 2).sum().backward_all()
    np.testing.assert_array_equal(v.grad, [3, 3])
    np.testing.assert_array_equal(c.grad, [102, 5])
    (v * 5).sum().backward_all()
    np.testing.assert_array_equal(v.grad, [8, 8])
    np.testing.assert_array_equal(c.grad, [102, 5])


@EVERY_COPY
def test_a_leaf_copied_during_a_pass_is_in_no_pass(how):
    """As when one thread saves a model that another one trains: the copy takes no part in that pass."""
    v, copies = Value(np.array([1.0, 2.0])), []

    def _backward(grad):
        copies.append(COPIES[how](v))
        v.add_grad(3 * grad)
        copies.append(COPIES[how](v))

    Value(3 * v.data, (v,), "triple", _backward).sum().backward_all()
    np.testing.assert_array_equal(v.grad, [3, 3])
    assert len(copies) == 2
    for c in copies:
        np.testing.assert_array_equal(c.grad, [0, 0])
        check(lambda c=c: c.add_grad(np.ones(2)), VALUE, "add_grad.*_children")
        c.grad = np.array([5.0, 6.0])
        (c * 2).sum().backward_all()
        np.testing.assert_array_equal(c.grad, [7, 8])


@EVERY_COPY
def test_a_copied_constant_is_a_constant(how):
    with no_grad():
        constant = Value(np.array([1.0, 2.0])) * 2
    for v in (constant, as_value(3.0)):
        c = COPIES[how](v)
        assert not c.requires_grad
        np.testing.assert_array_equal(c.data, v.data)
        with pytest.raises(ValueError, match="no graph"):
            (c * 2).backward_all()


@EVERY_COPY
@pytest.mark.parametrize("f, op", [(lambda x: x + 1, r"\+"), (lambda x: x.tanh(), "tanh")], ids=["+", "tanh"])
def test_the_result_of_an_operation_is_not_copied(f, op, how):
    """Its closures would lead to the original's leaves."""
    x = Value(np.array([1.0, 2.0]))
    y = f(x)
    for thing in [y] if how == "copy" else [y, [x, y], {"y": y}]:  # a copy of a list holds the same Values
        check(lambda thing=thing: COPIES[how](thing), TYPE, rf"'{op}' cannot be copied.*\.data")
    y.sum().backward_all()
    assert np.all(x.grad > 0)


@pytest.mark.parametrize("how", [how for how in COPIES if how != "copy"])
def test_a_copied_model_trains_independently(how):
    np.random.seed(0)
    mlp = MLP(3, [4, 2])
    x = np.random.default_rng(0).standard_normal((5, 3))
    twin = COPIES[how](mlp)
    np.testing.assert_array_equal(twin(x).data, mlp(x).data)
    before, output = [p.data.copy() for p in mlp.parameters()], mlp(x).data
    assert not set(twin.parameters()) & set(mlp.parameters())
    optimizer = Optimizer(twin.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        (twin(x) ** 2).sum().backward_all()
        optimizer.update(lr=0.01)
    for p, q, data in zip(mlp.parameters(), twin.parameters(), before):
        np.testing.assert_array_equal(p.data, data)
        assert not np.any(p.grad) and np.any(q.grad) and not np.array_equal(q.data, data)
    np.testing.assert_array_equal(mlp(x).data, output)


def test_a_copy_of_a_layer_that_is_used_twice_is_used_twice():
    mlp = MLP(2, [2])
    mlp.layers.append(mlp.layers[0])
    twin = copy.deepcopy(mlp)
    assert twin.layers[0] is twin.layers[1] is not mlp.layers[0]
    assert len(twin.parameters()) == 2
