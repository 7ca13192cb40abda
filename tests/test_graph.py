"""backward_all adds every gradient exactly once or not at all, and a graph lives no longer than its last Value."""

import contextlib
import gc
import operator
import subprocess
import sys
import textwrap
import threading
import tracemalloc
import weakref
from pathlib import Path

import numpy as np
import pytest

import engine
from engine import (
    MLP,
    Optimizer,
    Value,
    conv2d,
    cross_entropy,
    max_pooling,
    no_grad,
    stack,
    topological_order,
    unbroadcast,
)
from model import CNN
from tests.gradcheck import check_gradients, operation
from tests.misuse import TYPE, VALUE, check, made_under_no_grad, misuse, shape, values
from tests.operations import EVERY_OPERATION, case, examples, naming

f32, f64 = np.float32, np.float64


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


# ---- The graph ------------------------------------------------------------------------------------------------------


def test_order_puts_each_value_after_its_operands():
    a, b = Value(1.0), Value(2.0)
    c = a * b
    d = c + a
    order = topological_order(d)
    assert len(order) == len(set(order)) == 4 and order[-1] is d
    for node in order:
        assert all(order.index(child) < order.index(node) for child in node._prev)
    assert topological_order(d) == order
    assert type(d._prev) is tuple and d._prev == (c, a)


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


def test_diamond_adds_up_both_ways():
    a = Value(2.0)
    b, c = a * 3, a + 1
    d = b * c  # 3a (a + 1)
    d.backward_all()
    assert (a.grad, b.grad, c.grad) == (15.0, 3.0, 6.0)


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


def test_results_in_between_have_gradients_of_their_own_dtype():
    a = Value(np.array([1.0, 2.0], f32))
    b = a * 2
    (b * np.array([3.0, 4.0])).sum().backward_all()
    assert b.data.dtype == b.grad.dtype == a.grad.dtype == f32
    np.testing.assert_array_equal(a.grad, [6, 8])


# ---- Several passes -------------------------------------------------------------------------------------------------


@EVERY_OPERATION
def test_a_second_pass_adds_exactly_once_more(name):
    for c in examples(name):
        with naming(c):
            operands = c.values()
            out = (c(*operands).tanh() * 3).sum()
            out.backward_all()
            once = [v.grad.copy() for v in operands]
            inside = [(v, np.copy(v.grad)) for v in topological_order(out) if v not in operands]
            for k in (2, 3, 4):
                out.backward_all()
                for v, grad in zip(operands, once):
                    np.testing.assert_allclose(v.grad, k * grad, rtol=1e-14)
                for v, grad in inside:  # those in between start afresh
                    np.testing.assert_array_equal(v.grad, grad)


def test_a_second_pass_over_a_graph_of_numbers():
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


def test_gradient_of_a_root_that_is_a_leaf_is_ones_and_adds_up():
    for data in (np.zeros((2, 2), f32), 5.0):
        v = Value(data)
        v.backward_all()
        v.backward_all()
        np.testing.assert_array_equal(v.grad, np.full(np.shape(data), 2.0))


def test_backward_is_backward_all():
    assert Value.backward is Value.backward_all
    v = Value(3.0)
    (v * v).backward()
    assert v.grad == 6.0


def test_a_backward_pass_leaves_the_graph_usable():
    a = Value(np.ones(2))
    b = (a * 2).tanh()
    loss = b.sum()
    loss.backward_all()
    kept = weakref.ref(loss)
    del loss
    assert kept() is None
    (b * b).sum().backward_all()
    assert b.requires_grad


# ---- Each gradient is an array of its own ---------------------------------------------------------------------------


