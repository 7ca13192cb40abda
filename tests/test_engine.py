"""The promises of the engine that are not about a single derivative: data, gradients, graphs, memory, layers."""

import contextlib
import gc
import math
import operator
import subprocess
import sys
import textwrap
import tracemalloc
import weakref
from pathlib import Path

import numpy as np
import pytest
from gradcheck import loop_conv2d, operation

import engine
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

f32, f64 = np.float32, np.float64

# Each operation with operands of the shapes given.
OPERATIONS = {
    "+": (operator.add, [(2, 3), (3,)]),
    "-": (operator.sub, [(2, 3), (3,)]),
    "*": (operator.mul, [(2, 3), (3,)]),
    "/": (operator.truediv, [(2, 3), (3,)]),
    "**": (lambda a: a**2, [(2, 3)]),
    "@": (operator.matmul, [(2, 3), (3, 4)]),
    "vector @ vector": (operator.matmul, [(3,), (3,)]),
    "neg": (lambda a: -a, [(2, 3)]),
    "number - a": (lambda a: 2 - a, [(2, 3)]),
    "number / a": (lambda a: 2 / a, [(2, 3)]),
    "a + number": (lambda a: a + 2, [(2, 3)]),
    "a * number": (lambda a: a * 2.5, [(2, 3)]),
    "a / number": (lambda a: a / 3, [(2, 3)]),
    "tanh": (lambda a: a.tanh(), [(2, 3)]),
    "relu": (lambda a: a.relu(), [(2, 3)]),
    "exp": (lambda a: a.exp(), [(2, 3)]),
    "log": (lambda a: a.log(), [(2, 3)]),
    "sum": (lambda a: a.sum(), [(2, 3)]),
    "sum over an axis": (lambda a: a.sum(0), [(2, 3)]),
    "mean": (lambda a: a.mean(), [(2, 3)]),
    "reshape": (lambda a: a.reshape(3, 2), [(2, 3)]),
    "stack": (lambda a, b: stack([a, b, a], 1), [(2, 3), (2, 3)]),
    "conv2d": (lambda x, w, b: conv2d(x, w, b, 2, 1), [(2, 3, 5, 4), (4, 3, 3, 2), (4,)]),
    "max_pooling": (lambda x: max_pooling(x, 2), [(2, 3, 5, 4)]),
    "cross_entropy": (lambda x: cross_entropy(x, [0, 2]), [(2, 3)]),
}
EVERY_OPERATION = pytest.mark.parametrize("op", list(OPERATIONS))


def arrays_for(op, dtype=f64):
    rng = np.random.default_rng(0)
    return [rng.uniform(0.5, 2.0, shape).astype(dtype) for shape in OPERATIONS[op][1]]


def leaves(*arrays):
    return [Value(a) for a in arrays]


def wasted_by(f):
    """How many objects f leaves to the garbage collector, which is off meanwhile."""
    f()  # what is made once and kept
    gc.collect()
    gc.disable()
    try:
        f()
        return gc.collect()
    finally:
        gc.enable()


# ---- Data and dtypes ------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("dtype", [f32, f64])
@EVERY_OPERATION
def test_every_operation_keeps_the_dtype_in_result_and_gradients(op, dtype):
    values = leaves(*arrays_for(op, dtype))
    out = OPERATIONS[op][0](*values)
    (out.sum() * 2).backward_all()
    assert out.data.dtype == dtype
    for v in [out, *values]:
        assert v.grad.dtype == dtype and v.grad.shape == v.data.shape


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
def test_float32_without_axes_meets_python_numbers_and_stays_float32(scalar, op, number):
    a = Value(scalar)
    out = ON_SCALARS[op](a, number)
    assert out.data.dtype == f32 and out.shape == ()
    assert out.data == pytest.approx(ON_SCALARS[op](Value(1.5), number).data, rel=1e-6)
    out.backward_all()
    assert a.grad.dtype == f32 and a.grad.shape == ()


def test_float32_sums_and_means_stay_float32_in_further_arithmetic():
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
def test_python_numbers_stay_python_floats_in_results_and_gradients(op):
    v = Value(0.75)
    out = ELEMENTWISE[op](v)
    assert type(out.data) is float
    assert type(out.grad) is float and type(v.grad) is float and v.grad == 0.0
    out.backward_all()
    assert type(out.grad) is float and type(v.grad) is float


def test_python_number_and_array_give_an_array_and_the_number_a_python_float_as_gradient():
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
def test_float32_and_float64_combine_to_float64_and_each_gets_a_gradient_of_its_own_dtype(f):
    a, b = leaves(np.ones((2, 2), f32), np.ones((2, 2), f64))
    out = f(a, b)
    assert out.data.dtype == f64
    out.sum().backward_all()
    assert a.grad.dtype == f32 and b.grad.dtype == f64


def test_conv2d_of_float32_and_float64_gives_each_a_gradient_of_its_own_dtype():
    x, w, b = leaves(np.ones((1, 1, 3, 3), f32), np.ones((1, 1, 2, 2), f64), np.ones(1, f32))
    out = conv2d(x, w, b)
    assert out.data.dtype == f64
    out.sum().backward_all()
    assert (x.grad.dtype, w.grad.dtype, b.grad.dtype) == (f32, f64, f32)


def test_float32_image_runs_through_the_cnn_in_float32_while_its_parameters_stay_float64():
    np.random.seed(0)
    cnn = CNN()
    x = Value(np.random.default_rng(0).standard_normal((3, 1, 28, 28)).astype(f32))
    optimizer = Optimizer(cnn.parameters())
    loss = cross_entropy(cnn(x), [1, 2, 3])
    loss.backward_all()
    parameters = {id(p) for p in cnn.parameters()}
    for node in topological_order(loss):
        assert node.data.dtype == node.grad.dtype == (f64 if id(node) in parameters else f32), node._op
    optimizer.update(lr=0.1)
    for p in cnn.parameters():
        assert p.data.dtype == p.grad.dtype == f64
    assert cnn(x).data.dtype == f32


