"""The backward pass: its order, several passes, own operations, failing passes, no_grad, threads, memory."""

import contextlib
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
from engine import Optimizer, Value, as_value, cross_entropy, max_pooling, no_grad, stack, topological_order
from model import CNN
from tests.gradcheck import check_gradients
from tests.operations import left_to_the_collector

# ---- The graph ------------------------------------------------------------------------------------------------------


def test_the_order_has_each_value_once_and_after_its_operands():
    a, b = Value(1.0), Value(2.0)
    c = a * b
    d = c + a
    e = d * c
    order = topological_order(e)
    assert len(order) == 5 and set(order) == {a, b, c, d, e}
    assert max(map(order.index, (a, b))) < order.index(c) < order.index(d) < order.index(e)


def test_each_backward_of_a_chain_of_diamonds_is_called_once():
    calls, leaf = [], Value(1.0)
    v = leaf
    for i in range(60):  # 2 ** 60 paths
        v = Value(2 * v.data, (v, v), "twice", lambda grad, i=i: (calls.append(i), (grad, grad))[1])
    v.backward_all()
    assert leaf.grad == 2.0**60 and calls == list(range(60))[::-1]


def test_an_operand_used_twice_gets_both_gradients():
    for f, expected in [
        (lambda v: v - v, [0, 0, 0]),
        (lambda v: v * 3 * (v + 1), [9, 15, 21]),  # a diamond: 6 v + 3
        (lambda v: v @ v, [2, 4, 6]),
        (lambda v: stack([v, v, v]), [3, 3, 3]),
        (lambda v: v.reshape(3, 1) @ v.reshape(1, 3), [12, 12, 12]),
    ]:
        v = Value(np.array([1.0, 2.0, 3.0]))
        f(v).sum().backward_all()
        np.testing.assert_array_equal(v.grad, expected)


# ---- Several passes -------------------------------------------------------------------------------------------------


def test_gradients_of_leaves_add_up_over_passes_and_those_of_results_do_not():
    a = Value(2.0)
    b = a * 3
    c, d = b * b, b * 5
    b.backward_all()
    assert (a.grad, b.grad) == (3.0, 1.0)  # from the middle
    c.backward_all()
    assert (a.grad, b.grad) == (3.0 + 36.0, 12.0)
    d.backward()  # another name for backward_all
    assert (a.grad, b.grad, c.grad) == (3.0 + 36.0 + 15.0, 5.0, 1.0)


def test_the_gradient_of_an_array_is_that_of_its_sum():
    for v in (Value(np.full((2, 2), 3, np.float32)), Value(3.0)):
        (v * v).backward_all()
        np.testing.assert_array_equal(v.grad, np.full(v.shape, 6))
        v.backward_all()  # of a leaf: 1
        np.testing.assert_array_equal(v.grad, np.full(v.shape, 7))


def test_changing_a_leafs_gradient_in_place_changes_no_other():
    a, b = Value(np.ones(3)), Value(np.ones(3))
    loss = a + b  # + hands the same gradient to both
    loss.backward_all()
    a.grad[0] = 50.0
    for v in (b, loss):
        np.testing.assert_array_equal(v.grad, [1, 1, 1])
    loss.backward_all()
    np.testing.assert_array_equal(a.grad, [51, 2, 2])


# ---- Own operations, and passes that fail ----------------------------------------------------------------------------


def test_an_operation_of_ones_own_returns_a_gradient_for_each_operand():
    x, y = Value(np.array([1.0, 2.0])), Value(np.array([3.0, 4.0]))
    a, b = x.data, y.data
    constant = as_value(a)
    for out in (
        Value(a * b, (x, y), "mine", lambda grad: (grad * b, grad * a)),
        Value(a * b, [x, y], "mine", lambda grad: (grad * b, grad * a)),
        Value(a * b, (x, constant, y), "mine", lambda grad: (grad * b, None, grad * a)),
        Value(a * b, x, "mine", lambda grad: grad * b) + Value(a * b, y, "mine", lambda grad: (grad * a,)) * 1,
    ):
        x.grad = y.grad = None
        out.sum().backward_all()
        np.testing.assert_array_equal(x.grad, b)
        np.testing.assert_array_equal(y.grad, a)
        assert not np.any(constant.grad)