@EVERY_OPERATION
def test_a_leafs_gradient_shares_memory_with_nothing(name):
    for c in examples(name):
        with naming(c):
            operands = c.values()
            out = c(*operands)
            out.backward_all()
            others = [v for v in topological_order(out) if v not in operands]
            for v in operands:
                assert v.grad.flags.writeable and v.grad.base is None
                for w in operands + others:
                    assert w is v or not np.shares_memory(v.grad, w.grad)
                    assert not np.shares_memory(v.grad, w.data)
            before = [v.grad.copy() for v in operands]
            operands[0].grad *= 2
            operands[0].grad /= 2
            out.backward_all()
            for v, grad in zip(operands, before):
                np.testing.assert_allclose(v.grad, 2 * grad, rtol=1e-12)


@EVERY_OPERATION
def test_a_result_s_gradient_is_its_own_writable_array(name):
    for c in examples(name):
        with naming(c):
            operands = c.values()
            inner = [v * 1 for v in operands]
            out = c(*inner)
            loss = (out * 2).sum()
            loss.backward_all()
            nodes = [v for v in topological_order(loss) if v.requires_grad]
            grads = [v.grad for v in nodes]
            for v, grad in zip(nodes, grads):
                assert v.grad is grad and grad.flags.writeable and grad.shape == v.shape and grad.dtype == v.dtype
            for i, grad in enumerate(grads):
                assert not any(np.shares_memory(grad, other) for other in grads[:i])


@pytest.mark.parametrize(
    "f",
    [
        lambda b, c: b + c,
        lambda b, c: b - c,
        lambda b, c: stack([b, c]),
        lambda b, c: b.reshape(3, 2) + c.reshape(3, 2),
        lambda b, c: b.T + c.T,
        lambda b, c: b[:] + c[::-1],
        lambda b, c: (b + c).sum() + 0,
    ],
    ids=["+", "-", "stack", "reshape", "T", "index", "sum"],
)
def test_writing_to_one_inner_gradient_changes_no_other(f):
    a = Value(np.ones((2, 3)))
    b, c = a * 2, a * 3
    y = f(b, c)
    y.sum().backward_all()
    assert b.grad is b.grad and c.grad is c.grad and b.grad is not c.grad
    before = [v.grad.copy() for v in (a, c, y)]
    b.grad[:] = 50.0
    for v, grad in zip((a, c, y), before):
        np.testing.assert_array_equal(v.grad, grad)
    np.testing.assert_array_equal(b.grad, np.full((2, 3), 50.0))
    y.sum().backward_all()
    np.testing.assert_array_equal(np.abs(b.grad), np.ones((2, 3)))
    np.testing.assert_array_equal(a.grad, 2 * before[0])


def test_gradients_of_two_leaves_are_different_arrays():
    a, b = leaves(np.ones(3), np.ones(3))
    (a + b).backward_all()
    a.grad[0] = 50.0
    np.testing.assert_array_equal(b.grad, [1, 1, 1])


def test_a_leafs_gradient_may_be_changed_between_passes():
    a = Value(np.array([1.0, 2.0]))
    loss = (a * a).sum()
    loss.backward_all()
    a.grad[:] = 10.0
    loss.backward_all()
    np.testing.assert_array_equal(a.grad, [12, 14])


# ---- An operation of one's own --------------------------------------------------------------------------------------


def test_an_operation_of_ones_own():
    x = Value(np.array([1.0, 2.0]))
    y = operation(x.data**3, (x,), lambda grad: (grad * 3 * x.data**2,))
    (y * 2).sum().backward_all()
    np.testing.assert_array_equal(x.grad, [6, 24])
    assert y._op == "custom"


def test_a_gradient_that_is_not_given_is_zero():
    x, z = Value(np.array([1.0, 2.0])), Value(np.array([5.0, 6.0]))
    hidden = z * 2
    y = operation(x.data * 1, (x, hidden), lambda grad: (grad,))
    y.sum().backward_all()
    np.testing.assert_array_equal(x.grad, [1, 1])
    np.testing.assert_array_equal(z.grad, [0, 0])
    np.testing.assert_array_equal(hidden.grad, [0, 0])