def test_results_in_between_have_gradients_of_their_own_dtype_where_float32_meets_float64():
    a = Value(np.array([1.0, 2.0], f32))
    b = a * 2
    (b * np.array([3.0, 4.0])).sum().backward_all()
    assert b.data.dtype == b.grad.dtype == a.grad.dtype == f32
    np.testing.assert_array_equal(a.grad, [6, 8])


@pytest.mark.parametrize(
    "make, shape",
    [
        (lambda: Neuron(3), (4, 3)),
        (lambda: LinearLayer(3, 2), (4, 3)),
        (lambda: MLP(3, [4, 2]), (4, 3)),
        (lambda: Conv2dLayer(2, 3, 3, stride=2, padding=1), (2, 2, 5, 4)),
        (CNN, (2, 1, 28, 28)),
    ],
    ids=["Neuron", "LinearLayer", "MLP", "Conv2dLayer", "CNN"],
)
def test_parameters_learn_the_same_from_a_float32_batch_as_from_a_float64_one(make, shape):
    np.random.seed(0)
    layer = make()
    x = np.random.default_rng(0).standard_normal(shape).astype(f32)
    grads = []
    for dtype in (f32, f64):
        Optimizer(layer.parameters()).zero_grad()
        out = layer(x.astype(dtype))
        (out * np.random.default_rng(1).standard_normal(out.shape).astype(dtype)).sum().backward_all()
        grads.append([p.grad for p in layer.parameters()])
    for single, double in zip(*grads):
        assert np.abs(double).max() > 0.01
        np.testing.assert_allclose(single, double, rtol=1e-5, atol=1e-5 * np.abs(double).max())


@pytest.mark.parametrize("make", [lambda: Neuron(3), lambda: LinearLayer(3, 2), lambda: MLP(3, [4, 2])])
def test_layers_compute_in_the_dtype_of_their_input(make):
    layer = make()
    for x in (np.ones((2, 3), f32), np.ones((2, 3)), np.ones((2, 3), int), [1, 2, 3]):
        out = layer(x)
        assert out.data.dtype == (f32 if getattr(x, "dtype", None) == f32 else f64)
        out.sum().backward_all()
    for p in layer.parameters():
        assert p.data.dtype == p.grad.dtype == f64


def test_conv2d_layer_computes_in_the_dtype_of_its_input():
    layer = Conv2dLayer(2, 3, 3)
    for dtype, expected in [(f32, f32), (f64, f64), (int, f64)]:
        out = layer(np.ones((1, 2, 4, 4), dtype))
        assert out.data.dtype == expected
        out.sum().backward_all()
    assert layer.weight.grad.dtype == layer.bias.grad.dtype == f64


# ---- Operands on both sides, and NumPy's own functions --------------------------------------------------------------


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
def test_augmented_assignment_of_a_value_to_an_array_is_a_type_error_that_leaves_the_array(f):
    a = np.array([1.0, 2.0])
    with pytest.raises(TypeError):
        f(a, Value(np.array([3.0, 4.0])))
    np.testing.assert_array_equal(a, [1, 2])


# ---- Constants ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("constant", [2.0, np.array([2.0, 3.0])], ids=["number", "array"])
@pytest.mark.parametrize("f", [operator.add, operator.sub, operator.mul, operator.truediv])
def test_constants_get_no_gradient(f, constant):
    for out in (f(Value(np.ones(2)), constant), f(constant, Value(np.ones(2)))):
        out.sum().backward_all()
        c = next(v for v in out._prev if not v.requires_grad)
        np.testing.assert_array_equal(c.grad, np.zeros(np.shape(constant)))


@pytest.mark.parametrize("f", [operator.add, operator.sub, operator.mul, operator.truediv, operator.matmul])
def test_a_value_that_is_constant_gets_no_gradient_on_either_side(f):
    a = Value(np.array([[1.0, 2.0], [3.0, 4.0]]))
    with no_grad():
        constant = a * 2
    for operands in ((a, constant), (constant, a)):
        f(*operands).sum().backward_all()
    np.testing.assert_array_equal(constant.grad, np.zeros((2, 2)))


@pytest.mark.parametrize(
    "f",
    [
        lambda: conv2d(np.ones((1, 1, 3, 3)), np.ones((1, 1, 2, 2)), np.ones(1)),
        lambda: max_pooling(np.ones((1, 1, 2, 2)), 2),
        lambda: cross_entropy(np.ones((1, 2)), [0]),
        lambda: stack([np.ones(2), np.ones(2)]) @ np.ones(2) + 1,
    ],
)
def test_what_is_computed_from_constants_is_constant(f):
    out = f()
    assert not out.requires_grad and out._prev == () and out._backward is None
    with pytest.raises(ValueError, match="constants only"):
        out.backward_all()


def test_layers_and_models_take_raw_arrays_as_constants():
    np.random.seed(0)
    for layer, shape in [
        (Neuron(3), (2, 3)),
        (LinearLayer(3, 2), (2, 3)),
        (MLP(3, [2]), (2, 3)),
        (Conv2dLayer(1, 2, 3), (2, 1, 4, 4)),
        (CNN(), (2, 1, 28, 28)),
    ]:
        x = np.random.default_rng(0).standard_normal(shape)
        raw, wrapped = layer(x), layer(Value(x))
        np.testing.assert_array_equal(raw.data, wrapped.data)
        assert sum(not v.requires_grad for v in topological_order(raw)) == 1
        assert all(v.requires_grad for v in topological_order(wrapped))


# ---- Gradients ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [np.ones((2, 3)), np.ones((2, 3), f32), np.array(1.0), np.zeros((0, 2), f32)])
def test_gradient_before_backward_is_zeros_of_the_shape_and_dtype_of_data(data):
    for value in (Value(data), Value(data) * 2):
        np.testing.assert_array_equal(value.grad, np.zeros(data.shape, data.dtype), strict=True)


def test_gradient_of_a_number_before_backward_is_0():
    assert Value(3).grad == 0.0 and type(Value(3).grad) is float