@pytest.mark.parametrize("shape", [(3,), (1, 3), (2, 1), (), (1, 1, 1), (1, 2, 3)])
def test_a_broadcast_gradient_is_summed(shape):
    def f(v):
        return Value(np.broadcast_to(v.data, (4, 2, 3)), v, "repeat", lambda grad: grad)

    check_gradients(f, np.ones(shape))


def test_an_array_that_a_backward_keeps_or_returns_twice_is_left_alone():
    x, kept = Value(np.ones(2)), np.array([3.0, 4.0])
    v, w = x * 1, x * 1
    mine = Value(x.data, (v, w), "mine", lambda grad: (kept, kept))
    for loss, expected in [(mine, [3, 4]), (mine + v * 1, [4, 5]), (v * 1 + mine, [4, 5])]:
        loss.backward_all()
        np.testing.assert_array_equal(v.grad, expected)
        np.testing.assert_array_equal(w.grad, kept)
        assert kept.flags.writeable and list(kept) == [3, 4]


def test_gradients_have_the_dtype_of_their_operands():
    for given in (np.array([3, 4]), [3.0, 4.0], np.array([3, 4], np.float16)):
        x, number = Value(np.array([1, 2], np.float32)), Value(1.0)
        v = x * 2
        Value(x.data, (v, number), "mine", lambda grad, given=given: (given, np.int64(3))).backward_all()
        np.testing.assert_array_equal(v.grad, np.array([3, 4], np.float32), strict=True)
        np.testing.assert_array_equal(x.grad, np.array([6, 8], np.float32), strict=True)
        assert number.grad == 3.0 and type(number.grad) is float


def assert_refused(backward, error, message=None):
    """A pass through an operation with this `_backward` raises the error, and no gradient has changed."""
    x, y = Value(np.ones((2, 2))), Value(2.0)
    middle = x * y
    other = Value(middle.data, (middle, y), "mine", backward) + middle  # + hands the same gradient to both
    loss = (other * y).sum() + y * y
    nodes = topological_order(loss)
    middle.sum().backward_all()
    before = [(v, v.grad, np.copy(v.grad)) for v in nodes]
    with pytest.raises(error, match=message):
        loss.backward_all()
    for v, grad, copy in before:
        assert v.grad is grad
        np.testing.assert_array_equal(grad, copy)
    middle.sum().backward_all()  # later passes are right
    assert y.grad == 8.0


@pytest.mark.parametrize(
    "backward",
    [
        lambda grad: None,  # a forgotten return
        lambda grad: (grad, None),
        lambda grad: grad,
        lambda grad: (grad, 1.0, 1.0),
        lambda grad: (1.0, 1.0),  # a smaller shape, which NumPy would broadcast
        lambda grad: (np.ones(2), 1.0),
        lambda grad: (np.ones((3, 2, 2)), 1.0),  # a larger one, which is not that of the result
        lambda grad: (grad, np.ones(3)),
        lambda grad: ("ones", 1.0),
        lambda grad: (grad, 1j),
        lambda grad: (grad.astype(object), 1.0),
        lambda grad: (Value(grad), 1.0),
    ],
)
def test_a_wrong_gradient_is_refused_by_the_name_of_the_operation(backward):
    assert_refused(backward, (ValueError, TypeError), "mine")


def test_a_pass_that_fails_is_interrupted_or_writes_into_a_gradient_changes_nothing():
    def interrupted(grad):
        raise KeyboardInterrupt

    def writes(grad):
        grad *= 2
        return grad, 1.0

    assert_refused(interrupted, KeyboardInterrupt)
    assert_refused(writes, ValueError, "read-only")
    assert_refused(None, TypeError)