def test_a_broadcast_gradient_is_summed():
    x = Value(np.array([[1.0], [2.0]]))
    y = operation(np.broadcast_to(x.data, (2, 3)).copy(), (x,), lambda grad: (grad,))
    y.backward_all()
    np.testing.assert_array_equal(x.grad, [[3], [3]])


@pytest.mark.parametrize("children", [tuple, list, iter, lambda v: (x for x in v), set, lambda v: dict.fromkeys(v)])
def test_children_may_be_any_iterable(children):
    a, b = leaves(np.array([1.0, 2.0]), np.array([3.0, 4.0]))
    out = Value(
        a.data * b.data, children([a, b]), "mine", lambda grad: (a.add_grad(grad * b.data), b.add_grad(grad * a.data))
    )
    assert type(out._prev) is tuple and set(out._prev) == {a, b} and out.requires_grad
    out.backward_all()
    np.testing.assert_array_equal(a.grad, [3, 4])
    np.testing.assert_array_equal(b.grad, [1, 2])


def test_children_may_be_a_generator_of_constants():
    a = Value(1.0)
    with no_grad():
        assert not Value(2.0, (v for v in [a]), "mine", lambda grad: None).requires_grad
    assert not Value(2.0, (v for v in [made_under_no_grad()]), "mine", lambda grad: None).requires_grad


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


@pytest.mark.parametrize(
    "other", ["a leaf outside", "an inner value outside", "one whose turn is over", "a leaf inside"]
)
def test_add_grad_for_a_value_that_is_no_child_is_refused(other):
    """What is added to a Value that has had its turn, or is in no pass, would be lost or come too early."""
    x, y = leaves(np.array([1.0, 2.0]), np.array([3.0, 4.0]))
    (x * y).sum().backward_all()

    def _backward(grad):
        x.add_grad(grad)
        wrong.add_grad(grad)

    mine = Value(x.data * 1, (x,), "mine", _backward)
    result, hidden = mine * 3, y * 2
    leaf = Value(np.array([5.0, 6.0]))
    loss = (leaf + result).sum() if other == "a leaf inside" else result.sum()
    choices = {
        "a leaf outside": y,
        "an inner value outside": hidden,
        "one whose turn is over": result,
        "a leaf inside": leaf,
    }
    wrong = choices[other]
    if other == "a leaf inside":
        assert topological_order(loss).index(leaf) > topological_order(loss).index(mine)  # its turn is over
    checked = [x, y, mine, result, hidden, leaf]
    before = [np.copy(v.grad) for v in checked]
    check(loss.backward_all, VALUE, "add_grad.*_children.*backward_all")
    for v, grad in zip(checked, before):
        np.testing.assert_array_equal(v.grad, grad)
    (x * y).sum().backward_all()  # and later passes are right
    np.testing.assert_array_equal(x.grad, 2 * before[0])
    np.testing.assert_array_equal(y.grad, 2 * before[1])


def test_add_grad_outside_of_a_pass_is_refused():
    a = Value(np.array([1.0, 2.0]))
    b = a * 2
    number = Value(2.0)
    for _ in range(2):
        for v in (a, b, number):
            before = np.copy(v.grad)
            check(lambda v=v: v.add_grad(np.ones(v.shape)), VALUE, "add_grad.*_children.*backward_all")
            np.testing.assert_array_equal(v.grad, before)
        b.sum().backward_all()  # nor after one
    np.testing.assert_array_equal(a.grad, [4, 4])
    with contextlib.suppress(ZeroDivisionError):
        operation(a.data, (a,), lambda grad: 1 / 0).backward_all()
    check(lambda: a.add_grad(np.ones(2)), VALUE, "add_grad.*_children.*backward_all")  # nor after one that failed


def test_add_grad_of_a_constant_does_nothing():
    constant = made_under_no_grad()
    constant.add_grad(np.ones(2))
    np.testing.assert_array_equal(constant.grad, [0, 0])