@EVERY_OPERATION
def test_a_leafs_gradient_is_its_own_writable_array_that_shares_memory_with_nothing(op):
    arrays = arrays_for(op)
    values = leaves(*arrays)
    out = OPERATIONS[op][0](*values)
    out.backward_all()
    others = [v for v in topological_order(out) if v not in values]
    for v in values:
        assert v.grad.flags.writeable and v.grad.base is None
        for w in values + others:
            assert w is v or not np.shares_memory(v.grad, w.grad)
            assert not np.shares_memory(v.grad, w.data)
    before = [v.grad.copy() for v in values]
    values[0].grad += 100
    values[0].grad -= 100
    out.backward_all()
    for v, grad in zip(values, before):
        np.testing.assert_allclose(v.grad, 2 * grad, rtol=1e-12)


def test_gradients_of_two_leaves_of_one_sum_are_different_arrays():
    a, b = leaves(np.ones(3), np.ones(3))
    (a + b).backward_all()
    a.grad[0] = 50.0
    np.testing.assert_array_equal(b.grad, [1, 1, 1])


def test_gradient_of_a_root_that_is_a_leaf_is_ones_and_adds_up():
    for data in (np.zeros((2, 2), f32), 5.0):
        v = Value(data)
        v.backward_all()
        v.backward_all()
        np.testing.assert_array_equal(v.grad, np.full(np.shape(data), 2.0))


def test_mutating_a_leafs_gradient_between_passes_changes_nothing_but_the_sum():
    a = Value(np.array([1.0, 2.0]))
    loss = (a * a).sum()
    loss.backward_all()
    a.grad[:] = 10.0
    loss.backward_all()
    np.testing.assert_array_equal(a.grad, [12, 14])


def test_gradient_can_be_assigned_and_is_copied_broadcast_and_cast():
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


@EVERY_OPERATION
def test_inputs_are_never_modified_and_may_be_read_only(op):
    arrays = arrays_for(op)
    copies = [a.copy() for a in arrays]
    for a in arrays:
        a.flags.writeable = False
    values = leaves(*arrays)
    out = OPERATIONS[op][0](*values)
    out.backward_all()
    out.backward_all()
    for v, a, copy in zip(values, arrays, copies):
        np.testing.assert_array_equal(a, copy)
        assert v.data is a
        assert v.grad.flags.writeable


@pytest.mark.parametrize(
    "layout",
    [
        np.asfortranarray,
        lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
        lambda a: a[..., ::-1].copy()[..., ::-1],
        lambda a: np.moveaxis(np.moveaxis(a, 0, -1).copy(), -1, 0),
        lambda a: a.astype(">f8"),
    ],
    ids=["fortran", "every_second", "reversed", "batch_last", "big_endian"],
)
@EVERY_OPERATION
def test_results_and_gradients_do_not_depend_on_memory_layout(op, layout):
    results = []
    for change in (lambda a: a, layout):
        values = leaves(*map(change, arrays_for(op)))
        out = OPERATIONS[op][0](*values)
        (out * np.arange(1.0, 1 + np.size(out.data)).reshape(out.shape)).sum().backward_all()
        results.append([out.data] + [v.grad for v in values])
        assert all(v.grad.dtype == v.data.dtype for v in values)
    for plain, changed in zip(*results):
        np.testing.assert_allclose(changed, plain, rtol=1e-14)


def test_a_broadcast_view_is_good_data():
    x = Value(np.broadcast_to(np.array([1.0, 2.0]), (3, 2)))
    (x * x).sum().backward_all()
    np.testing.assert_array_equal(x.grad, [[2, 4]] * 3)
    x.grad[0, 0] = 7
    np.testing.assert_array_equal(x.grad, [[7, 4], [2, 4], [2, 4]])


# ---- Graphs ---------------------------------------------------------------------------------------------------------


@EVERY_OPERATION
def test_a_second_pass_over_the_same_graph_adds_exactly_once_more(op):
    values = leaves(*arrays_for(op))
    out = (OPERATIONS[op][0](*values).tanh() * 3).sum()
    out.backward_all()
    once = [v.grad.copy() for v in values]
    inside = [(v, np.copy(v.grad)) for v in topological_order(out) if v not in values]
    for k in (2, 3, 4):
        out.backward_all()
        for v, grad in zip(values, once):
            np.testing.assert_allclose(v.grad, k * grad, rtol=1e-14)
        for v, grad in inside:  # those in between start afresh
            np.testing.assert_array_equal(v.grad, grad)


def test_a_second_pass_over_a_graph_of_numbers_adds_exactly_once_more():
    a = Value(3.0)
    b = a * a
    c = b * b
    c.backward_all()
    assert (a.grad, b.grad, c.grad) == (4 * 27.0, 18.0, 1.0)
    c.backward_all()
    assert (a.grad, b.grad, c.grad) == (8 * 27.0, 18.0, 1.0)


def test_two_losses_on_one_graph_add_up():
    a = Value(np.array([1.0, 2.0]))
    shared = a * a
    first, second = (shared * 3).sum(), (shared * shared).sum()
    first.backward_all()
    np.testing.assert_array_equal(a.grad, 6 * a.data)
    second.backward_all()
    np.testing.assert_array_equal(a.grad, 6 * a.data + 4 * a.data**3)
    np.testing.assert_array_equal(shared.grad, 2 * shared.data)


def test_a_backward_pass_from_the_middle_and_then_from_the_end():
    a = Value(2.0)
    b = a * 3
    c = b * b
    b.backward_all()
    assert (a.grad, b.grad) == (3.0, 1.0)
    c.backward_all()
    assert (a.grad, b.grad) == (3.0 + 36.0, 12.0)


def test_diamond_adds_up_both_ways():
    a = Value(2.0)
    b, c = a * 3, a + 1
    d = b * c  # 3a (a + 1)
    d.backward_all()
    assert (a.grad, b.grad, c.grad) == (15.0, 3.0, 6.0)


