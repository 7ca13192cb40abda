"""Misuse: for every public function, class and method one clear ValueError or TypeError, and nothing has changed."""

import math
import operator
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

from engine import (
    MLP,
    Conv2dLayer,
    LinearLayer,
    Neuron,
    Optimizer,
    Value,
    conv2d,
    cross_entropy,
    draw_graph,
    max_pooling,
    no_grad,
    stack,
    topological_order,
    unbroadcast,
)
from model import CNN

VALUE, TYPE = ValueError, TypeError


def shape(*sizes):
    """A pattern for a shape in a message."""
    return r"\(" + ", ".join(map(str, sizes)) + r",?\)"


def misuse(*rows):
    """Parametrise a test with rows: an id, a call or its argument, the class of its error, a message pattern."""
    return pytest.mark.parametrize("call, error, message", [pytest.param(*row[1:], id=row[0]) for row in rows])


def check(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert type(caught.value) is error  # not NumPy's AxisError, which is an IndexError as well
    assert "\n" not in str(caught.value)


def values(*shapes):
    return [Value(np.arange(1.0, 1 + math.prod(s)).reshape(s)) for s in shapes]


# ---- Value ----------------------------------------------------------------------------------------------------------

NOT_DATA = {
    "none": (None, TYPE, "real numbers.*NoneType"),
    "string": ("1", TYPE, "real numbers.*str"),
    "bytes": (b"1", TYPE, "real numbers.*bytes"),
    "complex": (1j, TYPE, "real numbers.*complex"),
    "numpy_complex": (np.complex64(1), TYPE, "real numbers.*complex"),
    "complex_array": (np.ones(2, complex), TYPE, "real numbers.*complex"),
    "object_array": (np.array([1, None], object), TYPE, "real numbers.*object"),
    "object_array_of_numbers": (np.array([1, 2.0], object), TYPE, "real numbers.*object"),
    "string_array": (np.array(["1", "2"]), TYPE, "real numbers"),
    "dates": (np.array(["2020-01-01"], "M8[D]"), TYPE, "real numbers.*datetime"),
    "durations": (np.array([1], "m8[s]"), TYPE, "real numbers.*timedelta"),
    "record_array": (np.zeros(2, [("a", float)]), TYPE, "real numbers"),
    "masked_array": (np.ma.array([1.0, 2.0], mask=[0, 1]), TYPE, "real numbers.*MaskedArray"),
    "ragged_list": ([[1, 2], [3]], VALUE, "inhomogeneous"),
    "list_of_strings": (["a", "b"], TYPE, "real numbers.*list"),
    "list_of_none": ([None, 1.0], TYPE, "real numbers.*list"),
    "dict": ({"a": 1}, TYPE, "real numbers.*dict"),
    "set": ({1, 2}, TYPE, "real numbers.*set"),
    "generator": ((i for i in range(3)), TYPE, "real numbers.*generator"),
    "decimal": (Decimal(1), TYPE, "real numbers.*Decimal"),
    "function": (len, TYPE, "real numbers"),
    "huge_int": (10**400, OverflowError, "too large"),
}


@misuse(
    *((key, lambda data=data: Value(data), error, message) for key, (data, error, message) in NOT_DATA.items()),
    ("value", lambda: Value(Value(1.0)), TYPE, "number or an array.*Value"),
    ("list_of_values", lambda: Value([Value(1.0), Value(2.0)]), TYPE, "Value.*stack"),
    ("children_that_are_no_values", lambda: Value(1.0, (1.0,)), AttributeError, "requires_grad"),
    ("children_that_are_no_tuple", lambda: Value(1.0, 3), TYPE, "not iterable"),
    ("a_backward_that_is_no_function", lambda: Value(1.0, (Value(1.0),), "op", 5), TYPE, "_backward.*function.*int"),
    ("no_data", lambda: Value(), TYPE, "data"),
)
def test_value_rejects(call, error, message):
    check(call, error, message)


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


@pytest.mark.parametrize("data", [np.complex64(1), np.ma.array([1.0, 2.0], mask=[0, 1])], ids=["complex", "masked"])
@pytest.mark.parametrize("symbol", list(OPERATORS))
def test_operators_never_answer_numpys_other_types_on_the_left(symbol, data):
    with pytest.raises(TypeError):
        OPERATORS[symbol](data, values((2,))[0])


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


MATMULS = [
    ((3,), (4,)),
    ((2, 3), (2,)),
    ((2, 3), (2, 3)),
    ((3,), (2, 3)),
    ((2, 2, 3), (3, 3, 2)),
    ((2, 3, 4), (3,)),
    ((), (3,)),
    ((3,), ()),
    ((), ()),
    ((2, 3), ()),
]


@pytest.mark.parametrize("shapes", MATMULS, ids=str)
def test_matmul_rejects_shapes_that_do_not_fit(shapes):
    a, b = values(*shapes)
    message = "@.*" + ".*".join(shape(*s) for s in shapes)
    for call in (lambda: a @ b, lambda: a @ b.data, lambda: a.data @ b):
        check(call, VALUE, message)


def test_matmul_rejects_numbers():
    (v,) = values((3,))
    for call in (lambda: v @ 2, lambda: 2.0 @ v, lambda: Value(2.0) @ v, lambda: Value(2.0) @ Value(3.0)):
        check(call, VALUE, r"@.*\(\)")


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


@misuse(
    ("string", lambda: Value(1.0).log("1"), TYPE, "eps.*real number.*str"),
    ("none", lambda: Value(1.0).log(None), TYPE, "eps.*real number.*NoneType"),
    ("value", lambda: Value(1.0).log(Value(1.0)), TYPE, "eps.*real number.*Value"),
    ("array", lambda: Value(1.0).log(np.ones(2)), TYPE, "eps.*real number.*ndarray"),
    ("complex", lambda: Value(1.0).log(eps=1j), TYPE, "eps.*real number.*complex"),
)
def test_log_rejects_an_eps_that_is(call, error, message):
    check(call, error, message)


WRONG_AXES = [
    ("beyond", 2, VALUE, "axis.*2"),
    ("before", -3, VALUE, "axis.*-3"),
    ("beyond_in_a_tuple", (0, 2), VALUE, "axis.*2"),
    ("before_in_a_tuple", (-3,), VALUE, "axis.*-3"),
    ("twice", (0, 0), VALUE, r"axis.*\(0, 0\)"),
    ("twice_counted_from_both_ends", (1, -1), VALUE, r"axis.*\(1, -1\)"),
    ("huge", 2**70, VALUE, "axis"),
    ("fraction", 0.5, TYPE, "axis.*integer.*0.5"),
    ("whole_float", 1.0, TYPE, "axis.*integer.*1.0"),
    ("boolean", True, TYPE, "axis.*integer.*True"),
    ("string", "0", TYPE, "axis.*integer.*'0'"),
    ("list", [0], TYPE, "axis.*integer"),
    ("none_in_a_tuple", (None,), TYPE, "axis.*integer.*None"),
    ("array", np.array([0, 1]), TYPE, "axis.*integer"),
    ("value", Value(0.0), TYPE, "axis.*integer"),
]


@pytest.mark.parametrize("method", ["sum", "mean"])
@misuse(*WRONG_AXES)
def test_sum_and_mean_reject_an_axis_that_is(method, call, error, message):
    check(lambda: getattr(values((2, 3))[0], method)(axis=call), error, message)


@pytest.mark.parametrize("method", ["sum", "mean"])
@pytest.mark.parametrize("keepdims", [1, 0, None, "yes", 1.0, np.array([True, False]), (1,)], ids=str)
def test_sum_and_mean_reject_a_keepdims_that_is_no_boolean(method, keepdims):
    # sum(0, 1) is no sum over axes 0 and 1
    check(lambda: getattr(values((2, 3))[0], method)(0, keepdims), TYPE, "keepdims.*(bool|True)")


def test_a_number_has_no_axis_to_sum_over():
    for axis in (0, -1, (0,)):
        check(lambda: Value(2.0).sum(axis), VALUE, "axis")
        check(lambda: Value(2.0).mean(axis), VALUE, "axis")


@misuse(
    ("too_many", (7,), VALUE, r"reshape \(2, 3\) to \(7,\)"),
    ("too_few", (2, 2), VALUE, r"reshape \(2, 3\) to \(2, 2\)"),
    ("nothing", (), VALUE, r"reshape \(2, 3\) to \(\)"),
    ("empty_tuple", ((),), VALUE, r"reshape \(2, 3\) to \(\)"),
    ("rest_that_does_not_divide", (4, -1), VALUE, r"reshape \(2, 3\) to \(4, -1\)"),
    ("rest_beside_zero", (0, -1), VALUE, r"reshape \(2, 3\) to \(0, -1\)"),
    ("two_rests", (-1, -1), VALUE, r"reshape \(2, 3\) to \(-1, -1\)"),
    ("below_minus_one", (-2, -3), VALUE, "reshape.*-1.*-2"),
    ("huge", (2**70,), VALUE, "reshape"),
    ("huge_product", (2**40, 2**40), VALUE, "reshape"),
    ("fraction", (1.5, 4), TYPE, "reshape.*integer.*1.5"),
    ("whole_float", (3.0, 2), TYPE, "reshape.*integer.*3.0"),
    ("boolean", (True, 6), TYPE, "reshape.*integer.*True"),
    ("string", ("6",), TYPE, "reshape.*integer.*'6'"),
    ("none", (None,), TYPE, "reshape.*integer.*None"),
    ("two_tuples", ((2,), (3,)), TYPE, "reshape.*integer"),
    ("value", (Value(6.0),), TYPE, "reshape.*integer"),
)
def test_reshape_rejects(call, error, message):
    v = values((2, 3))[0]
    check(lambda: v.reshape(*call), error, message)
    assert v.shape == (2, 3)


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


@pytest.mark.parametrize(
    "f",
    [np.asarray, np.array, lambda v: np.array([v, v]), lambda v: np.asarray(v, float), lambda v: np.stack([v, v])],
)
def test_a_value_rejects_to_become_an_array(f):
    check(lambda: f(values((2,))[0]), TYPE, "Value.*array.*data")


@pytest.mark.parametrize(
    "f", [float, int, abs, lambda v: v.item(), lambda v: f"{v:.2f}", lambda v: 1.0 in v, lambda v: v // 2, lambda v: v % 2]
)
def test_what_a_value_cannot_do_is_a_type_error(f):
    check(lambda: f(values((2,))[0]), TYPE, "Value")


# ---- Backward -------------------------------------------------------------------------------------------------------


def made_under_no_grad():
    with no_grad():
        return values((2,))[0] * 2


@misuse(
    ("made_under_no_grad", lambda: made_under_no_grad().backward_all(), VALUE, "no graph.*no_grad"),
    ("made_of_constants", lambda: (made_under_no_grad() * 2).backward_all(), VALUE, "no graph.*constants"),
    ("children_without_backward", lambda: (Value(1.0, (Value(1.0),)) * 2).backward_all(), VALUE, "_backward"),
)
def test_backward_all_rejects_a_value(call, error, message):
    check(call, error, message)


@pytest.mark.parametrize("given", [(3,), (2, 2, 3), (), (3, 2)], ids=str)
def test_backward_all_rejects_a_gradient_that_does_not_fit(given):
    gradient = np.ones(given)
    a, b = values((2, 2), (2, 2))
    out = Value(a.data, (a, b), "mine", lambda grad: (b.add_grad(grad), a.add_grad(gradient)))
    check(out.backward_all, VALUE, f"gradient of shape {shape(*given)}.*{shape(2, 2)}")
    for v in (a, b, out):
        np.testing.assert_array_equal(v.grad, np.zeros((2, 2)))


@misuse(
    ("smaller", lambda: unbroadcast(np.ones(2), (2, 2)), VALUE, r"\(2,\).*\(2, 2\)"),
    ("other", lambda: unbroadcast(np.ones((2, 3)), (2,)), VALUE, r"\(2, 3\).*\(2,\)"),
    ("larger", lambda: unbroadcast(np.ones((2, 1)), (2, 3)), VALUE, r"\(2, 1\).*\(2, 3\)"),
)
def test_unbroadcast_rejects_a_shape_that_is(call, error, message):
    check(call, error, message)


def test_no_grad_takes_no_argument():
    check(lambda: no_grad(True), TYPE, "no_grad")


@pytest.mark.parametrize("thing", [None, 1.0, np.ones(2), "v", [Value(1.0)]], ids=str)
def test_graph_functions_reject_what_is_no_value(thing):
    check(lambda: draw_graph(thing), TYPE, f"Value.*{type(thing).__name__}")
    check(lambda: topological_order(thing), TYPE, f"Value.*{type(thing).__name__}")


@pytest.mark.parametrize("label", [3, b"a", ["a"]], ids=str)
def test_label_must_be_a_string(label):
    check(lambda: draw_graph(Value(1.0, label=label)), TYPE, f"label.*str.*{type(label).__name__}")


# ---- stack ----------------------------------------------------------------------------------------------------------


@misuse(
    ("nothing", lambda: stack([]), VALUE, r"stack.*one or more.*\[\]"),
    ("an_empty_tuple", lambda: stack(()), VALUE, "stack.*one or more"),
    ("different_shapes", lambda: stack(values((2,), (3,))), VALUE, r"stack.*same shape.*\(2,\).*\(3,\)"),
    ("shapes_that_only_broadcast", lambda: stack(values((2, 3), (3,))), VALUE, r"stack.*same shape.*\(2, 3\).*\(3,\)"),
    ("a_number_and_an_array", lambda: stack([1.0, *values((1,))]), VALUE, r"stack.*same shape.*\(\).*\(1,\)"),
    ("a_value", lambda: stack(values((2, 2))[0]), TYPE, "stack.*list.*Value"),
    ("an_array", lambda: stack(np.ones((2, 2))), TYPE, "stack.*list.*ndarray"),
    ("a_generator", lambda: stack(v for v in values((2,))), TYPE, "stack.*list.*generator"),
    ("none", lambda: stack(None), TYPE, "stack.*list.*NoneType"),
    ("a_list_with_none", lambda: stack([*values((2,)), None]), TYPE, "real numbers.*NoneType"),
    ("a_list_with_a_string", lambda: stack([*values((2,)), "ab"]), TYPE, "real numbers.*str"),
)
def test_stack_rejects(call, error, message):
    check(call, error, message)


@misuse(
    ("beyond", 3, VALUE, "axis.*3"),
    ("before", -4, VALUE, "axis.*-4"),
    ("none", None, TYPE, "axis.*integer.*None"),
    ("two", (0, 1), TYPE, "axis.*integer"),
    ("a_tuple_of_one", (0,), TYPE, "axis.*integer"),
    ("no_axes", (), TYPE, "axis.*integer"),
    ("whole_float", 1.0, TYPE, "axis.*integer.*1.0"),
    ("boolean", True, TYPE, "axis.*integer.*True"),
    ("string", "0", TYPE, "axis.*integer.*'0'"),
)
def test_stack_rejects_an_axis_that_is(call, error, message):
    check(lambda: stack(values((2, 3), (2, 3)), axis=call), error, message)


def test_stack_of_numbers_rejects_an_axis_of_none():
    check(lambda: stack([Value(1.0), Value(2.0)], axis=None), TYPE, "axis.*integer.*None")


# ---- conv2d, max_pooling --------------------------------------------------------------------------------------------

NO_SIZES = [  # for what must be an integer
    ("fraction", 1.5, TYPE, "integer.*1.5"),
    ("whole_float", 1.0, TYPE, "integer.*1.0"),
    ("numpy_float", np.float64(1), TYPE, "integer"),
    ("boolean", True, TYPE, "integer.*True"),
    ("numpy_boolean", np.True_, TYPE, "integer.*True"),
    ("string", "1", TYPE, "integer.*'1'"),
    ("none", None, TYPE, "integer.*None"),
    ("tuple", (1, 1), TYPE, r"integer.*\(1, 1\)"),
    ("array", np.array([1, 1]), TYPE, "integer"),
    ("nan", math.nan, TYPE, "integer.*nan"),
    ("value", Value(1.0), TYPE, "integer"),
]
NO_POSITIVE_SIZES = [
    *NO_SIZES,
    ("zero", 0, VALUE, "at least 1.*0"),
    ("negative", -1, VALUE, "at least 1.*-1"),
]
NO_SIZES_FROM_ZERO = [*NO_SIZES, ("negative", -1, VALUE, "at least 0.*-1")]


def convolve(x=(2, 3, 5, 6), w=(4, 3, 2, 3), b=(4,), stride=1, padding=0):
    return conv2d(np.ones(x), np.ones(w), None if b is None else np.ones(b), stride, padding)


@misuse(
    ("an_image_without_a_batch", lambda: convolve(x=(3, 5, 6)), VALUE, r"x \(N, C, H, W\).*\(3, 5, 6\)"),
    ("five_axes", lambda: convolve(x=(1, 2, 3, 5, 6)), VALUE, r"x \(N, C, H, W\).*\(1, 2, 3, 5, 6\)"),
    ("a_number_for_x", lambda: convolve(x=()), VALUE, r"x \(N, C, H, W\).*\(\)"),
    ("a_kernel_of_three_axes", lambda: convolve(w=(3, 2, 3)), VALUE, r"w \(O, C, kh, kw\).*\(3, 2, 3\)"),
    ("a_kernel_of_five_axes", lambda: convolve(w=(4, 3, 2, 3, 1)), VALUE, r"w \(O, C, kh, kw\).*\(4, 3, 2, 3, 1\)"),
    ("other_channels", lambda: convolve(w=(4, 2, 2, 3)), VALUE, r"C.*\(2, 3, 5, 6\).*\(4, 2, 2, 3\)"),
    ("one_channel_for_three", lambda: convolve(w=(4, 1, 2, 3)), VALUE, r"C.*\(2, 3, 5, 6\).*\(4, 1, 2, 3\)"),
    ("no_output_channels", lambda: convolve(w=(0, 3, 2, 3), b=None), VALUE, r"\(0, 3, 2, 3\)"),
    ("an_empty_kernel", lambda: convolve(w=(4, 3, 0, 3)), VALUE, r"\(4, 3, 0, 3\)"),
    ("no_channels", lambda: convolve(x=(2, 0, 5, 6), w=(4, 0, 2, 3)), VALUE, r"\(2, 0, 5, 6\).*\(4, 0, 2, 3\)"),
    ("too_many_biases", lambda: convolve(b=(5,)), VALUE, r"b \(O,\).*\(4,\).*\(5,\)"),
    ("one_bias_for_four", lambda: convolve(b=(1,)), VALUE, r"b \(O,\).*\(4,\).*\(1,\)"),
    ("a_bias_with_two_axes", lambda: convolve(b=(4, 1)), VALUE, r"b \(O,\).*\(4,\).*\(4, 1\)"),
    ("a_number_for_b", lambda: convolve(b=()), VALUE, r"b \(O,\).*\(4,\).*\(\)"),
    ("a_kernel_higher_than_x", lambda: convolve(w=(4, 3, 6, 3)), VALUE, r"\(6, 3\).*larger.*\(2, 3, 5, 6\)"),
    ("a_kernel_wider_than_x", lambda: convolve(w=(4, 3, 2, 7)), VALUE, r"\(2, 7\).*larger.*\(2, 3, 5, 6\)"),
    ("a_kernel_larger_than_x_padded", lambda: convolve(w=(4, 3, 8, 3), padding=1), VALUE, r"\(8, 3\).*larger.* 1"),
    ("a_kernel_larger_than_x_at_a_stride", lambda: convolve(w=(4, 3, 6, 6), stride=3), VALUE, r"\(6, 6\).*larger"),
    ("an_image_without_pixels", lambda: convolve(x=(2, 3, 0, 0)), VALUE, r"\(2, 3\).*larger.*\(2, 3, 0, 0\)"),
    ("an_image_without_rows", lambda: convolve(x=(2, 3, 0, 6)), VALUE, r"\(2, 3\).*larger.*\(2, 3, 0, 6\)"),
    ("none_for_x", lambda: conv2d(None, np.ones((1, 1, 1, 1))), TYPE, "real numbers.*NoneType"),
    ("none_for_w", lambda: conv2d(np.ones((1, 1, 1, 1)), None), TYPE, "real numbers.*NoneType"),
    ("a_string_for_b", lambda: conv2d(np.ones((1, 1, 1, 1)), np.ones((1, 1, 1, 1)), "b"), TYPE, "real numbers.*str"),
    ("a_complex_x", lambda: conv2d(np.ones((1, 1, 1, 1), complex), np.ones((1, 1, 1, 1))), TYPE, "real numbers"),
    ("a_ragged_x", lambda: conv2d([[1], [1, 2]], np.ones((1, 1, 1, 1))), VALUE, "inhomogeneous"),
)
def test_conv2d_rejects(call, error, message):
    check(call, error, message)


@misuse(*NO_POSITIVE_SIZES)
def test_conv2d_rejects_a_stride_that_is(call, error, message):
    check(lambda: convolve(stride=call), error, f"stride.*{message}")


@misuse(*NO_SIZES_FROM_ZERO)
def test_conv2d_rejects_a_padding_that_is(call, error, message):
    check(lambda: convolve(padding=call), error, f"padding.*{message}")


@misuse(
    ("three_axes", lambda: max_pooling(np.ones((3, 4, 4)), 2), VALUE, r"x \(N, C, H, W\).*\(3, 4, 4\)"),
    ("two_axes", lambda: max_pooling(np.ones((4, 4)), 2), VALUE, r"x \(N, C, H, W\).*\(4, 4\)"),
    ("a_number", lambda: max_pooling(2.0, 2), VALUE, r"x \(N, C, H, W\).*\(\)"),
    ("a_window_higher_than_x", lambda: max_pooling(np.ones((2, 3, 4, 6)), 5), VALUE, r"5.*larger.*\(2, 3, 4, 6\)"),
    ("a_window_wider_than_x", lambda: max_pooling(np.ones((2, 3, 6, 4)), 5), VALUE, r"5.*larger.*\(2, 3, 6, 4\)"),
    ("an_image_without_pixels", lambda: max_pooling(np.ones((2, 3, 0, 0)), 1), VALUE, r"1.*larger.*\(2, 3, 0, 0\)"),
    ("none", lambda: max_pooling(None, 2), TYPE, "real numbers.*NoneType"),
    ("a_string", lambda: max_pooling("x", 2), TYPE, "real numbers.*str"),
    ("no_stride", lambda: max_pooling(np.ones((2, 3, 4, 6))), TYPE, "stride"),
)
def test_max_pooling_rejects(call, error, message):
    check(call, error, message)


@misuse(*NO_POSITIVE_SIZES)
def test_max_pooling_rejects_a_stride_that_is(call, error, message):
    check(lambda: max_pooling(np.ones((1, 1, 4, 4)), call), error, f"stride.*{message}")


# ---- cross_entropy --------------------------------------------------------------------------------------------------


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


# ---- Layers ---------------------------------------------------------------------------------------------------------


@misuse(*NO_POSITIVE_SIZES)
def test_layers_reject_a_size_that_is(call, error, message):
    for make, name in [
        (lambda: Neuron(call), "input_num"),
        (lambda: LinearLayer(call, 2), "input_num"),
        (lambda: LinearLayer(2, call), "output_num"),
        (lambda: MLP(call, [2]), "input_num"),
        (lambda: MLP(2, [call]), "(layer_num|output_num)"),
        (lambda: MLP(2, [3, call, 2]), "(layer_num|output_num)"),
        (lambda: Conv2dLayer(call, 2, 3), "in_channel"),
        (lambda: Conv2dLayer(2, call, 3), "out_channel"),
        (lambda: Conv2dLayer(2, 3, call), "kernel_size"),
        (lambda: Conv2dLayer(2, 3, 3, stride=call), "stride"),
    ]:
        check(make, error, f"{name}.*{message}")


@misuse(*NO_SIZES_FROM_ZERO)
def test_conv2d_layer_rejects_a_padding_that_is(call, error, message):
    check(lambda: Conv2dLayer(2, 3, 3, padding=call), error, f"padding.*{message}")


@pytest.mark.parametrize("bias", [2, 1, 0, None, "yes", np.ones(2), Value(1.0)], ids=str)
def test_conv2d_layer_rejects_a_bias_that_is_no_boolean(bias):
    # Conv2dLayer(1, 8, 3, 2) has no stride of 2
    check(lambda: Conv2dLayer(1, 8, 3, bias), TYPE, "bias.*(bool|True)")


@misuse(
    ("an_empty_list", lambda: MLP(3, []), VALUE, "layer_num"),
    ("an_empty_tuple", lambda: MLP(3, ()), VALUE, "layer_num"),
    ("a_number", lambda: MLP(3, 4), TYPE, "layer_num.*list.*int"),
    ("none", lambda: MLP(3, None), TYPE, "layer_num.*list.*NoneType"),
    ("a_string", lambda: MLP(3, "44"), TYPE, "layer_num.*list.*str"),
    ("nested", lambda: MLP(3, [[4], 2]), TYPE, "integer"),
)
def test_mlp_rejects_layers_that_are(call, error, message):
    check(call, error, message)


LAYERS = {
    "Neuron": (lambda: Neuron(3), "Neuron.*3"),
    "LinearLayer": (lambda: LinearLayer(3, 2), r"LinearLayer\(3, 2\)"),
    "MLP": (lambda: MLP(3, [4, 2]), r"LinearLayer\(3, 4\)|MLP"),
}


@pytest.mark.parametrize("layer", list(LAYERS))
def test_layers_reject_inputs_of_another_shape_or_type(layer):
    make, name = LAYERS[layer]
    layer = make()
    before = [p.data.copy() for p in layer.parameters()]
    for s in [(4,), (2, 4), (3, 2), (1,), (0,), (2, 3, 4)]:
        check(lambda: layer(np.ones(s)), VALUE, f"({name}).*{shape(*s)}")
        check(lambda: layer(Value(np.ones(s))), VALUE, f"({name}).*{shape(*s)}")
    check(lambda: layer(1.0), VALUE, rf"({name}).*\(\)")
    check(lambda: layer(None), TYPE, "real numbers.*NoneType")
    check(lambda: layer("x"), TYPE, "real numbers.*str")
    check(lambda: layer([[1, 2, 3], [1, 2]]), VALUE, "inhomogeneous")
    check(lambda: layer(), TYPE, "x")
    for p, data in zip(layer.parameters(), before):
        np.testing.assert_array_equal(p.data, data)
        np.testing.assert_array_equal(p.grad, np.zeros(p.shape))


@pytest.mark.parametrize("s", [(2, 5, 3), (1, 1, 1, 3)], ids=str)
def test_mlp_rejects_more_than_two_axes(s):
    # its result (N, out) would have lost them
    check(lambda: MLP(3, [4, 2])(np.ones(s)), VALUE, shape(*s))


@misuse(
    ("other_channels", (2, 1, 5, 5), VALUE, r"\(2, 1, 5, 5\)"),
    ("an_image_without_a_batch", (3, 5, 5), VALUE, r"\(3, 5, 5\)"),
    ("a_vector", (5,), VALUE, r"\(5,\)"),
    ("an_image_smaller_than_the_kernel", (2, 3, 2, 5), VALUE, r"\(3, 3\).*larger.*\(2, 3, 2, 5\)"),
)
def test_conv2d_layer_rejects(call, error, message):
    check(lambda: Conv2dLayer(3, 2, 3)(np.ones(call)), error, message)


def test_conv2d_layer_rejects_other_types():
    for x, error, message in (NOT_DATA[key] for key in ("none", "string", "complex", "ragged_list", "object_array")):
        check(lambda: Conv2dLayer(3, 2, 3)(x), error, message)


@pytest.mark.parametrize(
    "s", [(28, 28), (1, 28, 28), (2, 28, 28), (784,), (2, 784), (2, 3, 28, 28), (2, 1, 27, 28), (2, 1, 28, 29),
          (2, 1, 32, 32), (2, 28, 28, 1), (1, 2, 1, 28, 28), ()], ids=str)  # fmt: skip
def test_cnn_rejects_images_that_are_not_n_1_28_28(s):
    check(lambda: CNN()(np.ones(s)), VALUE, rf"\(n, 1, 28, 28\).*{shape(*s)}")
    check(lambda: CNN().forward(Value(np.ones(s))), VALUE, rf"\(n, 1, 28, 28\).*{shape(*s)}")


def test_cnn_rejects_other_types():
    for x, error, message in (NOT_DATA[key] for key in ("none", "string", "complex", "ragged_list", "object_array")):
        check(lambda: CNN()(x), error, message)


# ---- Optimizer ------------------------------------------------------------------------------------------------------

PARAMETER = Value(1.0)


@misuse(
    ("nothing", lambda: Optimizer([]), VALUE, "parameters.*none"),
    ("an_empty_iterator", lambda: Optimizer(iter([])), VALUE, "parameters.*none"),
    ("none", lambda: Optimizer(None), TYPE, "parameters.*NoneType"),
    ("a_value", lambda: Optimizer(PARAMETER), TYPE, "parameters.*list.*Value"),
    ("a_layer", lambda: Optimizer(Neuron(2)), TYPE, "parameters.*list.*Neuron"),
    ("the_method_itself", lambda: Optimizer(Neuron(2).parameters), TYPE, "parameters.*list.*method"),
    ("a_string", lambda: Optimizer("ab"), TYPE, "parameters.*str"),
    ("numbers", lambda: Optimizer([1.0]), TYPE, "parameters.*float"),
    ("an_array", lambda: Optimizer(np.ones(2)), TYPE, "parameters.*float64"),
    ("a_list_with_none", lambda: Optimizer([PARAMETER, None]), TYPE, "parameters.*NoneType"),
    ("nested_lists", lambda: Optimizer([[PARAMETER]]), TYPE, "parameters.*list"),
    ("a_parameter_twice", lambda: Optimizer([PARAMETER, PARAMETER]), VALUE, "parameters.*twice"),
    ("the_result_of_an_operation", lambda: Optimizer([PARAMETER * 2]), VALUE, r"parameters.*'\*'"),
    ("a_constant", lambda: Optimizer([made_under_no_grad()]), VALUE, "parameters"),
)
def test_optimizer_rejects(call, error, message):
    check(call, error, message)


@misuse(
    ("none", None, TYPE, "lr.*real number.*NoneType"),
    ("string", "0.1", TYPE, "lr.*real number.*str"),
    ("complex", 1j, TYPE, "lr.*real number.*complex"),
    ("array", np.array([0.1]), TYPE, "lr.*real number.*ndarray"),
    ("value", Value(0.1), TYPE, "lr.*real number.*Value"),
    ("decimal", Decimal("0.1"), TYPE, "lr.*real number.*Decimal"),
    ("list", [0.1], TYPE, "lr.*real number.*list"),
    ("nan", math.nan, VALUE, "lr.*finite.*nan"),
    ("infinite", math.inf, VALUE, "lr.*finite.*inf"),
    ("minus_infinite", -math.inf, VALUE, "lr.*finite.*-inf"),
    ("negative", -0.1, VALUE, "lr.*at least 0.*-0.1"),
    ("huge_int", 10**400, OverflowError, "too large"),
)
def test_update_rejects_a_learning_rate_that_is(call, error, message):
    a, b = Value(np.array([1.0, 2.0])), Value(3.0)
    opt = Optimizer([a, b])
    (a * b).sum().backward_all()
    check(lambda: opt.update(call), error, message)
    check(lambda: opt.update(lr=call), error, message)
    np.testing.assert_array_equal(a.data, [1, 2])
    np.testing.assert_array_equal(a.grad, [3, 3])
    assert (b.data, b.grad) == (3.0, 3.0)


def test_update_rejects_no_learning_rate():
    check(lambda: Optimizer([Value(1.0)]).update(), TYPE, "lr")