# ---- All or nothing -------------------------------------------------------------------------------------------------


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


@EVERY_OPERATION
def test_a_failing_pass_changes_no_gradient(name):
    """The last closure of the pass raises, when those of the operation have been called."""
    c = case(name)
    operands = c.values()
    broken = []

    def gradients(grad):
        if broken:
            raise ZeroDivisionError("mine")
        return (grad,)

    inside = [operation(v.data, (v,), gradients) for v in operands]
    loss = c(*inside).sum()
    loss.backward_all()
    checked = [*operands, *inside, loss]
    before = [np.copy(v.grad) for v in checked]
    broken.append(True)
    with pytest.raises(ZeroDivisionError, match="mine"):
        loss.backward_all()
    for v, grad in zip(checked, before):
        np.testing.assert_array_equal(v.grad, grad)
    broken.clear()
    loss.backward_all()
    for v, grad in zip(operands, before):
        np.testing.assert_allclose(v.grad, 2 * grad, rtol=1e-14)


def test_a_total_that_overflows_changes_no_gradient():
    """The pass itself raises nothing, but the sum of a leaf's gradients of two passes does."""
    a, b = leaves(np.array([1.0]), np.array([1.0]))
    middle = a * 1e308 + b
    loss = middle.sum()
    with np.errstate(over="raise"):
        loss.backward_all()
        before = [v.grad.copy() for v in (a, b, middle, loss)]
        np.testing.assert_array_equal(before[0], [1e308])
        middle.grad = 7.0
        with pytest.raises(FloatingPointError):
            loss.backward_all()
    np.testing.assert_array_equal(a.grad, [1e308])
    np.testing.assert_array_equal(b.grad, [1])
    np.testing.assert_array_equal(middle.grad, [7])
    a.grad = 0.0
    loss.backward_all()
    np.testing.assert_array_equal(a.grad, [1e308])
    np.testing.assert_array_equal(b.grad, [2])


def test_leaves_before_one_that_overflows_are_unchanged():
    many = leaves(*np.ones((5, 1)))
    loss = sum(v * (1e308 if i == 2 else 1.0) for i, v in enumerate(many)).sum()
    loss.backward_all()
    with np.errstate(over="raise"), pytest.raises(FloatingPointError):
        loss.backward_all()
    assert [v.grad.item() for v in many] == [1, 1, 1e308, 1, 1]


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_pass_changes_no_gradient(interruption):
    def gradients(grad):
        raise interruption

    a = Value(np.array([1.0, 2.0]))
    loss = operation(a.data, (a,), gradients).sum() + (a * 3).sum()
    with pytest.raises(interruption):
        loss.backward_all()
    np.testing.assert_array_equal(a.grad, [0, 0])
    (a * 3).sum().backward_all()
    np.testing.assert_array_equal(a.grad, [3, 3])


# ---- A pass inside a pass -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [True, False], ids=["the_inner_first", "the_inner_last"])
def test_backward_all_inside_of_a_backward_adds_up(first):
    """As checkpoints do: the forward pass is repeated in the backward pass. Each path gives w a gradient of [1 1 1]."""
    w = Value(np.ones(3))

    def gradients(grad):
        (w * 1).backward_all()
        return (grad,)

    x = Value(np.ones(3))
    inner = operation(x.data, (x,), gradients)
    outer = w * 1
    loss = (inner + outer if first else outer + inner).sum()
    loss.backward_all()
    np.testing.assert_array_equal(w.grad, [2, 2, 2])
    np.testing.assert_array_equal(x.grad, [1, 1, 1])
    loss.backward_all()
    np.testing.assert_array_equal(w.grad, [4, 4, 4])