def test_chain_of_diamonds_visits_each_value_once():
    calls = []

    def doubled(v):
        def gradients(grad):
            calls.append(v)
            return grad, grad

        return operation(v.data + v.data, (v, v), gradients)

    v = a = Value(1.0)
    for _ in range(60):  # 2 ** 60 paths
        v = doubled(v)
    v.backward_all()
    assert a.grad == v.data == 2.0**60
    assert len(calls) == 60
    assert len(topological_order(v)) == 61


@pytest.mark.parametrize(
    "f, expected",
    [
        (lambda v: v + v, 2 + 0 * np.arange(1.0, 4)),
        (lambda v: v - v, 0 * np.arange(1.0, 4)),
        (lambda v: v * v, 2 * np.arange(1.0, 4)),
        (lambda v: v / v, 0 * np.arange(1.0, 4)),
        (lambda v: v @ v, 2 * np.arange(1.0, 4)),
        (lambda v: stack([v, v, v]), 3 + 0 * np.arange(1.0, 4)),
        (lambda v: v.reshape(3, 1) @ v.reshape(1, 3), 12 + 0 * np.arange(1.0, 4)),
    ],
    ids=["v + v", "v - v", "v * v", "v / v", "v @ v", "stack", "outer"],
)
def test_an_operand_used_twice_gets_both_gradients(f, expected):
    v = Value(np.arange(1.0, 4))
    f(v).sum().backward_all()
    np.testing.assert_allclose(v.grad, expected, atol=1e-15)


def test_square_matrix_times_itself():
    v = Value(np.array([[1.0, 2.0], [3.0, 4.0]]))
    (v @ v).sum().backward_all()
    np.testing.assert_array_equal(v.grad, [[7, 11], [9, 13]])  # row sums of v plus column sums, by hand


def test_order_puts_each_value_after_its_operands_and_is_deterministic():
    a, b = Value(1.0), Value(2.0)
    c = a * b
    d = c + a
    order = topological_order(d)
    assert len(order) == len(set(order)) == 4 and order[-1] is d
    for node in order:
        assert all(order.index(child) < order.index(node) for child in node._prev)
    assert topological_order(d) == order
    assert type(d._prev) is tuple and d._prev == (c, a)


CHAIN = """
    import gc, sys, weakref
    from engine import Value
    gc.disable()
    x = Value(1.0)
    v = x + x
    first = weakref.ref(v)
    for _ in range(999_999):
        v = v + x
    v.backward_all()
    assert x.grad == 1_000_001.0 == v.data, x.grad
    last = weakref.ref(v)
    del v
    assert first() is None and last() is None
    print("released")
"""


def test_a_chain_of_a_million_values_runs_backward_and_is_released():
    result = subprocess.run(  # a process of its own: an overflow of the C stack would end the tests
        [sys.executable, "-c", textwrap.dedent(CHAIN)],
        cwd=Path(engine.__file__).parent,
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "released\n", "")


@pytest.mark.parametrize(
    "load", ["lambda name: object()", "lambda name: len(name)", "lambda name: open('/no/such/library')"]
)
def test_engine_is_imported_where_malloc_takes_no_settings(load):
    code = f"import ctypes; ctypes.CDLL = {load}; from engine import Value; print((Value(2.0) * 3).data)"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(engine.__file__).parent, capture_output=True, text=True
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "6.0\n", "")


@EVERY_OPERATION
def test_graph_of_every_operation_is_freed_by_reference_counting(op):
    def step():
        values = leaves(*arrays_for(op))
        OPERATIONS[op][0](*values).sum().backward_all()

    assert wasted_by(step) == 0


def cnn_step(cnn, optimizer, x, y):
    optimizer.zero_grad()
    loss = cross_entropy(cnn(x), y)
    loss.backward_all()
    optimizer.update(lr=0.01)
    return loss


def test_hundreds_of_cnn_steps_keep_nothing_alive_without_the_garbage_collector():
    np.random.seed(0)
    rng = np.random.default_rng(0)
    cnn = CNN()
    optimizer = Optimizer(cnn.parameters())
    x, y = rng.standard_normal((2, 1, 28, 28)).astype(f32), rng.integers(0, 10, 2)

    def steps(n):
        for _ in range(n):
            alive = weakref.ref(cnn_step(cnn, optimizer, x, y))
            assert alive() is None

    def count():
        return sum(isinstance(o, Value) for o in gc.get_objects())

    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        steps(5)
        values, memory = count(), tracemalloc.get_traced_memory()[0]
        steps(300)
        assert count() == values
        assert gc.collect() == 0  # nothing was waiting; Python's own stock of empty tuples is gone now as well
        grown = tracemalloc.get_traced_memory()[0] - memory
        assert grown < 20_000, f"300 steps have left {grown} bytes, where the arrays of one take 400,000"
    finally:
        tracemalloc.stop()
        gc.enable()


def test_a_backward_pass_leaves_the_graph_usable_and_nothing_pending():
    a = Value(np.ones(2))
    b = (a * 2).tanh()
    loss = b.sum()
    loss.backward_all()
    kept = weakref.ref(loss)
    del loss
    assert kept() is None
    (b * b).sum().backward_all()
    assert b.requires_grad


def test_a_backward_pass_keeps_no_gradient_beside_the_leafs_own():
    x, handed = Value(np.array([1.0, 2.0])), []

    def gradients(grad):
        gradient = 2 * grad
        handed.append(weakref.ref(gradient))
        return (gradient,)

    y = operation(2 * x.data, (x,), gradients)
    y.backward_all()
    assert handed[0]() is None
    np.testing.assert_array_equal(x.grad, [2, 2])


# ---- An operation of one's own --------------------------------------------------------------------------------------


def test_an_operation_of_ones_own():
    x = Value(np.array([1.0, 2.0]))
    y = operation(x.data**3, (x,), lambda grad: (grad * 3 * x.data**2,))
    (y * 2).sum().backward_all()
    np.testing.assert_array_equal(x.grad, [6, 24])
    assert y._op == "custom"


def test_a_gradient_that_an_operation_of_ones_own_does_not_give_is_zero():
    x, z = Value(np.array([1.0, 2.0])), Value(np.array([5.0, 6.0]))
    hidden = z * 2
    y = operation(x.data * 1, (x, hidden), lambda grad: (grad,))
    y.sum().backward_all()
    np.testing.assert_array_equal(x.grad, [1, 1])
    np.testing.assert_array_equal(z.grad, [0, 0])
    np.testing.assert_array_equal(hidden.grad, [0, 0])