def test_a_sum_of_gradients_that_fails_changes_nothing():
    v, w = Value(np.array([1.0])), Value(np.array([1.0]))
    loss = w + v * 1e308 + w
    loss.backward_all()
    with np.errstate(over="raise"), pytest.raises(FloatingPointError):
        loss.backward_all()  # 2e308 is too large
    assert (v.grad, w.grad, loss.grad) == (1e308, 2, 1)


def test_a_checkpoint_is_right():
    """An operation that keeps nothing of its inside and computes it again, where w is a leaf of both graphs."""

    def checkpoint(v, w):
        data = v.data

        def _backward(grad):
            again = Value(data)
            (again.tanh() * w * grad).sum().backward_all()  # w gets its gradient here
            return again.grad

        return Value(np.tanh(data) * w.data, v, "checkpoint", _backward)

    gradients = []
    for inside in (checkpoint, lambda v, w: v.tanh() * w):
        w, x = Value(np.array([1.0, 2.0, 3.0])), Value(np.array([0.5, -1.0, 2.0]))
        for loss in (inside(x * 2, w) * w, w - inside(x * 2, w)):
            loss.backward_all()
        gradients.append([x.grad, w.grad])
    np.testing.assert_allclose(*gradients, rtol=1e-14)


# ---- Constants, freezing and no_grad --------------------------------------------------------------------------------


def test_what_is_computed_from_constants_is_a_constant_without_a_graph():
    for v in (as_value(3.0), as_value(np.ones(2)) * 2 + 1, max_pooling(np.ones((1, 1, 2, 2)), 2)):
        assert not v.requires_grad and not v.is_leaf and topological_order(v) == [v]
        with pytest.raises(ValueError):
            v.backward_all()


def test_a_frozen_leaf_gets_no_gradient_until_it_is_thawed():
    w, x = Value(np.array([[1.0, 2.0], [3.0, 4.0]])), Value(np.array([1.0, 1.0]))
    assert w.is_leaf and w.requires_grad and not (w * 2).is_leaf
    w.requires_grad = False
    for f in (lambda: w @ x, lambda: x @ w, lambda: w * x):
        f().sum().backward_all()
        assert not np.any(w.grad) and np.all(x.grad)
    assert w.is_leaf and not (w * 2).requires_grad
    w.requires_grad = True
    (w @ x).sum().backward_all()
    np.testing.assert_array_equal(w.grad, np.ones((2, 2)))
    loss = (w * 3).sum()
    w.requires_grad = False  # also between the forward and the backward pass
    loss.backward_all()
    np.testing.assert_array_equal(w.grad, np.ones((2, 2)))


def test_no_grad_nests_ends_with_an_exception_and_decorates():
    a = Value(2.0)

    @no_grad()
    def evaluate():
        return (a * 2).requires_grad

    with no_grad():
        assert not evaluate()
        with contextlib.suppress(KeyError), no_grad():
            raise KeyError
        assert not (a * 2).requires_grad
    assert (a * 2).requires_grad and not evaluate() and not evaluate()


def test_under_no_grad_leaves_are_leaves_passes_run_and_no_operand_is_kept_alive():
    a = Value(2.0)
    loss = a * a
    with no_grad():
        leaf, hidden = Value(3.0), loss * 2
        loss.backward_all()
        alive = weakref.ref(hidden)
        out = hidden + 1
        del hidden
        assert alive() is None
    (leaf * out).backward_all()
    assert (a.grad, leaf.grad) == (4.0, 9.0)


# ---- Threads --------------------------------------------------------------------------------------------------------


def test_no_grad_holds_for_its_own_thread_only():
    a, recorded = Value(2.0), []
    thread = threading.Thread(target=lambda: recorded.append((a * 2).requires_grad))
    with no_grad():
        thread.start()
        thread.join()
        assert recorded == [True] and not (a * 2).requires_grad