def test_a_checkpoint_is_right():
    """An operation that keeps nothing of its inside and computes it again, where w is a leaf of both graphs."""
    w, data = Value(np.array([1.0, 2.0, 3.0])), np.array([0.5, -1.0, 2.0])

    def checkpoint(v):
        def gradients(grad):
            again = Value(v.data)
            (again.tanh() * w * grad).sum().backward_all()  # w gets its gradient here
            return (again.grad,)

        with no_grad():
            out = v.tanh() * w
        return operation(out.data, (v,), gradients)

    x, plain_x, plain_w = Value(data), Value(data), Value(w.data)
    loss = (checkpoint(x * 2) * w).sum()
    loss.backward_all()
    ((plain_x * 2).tanh() * plain_w * plain_w).sum().backward_all()
    np.testing.assert_allclose(x.grad, plain_x.grad, rtol=1e-14)
    np.testing.assert_allclose(w.grad, plain_w.grad, rtol=1e-14)


def test_an_inner_pass_over_a_leaf_whose_outer_turn_is_over():
    w, x = leaves(np.ones(3), np.ones(3))
    turns = []

    def watched(v, name, inner=None):
        def gradients(grad):
            turns.append(name)
            if inner:
                inner()
            return (grad,)

        return operation(v.data, (v,), gradients)

    late = watched(x, "x", lambda: (w * 1).backward_all())
    for make in (lambda: watched(w, "w") + late, lambda: late + watched(w, "w")):
        w.grad = 0
        make().sum().backward_all()
        np.testing.assert_array_equal(w.grad, [2, 2, 2])
    assert {tuple(turns[:2]), tuple(turns[2:])} == {("w", "x"), ("x", "w")}


def test_a_failing_inner_pass_leaves_the_outer_one_right():
    w, x = leaves(np.ones(3), np.ones(3))

    def fails(grad):
        raise ZeroDivisionError

    def gradients(grad):
        broken = operation(w.data, (w,), fails) + w * 5
        with contextlib.suppress(ZeroDivisionError):
            broken.sum().backward_all()
        return (grad,)

    for loss in (operation(x.data, (x,), gradients) + w, w + operation(x.data, (x,), gradients)):
        w.grad = 0
        loss.sum().backward_all()
        np.testing.assert_array_equal(w.grad, [1, 1, 1])


# ---- Constants and no_grad ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("constant", [2.0, np.array([2.0, 3.0])], ids=["number", "array"])
@pytest.mark.parametrize("f", [operator.add, operator.sub, operator.mul, operator.truediv])
def test_constants_get_no_gradient(f, constant):
    for out in (f(Value(np.ones(2)), constant), f(constant, Value(np.ones(2)))):
        out.sum().backward_all()
        c = next(v for v in out._prev if not v.requires_grad)
        np.testing.assert_array_equal(c.grad, np.zeros(np.shape(constant)))


@pytest.mark.parametrize("f", [operator.add, operator.sub, operator.mul, operator.truediv, operator.matmul])
def test_a_constant_value_gets_no_gradient_on_either_side(f):
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


@EVERY_OPERATION
def test_no_grad_records_no_graph(name):
    for c in examples(name):
        with naming(c):
            operands = c.values()
            recorded = c(*operands)
            with no_grad():
                out = c(*operands)
            np.testing.assert_array_equal(out.data, recorded.data)
            if out in operands:
                assert name == "max"  # over no axes: the operand itself, so that there is nothing to record
                continue
            assert not out.requires_grad and out._prev == () and out._backward is None
            with pytest.raises(ValueError, match="no_grad"):
                out.backward_all()
            for v in operands:
                np.testing.assert_array_equal(v.grad, np.zeros(v.shape))
            assert recorded.requires_grad


def test_no_grad_nests():
    a = Value(1.0)
    with no_grad():
        with no_grad():
            assert not (a * 2).requires_grad
        assert not (a * 2).requires_grad
    assert (a * 2).requires_grad


def test_no_grad_nests_with_exceptions():
    a = Value(1.0)
    with no_grad():
        with contextlib.suppress(KeyError), no_grad():
            raise KeyError
        assert not (a * 2).requires_grad
    assert (a * 2).requires_grad