def test_a_broadcast_gradient_of_an_operation_of_ones_own_is_summed():
    x = Value(np.array([[1.0], [2.0]]))
    y = operation(np.broadcast_to(x.data, (2, 3)).copy(), (x,), lambda grad: (grad,))
    y.backward_all()
    np.testing.assert_array_equal(x.grad, [[3], [3]])


@pytest.mark.parametrize("stage", ["raises", "wrong shape", "too few axes"])
def test_an_exception_in_a_backward_pass_changes_no_gradient(stage):
    def gradients(grad):
        if stage == "raises":
            raise ZeroDivisionError("mine")
        return (np.ones(7) if stage == "wrong shape" else np.ones(2),)

    a, b = Value(np.array([[1.0, 2.0]])), Value(3.0)
    before = (a * b).sum()
    before.backward_all()
    broken = operation(a.data, (a,), gradients)
    inside = broken * b
    loss = inside.sum() + (a * b * b).sum()
    grads = [np.copy(v.grad) for v in (a, b, inside, loss)]
    with pytest.raises(ZeroDivisionError if stage == "raises" else ValueError):
        loss.backward_all()
    for v, grad in zip((a, b, inside, loss), grads):
        np.testing.assert_array_equal(v.grad, grad)
    before.backward_all()  # and later passes are right
    np.testing.assert_array_equal(a.grad, [[6, 6]])
    assert b.grad == 6.0


@pytest.mark.parametrize(
    "grad_shape, shape",
    [
        ((2, 3), (2, 3)),
        ((2, 3), (3,)),
        ((2, 3), (1, 3)),
        ((2, 3), (2, 1)),
        ((2, 3), ()),
        ((4, 2, 3), (2, 1)),
        ((0, 3), (3,)),
    ],
)
def test_unbroadcast_sums_what_broadcasting_repeated(grad_shape, shape):
    grad = np.random.default_rng(0).standard_normal(grad_shape)
    expected = np.zeros(shape)
    positions = np.broadcast_to(np.arange(expected.size).reshape(shape), grad_shape)
    for index in np.ndindex(grad_shape):
        expected.reshape(-1)[positions[index]] += grad[index]
    out = unbroadcast(grad, shape)
    assert out.shape == shape
    np.testing.assert_allclose(out, expected, rtol=1e-12)


# ---- no_grad --------------------------------------------------------------------------------------------------------


@EVERY_OPERATION
def test_no_grad_records_no_graph_for_any_operation(op):
    values = leaves(*arrays_for(op))
    recorded = OPERATIONS[op][0](*values)
    with no_grad():
        out = OPERATIONS[op][0](*values)
    np.testing.assert_array_equal(out.data, recorded.data)
    assert not out.requires_grad and out._prev == () and out._backward is None
    with pytest.raises(ValueError, match="no_grad"):
        out.backward_all()
    for v in values:
        np.testing.assert_array_equal(v.grad, np.zeros(v.shape))
    assert recorded.requires_grad


def test_no_grad_nests():
    a = Value(1.0)
    with no_grad():
        with no_grad():
            assert not (a * 2).requires_grad
        assert not (a * 2).requires_grad
    assert (a * 2).requires_grad


def test_no_grad_ends_with_an_exception():
    a = Value(1.0)
    with contextlib.suppress(KeyError), no_grad():
        raise KeyError
    assert (a * 2).requires_grad


def test_no_grad_results_are_constants_in_later_operations():
    a = Value(np.array([1.0, 2.0]))
    with no_grad():
        b = a * 3
    (a * b).sum().backward_all()
    np.testing.assert_array_equal(a.grad, [3, 6])
    np.testing.assert_array_equal(b.grad, [0, 0])


def test_no_grad_lets_backward_run_inside():
    a = Value(2.0)
    b = a * a
    with no_grad():
        b.backward_all()
    assert a.grad == 4.0


def test_leaves_made_under_no_grad_are_leaves():
    with no_grad():
        a = Value(2.0)
    (a * 3).backward_all()
    assert a.grad == 3.0


def test_no_grad_keeps_no_operand_alive():
    a = Value(np.ones(3))
    with no_grad():
        hidden = a * 2
        alive = weakref.ref(hidden)
        out = hidden.tanh() + 1
        del hidden
        assert alive() is None
    np.testing.assert_allclose(out.data, np.tanh(2.0) + 1)


# ---- Layers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3,), (1, 3), (5, 3), (2, 5, 3), (0, 3)])
def test_layers_map_the_last_axis(shape):
    x = np.random.default_rng(0).standard_normal(shape)
    assert Neuron(3)(x).shape == shape[:-1]
    assert LinearLayer(3, 4)(x).shape == (*shape[:-1], 4)


@pytest.mark.parametrize("shape, n", [((3,), 1), ((1, 3), 1), ((5, 3), 5), ((0, 3), 0)])
def test_mlp_returns_one_row_for_each_sample(shape, n):
    x = np.random.default_rng(0).standard_normal(shape)
    assert MLP(3, [4, 2])(x).shape == (n, 2)
    assert MLP(3, [1])(Value(x)).shape == (n, 1)


@pytest.mark.parametrize(
    "arguments, shape, expected",
    [
        (dict(in_channel=1, out_channel=8, kernel_size=3, padding=1), (2, 1, 28, 28), (2, 8, 28, 28)),
        (dict(in_channel=3, out_channel=2, kernel_size=2, stride=2), (1, 3, 5, 7), (1, 2, 2, 3)),
        (dict(in_channel=2, out_channel=2, kernel_size=3, bias=False), (0, 2, 3, 4), (0, 2, 1, 2)),
    ],
)
def test_conv2d_layer_shapes(arguments, shape, expected):
    layer = Conv2dLayer(**arguments)
    assert layer(np.zeros(shape)).shape == expected
    assert (layer.bias is None) == (arguments.get("bias") is False)


