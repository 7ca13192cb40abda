"""The optimizer takes a step along the negative gradient with all its parameters or with none, and trains."""

import math
from decimal import Decimal

import numpy as np
import pytest

from engine import MLP, Neuron, Optimizer, Value, as_value
from tests.misuse import TYPE, VALUE, check, made_under_no_grad, misuse

f32, f64 = np.float32, np.float64


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


def test_update_does_not_write_to_the_arrays_it_was_given():
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


@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize("by", ["gradient", "overflow"])
def test_update_changes_all_parameters_or_none(by, position):
    parameters = [Value(np.array([1.0, 2.0])) for _ in range(3)]
    optimizer = Optimizer(parameters)
    sum(p.sum() * 2 for p in parameters).backward_all()
    if by == "gradient":  # an array of another shape, as a _backward with a mistake may leave it
        parameters[position]._grad = np.ones(7)
    else:
        parameters[position].data = np.array([1.0, -1.7e308])
        parameters[position].grad = 1.7e308
    before = [p.data for p in parameters]
    with np.errstate(over="raise"), pytest.raises((ValueError, FloatingPointError)):
        optimizer.update(lr=0.5)
    assert all(p.data is data for p, data in zip(parameters, before))


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


def test_after_zero_grad_the_next_pass_starts_afresh():
    a = Value(np.array([1.0, 2.0]))
    optimizer = Optimizer([a])
    for _ in range(3):
        optimizer.zero_grad()
        (a * a).sum().backward_all()
        np.testing.assert_array_equal(a.grad, [2, 4])
    np.testing.assert_array_equal(a.data, [1, 2])


def test_optimizer_takes_any_iterable_of_values_in_order():
    a, b = Value(1.0), Value(2.0)
    for parameters in ([a, b], (a, b), iter([a, b])):
        assert list(Optimizer(parameters).parameters) == [a, b]


def test_optimizer_keeps_its_own_list():
    given = [Value(1.0), Value(2.0)]
    optimizer = Optimizer(given)
    given.pop()
    assert len(optimizer.parameters) == 2


@pytest.mark.parametrize("seed", range(20))
def test_xor_is_learned(seed):
    np.random.seed(seed)
    X = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=float)
    y = np.array([[0], [1], [1], [0]], dtype=float)

    model = MLP(2, [4, 1])
    opt = Optimizer(model.parameters())

    for _ in range(3000):
        opt.zero_grad()
        pred = model(Value(X))
        diff = pred - Value(y)
        loss = (diff * diff).sum()
        loss.backward_all()
        opt.update(lr=0.05)

    np.testing.assert_allclose(model(X).data, y, atol=0.01)


# ---- Misuse ---------------------------------------------------------------------------------------------------------

PARAMETER = Value(1.0)


def test_update_keeps_the_gradient_of_a_0d_array():
    """NumPy makes a scalar of it, which is another type of data. The gradient stays until zero_grad."""
    x = Value(np.array(2.0))
    (x * 3.0).backward_all()
    Optimizer([x]).update(lr=0.5)
    assert x.data == 0.5 and x.grad == 3


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
    ("a_constant", lambda: Optimizer([as_value(1.0)]), VALUE, "parameters must be leaves.*got a constant"),
    ("made_under_no_grad", lambda: Optimizer([made_under_no_grad()]), VALUE, "parameters"),
)
def test_optimizer_rejects(call, error, message):
    check(call, error, message)


@pytest.mark.parametrize("data", [1.0, np.ones(3), np.ones((2, 2)), np.array(1.0)], ids=repr)
def test_optimizer_rejects_a_value_in_place_of_a_list(data):
    """Although a Value can be iterated over."""
    check(lambda: Optimizer(Value(data)), TYPE, "^parameters must be a list of Values, got Value")


def test_optimizer_rejects_the_rows_of_a_value():
    check(lambda: Optimizer(iter(Value(np.ones((2, 2))))), VALUE, r"parameters must be leaves.*'\[\]'")


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