def test_no_grad_ends_with_an_exception():
    a = Value(1.0)
    with contextlib.suppress(KeyError), no_grad():
        raise KeyError
    assert (a * 2).requires_grad


def test_no_grad_decorates_a_function():
    a = Value(1.0)

    @no_grad()
    def evaluate():
        return a * 2

    assert not evaluate().requires_grad and not evaluate().requires_grad
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


# ---- Threads --------------------------------------------------------------------------------------------------------


def in_thread(f):
    """What f returns in a thread of its own."""
    result = []
    thread = threading.Thread(target=lambda: result.append(f()))
    thread.start()
    thread.join()
    assert result, "the thread has raised"
    return result[0]


def test_no_grad_holds_for_its_own_thread_only():
    a = Value(2.0)
    with no_grad():
        assert in_thread(lambda: (a * 2).requires_grad)
        assert not (a * 2).requires_grad


def test_a_thread_evaluates_while_another_records():
    a, inside, recorded = Value(2.0), threading.Event(), threading.Event()
    results = []

    def evaluate():
        with no_grad():
            inside.set()
            recorded.wait(10)
            results.append((a * 2).requires_grad)
        results.append((a * 2).requires_grad)

    thread = threading.Thread(target=evaluate)
    thread.start()
    assert inside.wait(10)
    b = a * 3
    recorded.set()
    thread.join()
    assert b.requires_grad and results == [False, True]
    b.backward_all()
    assert a.grad == 3.0


def test_no_grad_of_two_threads_that_overlap_ends_in_each():
    a, first_in, second_in, first_out = Value(2.0), threading.Event(), threading.Event(), threading.Event()
    results = []

    def first():
        with no_grad():
            first_in.set()
            second_in.wait(10)
        results.append((a * 2).requires_grad)
        first_out.set()

    thread = threading.Thread(target=first)
    thread.start()
    assert first_in.wait(10)
    with no_grad():
        second_in.set()
        assert first_out.wait(10)
        results.append((a * 2).requires_grad)
    thread.join()
    assert results == [True, False] and (a * 2).requires_grad