def test_layers_compute_what_their_formulas_say():
    rng = np.random.default_rng(0)
    x, image = rng.standard_normal((4, 3)), rng.standard_normal((2, 2, 5, 4))
    neuron, linear, conv = Neuron(3), LinearLayer(3, 2), Conv2dLayer(2, 3, 3, stride=2, padding=1)
    w, b = neuron.weight.data, neuron.bias.data
    np.testing.assert_allclose(neuron(x).data, np.tanh((x * w).sum(axis=1) + b), rtol=1e-13)
    w, b = linear.weight.data, linear.bias.data
    np.testing.assert_allclose(linear(x).data, (x[:, :, None] * w).sum(axis=1) + b, rtol=1e-13)
    w, b = conv.weight.data, conv.bias.data
    out = conv(image)
    expected = loop_conv2d(image, w, b, 2, 1, np.zeros(out.shape))[0]
    np.testing.assert_allclose(out.data, expected, rtol=1e-12, atol=1e-14)


def test_parameters_are_the_weight_and_the_bias():
    for layer, shapes in [
        (Neuron(3), [(3,), ()]),
        (LinearLayer(3, 4), [(3, 4), (4,)]),
        (Conv2dLayer(2, 3, 5), [(3, 2, 5, 5), (3,)]),
        (Conv2dLayer(2, 3, 5, bias=False), [(3, 2, 5, 5)]),
    ]:
        assert [p.shape for p in layer.parameters()] == shapes
        assert layer.parameters() == [p for p in (layer.weight, layer.bias) if p is not None]
        assert all(p.data.dtype == f64 and p.requires_grad and p._prev == () for p in layer.parameters())
    mlp = MLP(3, [4, 2])
    assert [p.shape for p in mlp.parameters()] == [(3, 4), (4,), (4, 2), (2,)]
    assert [p.shape for p in CNN().parameters()] == [(4, 1, 3, 3), (4,), (8, 4, 3, 3), (8,), (392, 10), (10,)]


@pytest.mark.parametrize(
    "make, fan_in",
    [
        (lambda: Neuron(400), 400),
        (lambda: LinearLayer(25, 400), 25),
        (lambda: Conv2dLayer(4, 50, 3), 36),
        (lambda: MLP(16, [400]), 16),
    ],
)
def test_parameters_are_uniform_within_1_over_the_square_root_of_fan_in(make, fan_in):
    np.random.seed(0)
    bound = 1 / math.sqrt(fan_in)
    drawn = np.concatenate([p.data.reshape(-1) for _ in range(20) for p in make().parameters()])
    assert np.abs(drawn).max() <= bound
    assert drawn.max() > 0.99 * bound and drawn.min() < -0.99 * bound
    assert abs(drawn.mean()) < 0.05 * bound
    assert drawn.std() == pytest.approx(bound / math.sqrt(3), rel=0.03)  # of a uniform distribution
    biases = np.concatenate([make().parameters()[1].data.reshape(-1) for _ in range(50)])
    assert 0 < np.abs(biases).max() <= bound


@pytest.mark.parametrize(
    "make",
    [lambda: Neuron(4), lambda: LinearLayer(4, 2), lambda: MLP(4, [3, 2]), lambda: Conv2dLayer(1, 2, 3), CNN],
)
def test_one_numpy_seed_reproduces_a_layer(make):
    drawn = []
    for seed in (1, 1, 2):
        np.random.seed(seed)
        drawn.append([p.data for p in make().parameters()])
    for a, b, c in zip(*drawn):
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(a, c)


def test_reprs_show_the_architecture():
    assert repr(Neuron(3)) == "Neuron(3)"
    assert repr(LinearLayer(3, 4)) == "LinearLayer(3, 4)"
    assert repr(MLP(3, [4, 2])) == "MLP(\n  layers.0: LinearLayer(3, 4)\n  layers.1: LinearLayer(4, 2)\n)"
    assert repr(Conv2dLayer(1, 8, 3, padding=1)) == "Conv2dLayer(1, 8, 3, bias=True, stride=1, padding=1)"
    assert repr(Conv2dLayer(1, 8, 3, False, 2)) == "Conv2dLayer(1, 8, 3, bias=False, stride=2, padding=0)"


def test_repr_of_a_value_shows_what_there_is():
    assert repr(Value(3)) == "Value(3.0)"
    assert repr(Value(np.array([1.0, 2.0], f32))) == "Value([1., 2.], shape=(2,), dtype=float32)"
    x = Value([[1.0, 2.0], [3.0, 4.0]], label="x")
    x.sum().backward_all()
    assert repr(x) == (
        "Value([[1., 2.],\n       [3., 4.]], shape=(2, 2), dtype=float64, label='x', grad=[[1., 1.],\n [1., 1.]])"
    )


def test_forward_and_call_are_the_same():
    image = (1, 1, 3, 3)
    for layer, shape in [(Neuron(3), 3), (LinearLayer(3, 2), 3), (MLP(3, [2]), 3), (Conv2dLayer(1, 1, 2), image)]:
        x = np.ones(shape)
        np.testing.assert_array_equal(layer(x).data, layer.forward(x).data)


@pytest.mark.parametrize("seed", range(20))
def test_xor_is_learned(seed):
    np.random.seed(seed)
    X = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=float)
    y = np.array([[0], [1], [1], [0]], dtype=float)

    model = MLP(2, [4, 1])
    opt = Optimizer(model.parameters())

    for epoch in range(3000):
        opt.zero_grad()
        pred = model(Value(X))
        diff = pred - Value(y)
        loss = (diff * diff).sum()
        loss.backward_all()
        opt.update(lr=0.05)

    np.testing.assert_allclose(model(X).data, y, atol=0.01)


# ---- Optimizer ------------------------------------------------------------------------------------------------------