def test_passes_of_two_threads_over_the_same_leaves_add_up_exactly():
    leaves = [Value(np.zeros(1)) for _ in range(20)]
    loss = stack(leaves).sum()
    threads = [threading.Thread(target=lambda: [loss.backward_all() for _ in range(300)]) for _ in range(2)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # the threads interrupt each other as often as possible
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert [v.grad.item() for v in leaves] == [600.0] * 20


# ---- Memory ---------------------------------------------------------------------------------------------------------

CHAIN = """
    import gc, weakref
    from engine import Value
    gc.disable()
    x = Value(1.0)
    v = x + x
    first = weakref.ref(v)
    for _ in range(999_999):
        v = v + x
    v.backward_all()
    assert x.grad == 1_000_001.0 == v.data
    del v
    assert first() is None
"""


def test_a_chain_of_a_million_values_is_differentiated_and_released():
    command = [sys.executable, "-c", textwrap.dedent(CHAIN)]  # another process: an overflow of the C stack would end it
    subprocess.run(command, cwd=Path(engine.__file__).parent, check=True)


def test_hundreds_of_training_steps_keep_nothing_alive():
    """Without the garbage collector."""
    np.random.seed(0)
    cnn, x, memory = CNN(), np.random.standard_normal((2, 1, 28, 28)), []
    optimizer = Optimizer(cnn.parameters())

    def steps():
        for _ in range(100):
            optimizer.zero_grad()
            loss = cross_entropy(cnn(x), [3, 5])
            loss.backward_all()
            optimizer.update(lr=0.01)

    tracemalloc.start()
    try:
        for _ in range(2):
            assert left_to_the_collector(steps) == 0
            memory.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert memory[1] - memory[0] < 10_000  # bytes, where the arrays of one step take 400,000


# ---- Whole expressions ----------------------------------------------------------------------------------------------

STEPS = [
    lambda a, b: a + b,
    lambda a, b: 2.0 - a * b,
    lambda a, b: a / (b * b + 1.5),
    lambda a, b: (a * 0.25).exp() - (b * b).log(0.5),
    lambda a, b: a.mean(axis=-1, keepdims=True),
    lambda a, b: (a * a + 1.0) ** -0.5,
    lambda a, b: stack([a, a * 0.5]).sum(axis=0),
]


@pytest.mark.parametrize("seed", range(20))
def test_random_expressions(seed):
    """Twelve random operations, each on earlier results: fan-out, diamonds and broadcasting together."""
    rng = np.random.default_rng(seed)
    plan = [(STEPS[rng.integers(len(STEPS))], rng.integers(k + 3), rng.integers(k + 3)) for k in range(12)]

    def f(*leaves):
        values = list(leaves)
        for step, i, j in plan:
            values.append(step(values[i], values[j]).tanh())
        return sum(v.sum() * (k + 1) for k, v in enumerate(values))

    check_gradients(f, rng.standard_normal((2, 3)), rng.standard_normal((2, 1)), rng.standard_normal(3))


def test_the_two_expressions_of_micrograd():
    x = Value(-4.0)
    z = 2 * x + 2 + x
    q = z.relu() + z * x
    h = (z * z).relu()
    y = h + q + q * x  # with z = 3x + 2 < 0: z^2 + zx + zx^2
    y.backward_all()
    assert y.data == 100 + 40 - 160
    assert x.grad == 2 * -10 * 3 + (6 * -4 + 2) + (9 * 16 + 4 * -4)

    a, b = Value(-4.0), Value(2.0)
    c = a + b
    d = a * b + b**3
    c += c + 1
    c += 1 + c + (-a)
    d += d * 2 + (b + a).relu()
    d += 3 * d + (b - a).relu()
    e = c - d
    f = e**2
    g = f / 2.0
    g += 10.0 / f
    g.backward_all()  # the numbers are those of micrograd's README
    assert (round(g.data, 4), round(a.grad, 4), round(b.grad, 4)) == (24.7041, 138.8338, 645.5773)