def test_threads_with_graphs_of_their_own_train_as_if_alone():
    x = np.random.default_rng(0).standard_normal((8, 3))

    def train(seed):
        mlp = MLP(3, [4, 1])
        rng = np.random.default_rng(seed)
        for p in mlp.parameters():
            p.data = rng.standard_normal(p.shape)
        optimizer = Optimizer(mlp.parameters())
        for _ in range(30):
            with no_grad():
                mlp(x)
            optimizer.zero_grad()
            (mlp(x) ** 2).mean().backward_all()
            optimizer.update(lr=0.1)
        return [p.data for p in mlp.parameters()]

    alone, together = [train(seed) for seed in range(4)], {}
    threads = [threading.Thread(target=lambda s=seed: together.update({s: train(s)})) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(4):
        for a, b in zip(alone[seed], together[seed]):
            np.testing.assert_array_equal(a, b)


# ---- Memory ---------------------------------------------------------------------------------------------------------

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


def test_a_chain_of_a_million_values_is_released():
    result = subprocess.run(  # a process of its own: an overflow of the C stack would end the tests
        [sys.executable, "-c", textwrap.dedent(CHAIN)],
        cwd=Path(engine.__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "released\n", "")


@EVERY_OPERATION
def test_a_graph_is_freed_by_reference_counting(name):
    cases = examples(name)

    def step():
        for c in cases:
            c(*c.values()).sum().backward_all()

    assert wasted_by(step) == 0


def test_failed_and_nested_passes_leave_no_reference_cycles():
    """But for those that Python makes of a traceback that is kept."""

    def step():
        a = Value(np.ones(2))

        def gradients(grad):
            (a * 1).backward_all()
            return (grad,)

        (operation(a.data, (a,), gradients) + a).sum().backward_all()
        loss = operation(a.data, (a,), lambda grad: (np.ones(7),)).sum()
        with contextlib.suppress(ValueError):
            loss.backward_all()

    assert wasted_by(step) == 0


def cnn_step(cnn, optimizer, x, y):
    optimizer.zero_grad()
    loss = cross_entropy(cnn(x), y)
    loss.backward_all()
    optimizer.update(lr=0.01)
    return loss


def test_hundreds_of_cnn_steps_keep_nothing_alive():
    """Without the garbage collector."""
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


def test_a_backward_that_assigns_grad_instead_of_calling_add_grad_is_refused():
    x = Value(np.array([1.0, 2.0]))
    doubled = x * 2

    def _backward(grad):
        doubled.grad += np.cos(doubled.data) * grad

    y = Value(np.sin(doubled.data), (doubled,), "sin", _backward)
    check(y.backward_all, VALUE, "add_grad instead of assigning grad")
    x.grad = 3.0  # afterwards it may be assigned
    np.testing.assert_array_equal(x.grad, [3, 3])


def test_a_pass_keeps_no_gradient_beside_the_leafs_own():
    x, handed = Value(np.array([1.0, 2.0])), []

    def gradients(grad):
        gradient = 2 * grad
        handed.append(weakref.ref(gradient))
        return (gradient,)

    y = operation(2 * x.data, (x,), gradients)
    y.backward_all()
    assert handed[0]() is None
    np.testing.assert_array_equal(x.grad, [2, 2])


# ---- Whole expressions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(60))
def test_random_expression(seed):
    """Twelve random operations, each on results of earlier ones: fan-out, diamonds and broadcasting together."""
    choices = np.random.default_rng(seed)
    plan = [(int(choices.integers(0, 11)), choices.random(), choices.random()) for _ in range(12)]

    def f(*leaves):
        values = list(leaves)
        for kind, i, j in plan:
            a, b = values[int(i * len(values))], values[int(j * len(values))]
            values.append(
                [
                    lambda a, b: a + b,
                    lambda a, b: a - b,
                    lambda a, b: a * b,
                    lambda a, b: a / (b * b + 1.5),
                    lambda a, b: a.tanh(),
                    lambda a, b: (a * 0.25).tanh().exp(),
                    lambda a, b: (a * a).log(0.5),
                    lambda a, b: a.mean(axis=-1, keepdims=True),
                    lambda a, b: (a * a + 1.0) ** -0.5,
                    lambda a, b: 2.0 - a,
                    lambda a, b: stack([a, a * 0.5]).sum(axis=0),
                ][kind](a, b).tanh()
            )  # fmt: skip
        return sum(v.sum() * (k + 1) for k, v in enumerate(values))

    rng = np.random.default_rng(seed + 1000)
    check_gradients(f, rng.standard_normal((2, 3)), rng.standard_normal((2, 1)), rng.standard_normal(3), seed=seed)


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


# ---- Misuse ---------------------------------------------------------------------------------------------------------


@misuse(
    ("made_under_no_grad", lambda: made_under_no_grad().backward_all(), VALUE, "no graph.*no_grad"),
    ("made_of_constants", lambda: (made_under_no_grad() * 2).backward_all(), VALUE, "no graph.*constants"),
    ("children_without_backward", lambda: (Value(1.0, (Value(1.0),)) * 2).backward_all(), VALUE, "_backward"),
)
def test_backward_all_rejects_a_value(call, error, message):
    check(call, error, message)


def test_a_missing_backward_changes_no_gradient():
    a = Value(np.ones(2))
    loss = (Value(a.data, (a,)) * 2 + a * 3).sum()
    check(loss.backward_all, VALUE, "_children.*_backward")
    np.testing.assert_array_equal(a.grad, [0, 0])


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
def test_topological_order_rejects_what_is_no_value(thing):
    check(lambda: topological_order(thing), TYPE, f"Value.*{type(thing).__name__}")