def test_update_subtracts_the_learning_rate_times_the_gradient():
    a, b, c = Value(np.array([1.0, 2.0])), Value(3.0), Value(np.array([1.0], f32))
    opt = Optimizer([a, b, c])
    (a * a).sum().backward_all()
    (b * 4).backward_all()
    opt.update(0.25)
    np.testing.assert_array_equal(a.data, [0.5, 1.0], strict=True)
    assert b.data == 2.0 and type(b.data) is float
    np.testing.assert_array_equal(c.data, np.array([1.0], f32), strict=True)
    opt.update(lr=0.25)  # gradients are still there
    np.testing.assert_array_equal(a.data, [0.0, 0.0])
    opt.update(0)
    np.testing.assert_array_equal(a.data, [0.0, 0.0])


def test_update_does_not_write_to_the_arrays_that_were_handed_in():
    data = np.array([1.0, 2.0])
    data.flags.writeable = False
    view = Value(data)
    kept = view * 1
    opt = Optimizer([view])
    kept.sum().backward_all()
    grad = view.grad.copy()
    opt.update(lr=0.5)
    np.testing.assert_array_equal(data, [1, 2])
    np.testing.assert_array_equal(kept.data, [1, 2])
    np.testing.assert_array_equal(view.data, [0.5, 1.5])
    np.testing.assert_array_equal(view.grad, grad)
    assert not np.shares_memory(view.data, view.grad)


@pytest.mark.parametrize("data", [np.array([1.0, 2.0], f32), np.array(1.5, f32), f32(1.5), np.array([1, 2]), 3, 2.5])
def test_update_keeps_shape_and_dtype(data):
    p = Value(data)
    dtype, shape = np.result_type(p.data), p.shape
    (p * 3).sum().backward_all()
    Optimizer([p]).update(np.float64(0.5))
    np.testing.assert_array_equal(p.data, np.asarray(data, f64) - 1.5)
    assert (np.result_type(p.data), p.shape) == (dtype, shape)


def test_zero_grad_clears_the_gradients_of_its_parameters_only():
    a, b, c = Value(np.array([1.0, 2.0], f32)), Value(3.0), Value(np.ones(2))
    opt = Optimizer([a, b])
    (a * b * c).sum().backward_all()
    held = a.grad
    opt.zero_grad()
    np.testing.assert_array_equal(a.grad, np.zeros(2, f32), strict=True)
    assert b.grad == 0.0
    np.testing.assert_array_equal(c.grad, [3, 6])
    np.testing.assert_array_equal(held, [3, 3])  # an array that somebody took stays what it was


def test_optimizer_takes_any_iterable_of_values_in_order():
    a, b = Value(1.0), Value(2.0)
    for parameters in ([a, b], (a, b), iter([a, b])):
        assert list(Optimizer(parameters).parameters) == [a, b]


# ---- Non-finite numbers, large numbers, empty batches ---------------------------------------------------------------


def test_nan_and_infinity_are_data():
    x = Value(np.array([math.nan, math.inf, -math.inf, 1.0]))
    np.testing.assert_array_equal(x.relu().data, [math.nan, math.inf, 0, 1])
    np.testing.assert_array_equal(x.tanh().data, [math.nan, 1, -1, math.tanh(1)])
    np.testing.assert_array_equal((x + 1).data, [math.nan, math.inf, -math.inf, 2])
    np.testing.assert_array_equal(x.exp().data, [math.nan, math.inf, 0, math.exp(1)])
    assert math.isnan(x.sum().data)
    assert math.isnan(Value(math.nan).relu().data) and Value(math.inf).relu().data == math.inf


def test_nan_in_a_pooling_window_gives_nan():
    for position in np.ndindex(2, 2):
        window = np.array([[1.0, 2.0], [3.0, math.inf]])
        window[position] = math.nan
        x = Value(np.stack([window, np.ones((2, 2))])[None])
        out = max_pooling(x, 2)
        np.testing.assert_array_equal(out.data, [[[[math.nan]], [[1.0]]]])
        out.sum().backward_all()
        np.testing.assert_array_equal(x.grad.sum(axis=(2, 3)), [[1, 1]])
        np.testing.assert_array_equal(x.grad[0, 1], [[1, 0], [0, 0]])


def test_max_pooling_of_minus_infinity():
    x = Value(np.full((1, 1, 2, 2), -math.inf))
    out = max_pooling(x, 2)
    assert out.data == -math.inf
    out.backward_all()
    np.testing.assert_array_equal(x.grad[0, 0], [[1, 0], [0, 0]])


@pytest.mark.parametrize(
    "f, expected",
    [
        (lambda: Value(1) / 0, math.inf),
        (lambda: 1 / Value(0), math.inf),
        (lambda: Value(-1.0) / Value(0.0), -math.inf),
        (lambda: Value(0) / 0, math.nan),
        (lambda: Value(0) ** -1, math.inf),
        (lambda: Value(-8.0) ** 0.5, math.nan),
        (lambda: Value(1e300) ** 2, math.inf),
        (lambda: Value(1000.0).exp(), math.inf),
        (lambda: Value(-1.0).log(), math.nan),
        (lambda: Value(0.0).log(0), -math.inf),
        (lambda: Value(np.zeros((0,))).mean(), math.nan),
    ],
)
def test_python_numbers_overflow_and_divide_by_zero_as_numpy_does_with_a_warning(f, expected):
    with pytest.warns(RuntimeWarning):
        out = f()
    np.testing.assert_array_equal(out.data, expected)


def test_python_numbers_multiply_and_add_to_infinity():
    assert (Value(1e300) * 1e300).data == math.inf
    assert (Value(1.7e308) + 1.7e308).data == math.inf


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


@pytest.mark.parametrize(
    "f, shape, expected",
    [
        (lambda x: conv2d(x, np.ones((3, 2, 2, 2)), np.ones(3), 2, 1), (0, 2, 4, 5), (0, 3, 3, 3)),
        (lambda x: max_pooling(x, 2), (0, 2, 4, 5), (0, 2, 2, 2)),
        (lambda x: MLP(3, [4, 2])(x), (0, 3), (0, 2)),
        (lambda x: CNN()(x), (0, 1, 28, 28), (0, 10)),
        (lambda x: x @ np.ones((3, 2)), (0, 3), (0, 2)),
        (lambda x: x.sum(0), (0, 3), (3,)),
        (lambda x: stack([x, x], 1), (0, 3), (0, 2, 3)),
    ],
)
def test_empty_batches_work_forward_and_backward(f, shape, expected):
    x = Value(np.zeros(shape))
    out = f(x)
    assert out.shape == expected
    out.sum().backward_all()
    assert x.grad.shape == shape


def test_parameters_get_zero_gradients_from_an_empty_batch():
    np.random.seed(0)
    cnn = CNN()
    cnn(np.zeros((0, 1, 28, 28), f32)).sum().backward_all()
    for p in cnn.parameters():
        np.testing.assert_array_equal(p.grad, np.zeros(p.shape), strict=True)


# ---- Drawing --------------------------------------------------------------------------------------------------------


def test_draw_graph_is_dot_text_with_labels_operations_data_and_gradients():
    a, b = Value(2.0, label="a"), Value(np.array([1.0, -3.0]), label="b")
    c = a * b
    c.label = "c"
    c.sum().backward_all()
    lines = draw_graph(c).splitlines()
    assert lines[0].startswith("digraph") and lines[-1] == "}"
    boxes = {s: next(line for line in lines if f"{{ {s} |" in line) for s in "abc"}
    assert "data 2" in boxes["a"] and "grad -2" in boxes["a"]
    assert "shape (2,)" in boxes["b"] and "data [ 1., -3.]" in boxes["b"] and "grad [2., 2.]" in boxes["b"]
    assert "*" in boxes["c"] and "grad [1., 1.]" in boxes["c"]
    names = {s: line.split()[0] for s, line in boxes.items()}
    arrows = [line.strip() for line in lines if "->" in line]
    assert sorted(arrows) == sorted(f"{names[s]} -> {names['c']}" for s in "ab")


def test_draw_graph_is_deterministic_and_changes_no_gradient():
    np.random.seed(0)
    mlp = MLP(3, [4, 2])
    out = mlp(np.ones((2, 3))).sum()
    text = draw_graph(out)
    assert text == draw_graph(out)
    out.backward_all()
    assert mlp.parameters()[-1].grad.tolist() == [2, 2]


def test_draw_graph_shows_constants():
    text = draw_graph(Value(2.0) * 3)
    box = next(line for line in text.splitlines() if "constant" in line)
    assert "data 3" in box and "grad" not in box


def test_draw_graph_draws_an_operand_used_twice_with_two_arrows():
    a = Value(2.0)
    arrows = [line.strip() for line in draw_graph(a * a).splitlines() if "->" in line]
    assert len(arrows) == 2 and len(set(arrows)) == 1


def test_draw_graph_leaves_out_the_data_of_large_arrays():
    assert "data" in draw_graph(Value(np.zeros(9)))
    text = draw_graph(Value(np.zeros(10)))
    assert "data" not in text and "shape (10,)" in text


def test_draw_graph_escapes_labels():
    text = draw_graph(Value(1.0, label='a"b\\c{d}|<e>\nf'))
    assert r'a\"b\\c\{d\}\|\<e\>\nf' in text
    assert len(text.splitlines()) == 5


def test_draw_graph_of_thousands_of_values():
    x = v = Value(1.0)
    for _ in range(5000):
        v = v + x
    text = draw_graph(v)
    assert text.count("->") == 10_000 and text.count("label=") == 5001


# ---- Examples -------------------------------------------------------------------------------------------------------


def test_dot_product_example_of_the_specification():
    x, w = Value(np.array([1.0, 2.0])), Value(np.array([3.0, 4.0]))
    y = x @ w
    y.backward_all()
    assert y.data == 11.0
    np.testing.assert_array_equal(x.grad, [3, 4])
    np.testing.assert_array_equal(w.grad, [1, 2])


def sanity(x, relu):
    z = 2 * x + 2 + x
    q = relu(z) + z * x
    h = relu(z * z)
    return h + q + q * x


def more_ops(a, b, relu):
    c = a + b
    d = a * b + b**3
    c += c + 1
    c += 1 + c + (-a)
    d += d * 2 + relu(b + a)
    d += 3 * d + relu(b - a)
    e = c - d
    f = e**2
    g = f / 2.0
    g += 10.0 / f
    return g


def value_and_slopes(f, *points, h=1e-6):
    """What f gives for plain numbers, and its slopes by central differences."""
    slopes = []
    for k in range(len(points)):
        above, below = ([p + s * (i == k) for i, p in enumerate(points)] for s in (h, -h))
        slopes.append((f(*above, lambda x: max(x, 0.0)) - f(*below, lambda x: max(x, 0.0))) / (2 * h))
    return f(*points, lambda x: max(x, 0.0)), slopes


@pytest.mark.parametrize("f, points", [(sanity, (-4.0,)), (more_ops, (-4.0, 2.0))], ids=["sanity", "more_ops"])
def test_the_two_expressions_of_micrograd(f, points):
    expected, slopes = value_and_slopes(f, *points)
    values = [Value(p) for p in points]
    out = f(*values, Value.relu)
    out.backward_all()
    assert out.data == pytest.approx(expected, rel=1e-15)
    for v, slope in zip(values, slopes):
        assert v.grad == pytest.approx(slope, rel=1e-7)


def test_the_two_expressions_of_micrograd_by_hand():
    x = Value(-4.0)  # z = 3x + 2 = -10, relu(z) = 0, q = zx = 40, h = z^2 = 100: y = z^2 + zx + zx^2
    y = sanity(x, Value.relu)
    y.backward_all()
    assert y.data == 100 + 40 - 160 == -20
    assert x.grad == 2 * -10 * 3 + (6 * -4 + 2) + (9 * 16 + 4 * -4) == 46
    a, b = Value(-4.0), Value(2.0)
    g = more_ops(a, b, Value.relu)
    g.backward_all()
    assert g.data == pytest.approx(24.70408163265306, abs=1e-12)
    assert a.grad == pytest.approx(138.8338192419825, abs=1e-10)
    assert b.grad == pytest.approx(645.5772594752186, abs=1e-10)
