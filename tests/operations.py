"""The table of operations: one row for each, with a reference in NumPy or loops, examples and random cases.

A new operation is one row of OPERATIONS, at the end of this file: `"sin": Row(lambda v: v.sin(), np.sin)`. All tests
over the table, in test_operations.py, then cover it: results, gradients, dtypes, memory layouts, repeated and failing
passes, no_grad, reference cycles.
"""

import contextlib
import gc
import math
import operator
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest

from engine import Value, conv2d, cross_entropy, max_pooling, stack
from tests.gradcheck import apart, loop_conv2d, loop_max_pooling

# ---- Cases ----------------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    text: str  # `case("conv2d", seed=17)`: paste it to get this case again
    row: "Row"
    arrays: list
    options: dict

    def __call__(self, *values):
        """The operation, of Values."""
        return self.row.f(*values, **self.options)

    def expected(self):
        """The result of the reference."""
        return np.asarray(self.row.reference(*self.arrays, **self.options))

    def values(self, dtype=np.float64):
        """The operands as new leaves."""
        return [Value(a.astype(dtype)) for a in self.arrays]

    def __repr__(self):
        details = [f"{a.shape}" for a in self.arrays] + [f"{name}={o!r}" for name, o in self.options.items()]
        return f"{self.text}  # {' '.join(', '.join(details).split())}"


def case(name, example=0, *, seed=None):
    """An example of OPERATIONS by its number, or a random case: random shapes, options and memory layouts.

    Of `c = case("conv2d", seed=17)`, `c.arrays` are the operands, `c(*c.values())` is the result, `c.expected()` the
    reference's, and `check_gradients(c, *c.arrays)` looks at the gradients.
    """
    row = OPERATIONS[name]
    rng = np.random.default_rng(example if seed is None else seed)
    shapes, options = row.examples[example] if seed is None else row.random(rng)
    arrays = [np.asarray(row.sample(rng, shape), np.float64) for shape in shapes]
    if seed is not None:
        layouts = list(LAYOUTS.values())
        arrays = [layouts[rng.integers(len(layouts))](a) if a.ndim else a for a in arrays]
    return Case(f'case("{name}", {example if seed is None else f"seed={seed}"})', row, arrays, options)


def examples(name):
    """The cases that the table lists for an operation."""
    return [case(name, i) for i in range(len(OPERATIONS[name].examples))]


@contextlib.contextmanager
def naming(case):
    """Put the line that reproduces the case in front of the message of whatever fails inside."""
    try:
        yield
    except Exception as error:
        raise AssertionError(f"{case!r}\n{type(error).__name__}: {error}") from error


def left_to_the_collector(f):
    """How many objects f leaves to the garbage collector, because they are in reference cycles."""
    f()  # what is made once and kept
    gc.disable()
    gc.freeze()  # what there is already does not count
    try:
        f()
        return gc.collect()
    finally:
        gc.unfreeze()
        gc.enable()


# ---- How operands are drawn, and how they lie in memory -------------------------------------------------------------


def spread(rng, shape):
    """Numbers between 0.5 and 2 with a random sign."""
    return rng.uniform(0.5, 2.0, shape) * rng.choice([-1.0, 1.0], shape)


def positive(rng, shape):
    return rng.uniform(0.5, 2.0, shape)


def normal(rng, shape):
    return rng.standard_normal(shape)


def eighths(rng, shape):
    """Numbers that are exact in float32, also after a step of central differences."""
    return rng.integers(-8, 9, shape) / 8


EPS = 2.0**-20  # of central differences

LAYOUTS = {  # of an array that has axes
    "plain": lambda a: a,
    "fortran": np.asfortranarray,
    "every_second": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "reversed": lambda a: a[..., ::-1].copy()[..., ::-1],
    "all_reversed": lambda a: a[(np.s_[::-1],) * a.ndim].copy()[(np.s_[::-1],) * a.ndim],
    "batch_last": lambda a: np.moveaxis(np.moveaxis(a, 0, -1).copy(), -1, 0),
    "big_endian": lambda a: a.astype(">f8"),
    "read_only": lambda a: np.frombuffer(a.tobytes()).reshape(a.shape) if a.size else a,
}


# ---- Random shapes and options --------------------------------------------------------------------------------------


def on(*shapes, **options):
    """Operands of these shapes, and options of the operation."""
    return shapes, options


def random_shape(rng, most_axes=4):
    return tuple(int(n) for n in rng.choice(4, rng.integers(0, most_axes + 1), p=[0.1, 0.3, 0.35, 0.25]))


def random_broadcast(rng, most_axes=4):
    """Two shapes that broadcast against each other, in either direction and in both."""
    full = random_shape(rng, most_axes)
    pair = []
    for _ in range(2):
        kept = full[rng.integers(0, len(full) + 1) :] if rng.random() < 0.5 else full
        pair.append(tuple(n if rng.random() < 0.7 else 1 for n in kept))
    return tuple(pair)


def from_either_end(rng, axes, ndim):
    """The same axes, some of them as negative numbers."""
    return tuple(int(a) - (ndim if rng.random() < 0.5 else 0) for a in axes)


def one_array(rng):
    return on(random_shape(rng))


def two_arrays(rng):
    return on(*random_broadcast(rng))


def to_a_power(rng):
    return on(random_shape(rng), exponent=float(rng.uniform(-3, 4)))


def to_a_whole_power(rng):
    return on(random_shape(rng), exponent=int(rng.integers(-3, 5)))


def reduced(rng):
    """Over an axis, several, or all of them; those that are reduced have a size of at least 1."""
    shape = random_shape(rng)
    axes = rng.permutation(len(shape))[: rng.integers(0, len(shape) + 1)]
    axis = from_either_end(rng, axes, len(shape))
    if rng.random() < 0.25:
        axes, axis = range(len(shape)), None
    elif len(axis) == 1 and rng.random() < 0.7:
        axis = axis[0]
    return on(tuple(n or int(i in axes) for i, n in enumerate(shape)), axis=axis, keepdims=bool(rng.integers(2)))


def reshaped(rng):
    shape = random_shape(rng)
    after = [*(int(n) for n in rng.permutation(shape)), *[1] * rng.integers(0, 3)]
    if len(after) > 1 and rng.random() < 0.5:
        after[:2] = [after[0] * after[1]]
    if after and math.prod(shape) and rng.random() < 0.5:
        after[rng.integers(len(after))] = -1
    return on(shape, shape=tuple(after))


def transposed(rng):
    shape = random_shape(rng)
    return on(shape, axes=from_either_end(rng, rng.permutation(len(shape)), len(shape)))


def indexed(rng):
    """Any mixture of integers, slices, None, ..., integer arrays and a boolean mask."""
    shape = random_shape(rng)
    index, advanced = [], rng.choice(["integers", "mask"])
    for n in shape:
        kind = rng.integers(5)
        if kind == 0 and n:
            index.append(int(rng.integers(-n, n)))
        elif kind == 1 and n and advanced == "integers":
            index.append(rng.integers(-n, n, 3))
        elif kind == 1 and advanced == "mask":
            index.append(rng.random(n) < 0.6)
            advanced = "none"
        else:
            start, stop = (None if rng.random() < 0.4 else int(rng.integers(-4, 5)) for _ in range(2))
            index.append(slice(start, stop, [None, 1, 2, -1, -2][rng.integers(5)]))
    index = index[: rng.integers(0, len(index) + 1)]
    if rng.random() < 0.3:
        index.insert(rng.integers(0, len(index) + 1), None)
    if rng.random() < 0.3:
        index.append(...)
    return on(shape, index=tuple(index))


def stacked(rng):
    shape = random_shape(rng, 3)
    return on(*[shape] * rng.integers(1, 4), axis=int(rng.integers(-len(shape) - 1, len(shape) + 1)))


def multiplied(rng):
    """Every signature of @: vectors, matrices, and stacks of them that broadcast."""
    n, k, m = (int(i) for i in rng.choice(4, 3, p=[0.1, 0.3, 0.35, 0.25]))
    batch_a, batch_b = random_broadcast(rng, 2)
    return on((*batch_a, n, k) if rng.random() < 0.6 else (k,), (*batch_b, k, m) if rng.random() < 0.6 else (k,))


def convolved(rng):
    N, (C, O) = int(rng.integers(0, 4)), (int(n) for n in rng.integers(1, 4, 2))
    stride, padding = int(rng.integers(1, 5)), int(rng.integers(0, 4))
    kh, kw = (int(n) for n in rng.integers(1, 5, 2))
    H, W = (int(rng.integers(max(1, k - 2 * padding), k + 5)) for k in (kh, kw))
    bias = [(O,)] if rng.random() < 0.5 else []
    return on((N, C, H, W), (O, C, kh, kw), *bias, stride=stride, padding=padding)


def pooled(rng):
    stride = int(rng.integers(1, 7))
    (N, C), (H, W) = (int(n) for n in rng.integers(0, 3, 2)), (int(n) for n in rng.integers(stride, stride + 7, 2))
    return on((N, C, H, W), stride=stride)


def labelled(rng):
    n, classes = (int(i) for i in rng.integers(1, 6, 2))
    return on((n, classes), labels=rng.integers(0, classes, n))


# ---- References that NumPy does not have ----------------------------------------------------------------------------


def conv2d_in_loops(x, w, b=None, stride=1, padding=0):
    (N, _, *size), (O, _, *kernel) = x.shape, w.shape
    grad = np.zeros((N, O, *((n + 2 * padding - k) // stride + 1 for n, k in zip(size, kernel))))
    return loop_conv2d(x, w, b, stride, padding, grad)[0]


def max_pooling_in_loops(x, stride):
    N, C, H, W = x.shape
    return loop_max_pooling(x, stride, np.zeros((N, C, H // stride, W // stride)))[0]


def cross_entropy_in_loops(x, labels):
    return -np.mean([row[k] - math.log(sum(map(math.exp, row))) for row, k in zip(x, labels)])


# ---- Examples of operands and options -------------------------------------------------------------------------------

BROADCASTING = [
    ((2, 3), (3,)),
    ((), ()),
    ((3,), ()),
    ((3,), (1,)),
    ((2, 3), (2, 3)),
    ((2, 1), (1, 3)),
    ((2, 1), (3,)),
    ((4, 1, 3), (2, 1)),
    ((0, 3), (3,)),
]
BOTH_WAYS = [on(*shapes[::step]) for shapes in BROADCASTING for step in (1, -1)]
MATMULS = [
    ((2, 3), (3, 4)),
    ((3,), (3,)),
    ((2, 3), (3,)),
    ((1, 3), (3,)),
    ((3,), (3, 2)),
    ((3,), (3, 1)),
    ((5, 2, 3), (3, 4)),
    ((5, 2, 3), (3,)),
    ((3,), (5, 3, 2)),
    ((2, 3), (5, 3, 4)),
    ((5, 2, 3), (5, 3, 4)),
    ((1, 2, 3), (5, 3, 4)),
    ((5, 2, 3), (1, 3, 4)),
    ((4, 1, 2, 3), (5, 3, 2)),
    ((2, 3, 2, 2), (2,)),
    ((0, 3), (3, 2)),
    ((2, 0), (0, 3)),
]
ARRAYS = [on(shape) for shape in [(2, 3), (), (1,), (2, 1, 3), (0, 3)]]
POWERS = [on(shape, exponent=e) for e in (2, -1.5, 0.5, 1, 2.5, np.float32(2.5)) for shape in [(2, 3), ()]]
WHOLE_POWERS = [on(shape, exponent=e) for e in (2, -3, -1, 0, 1, 3, True) for shape in [(2, 3), ()]]
REDUCTIONS = [on((2, 3, 4), axis=a, keepdims=k) for a in [None, 1, -1, (), (2, 0), (-1, 1)] for k in (False, True)]
REDUCTIONS += [on(()), on((), keepdims=True), on((1, 3)), on((0, 3), axis=1)]
RESHAPES = [
    on((2, 3), shape=(3, 2)),
    on((2, 3), shape=-1),
    on((2, 3), shape=(1, 2, -1, 3)),
    on((), shape=(1, 1)),
    on((1, 1), shape=()),
    on((0, 3), shape=(3, 0, 2)),
]
TRANSPOSES = [on((2, 3, 4), axes=axes) for axes in [(2, 0, 1), (0, 1, 2), (1, 2, 0), (-1, 0, 1), (-2, -3, -1)]]
TRANSPOSES += [on((2, 3), axes=(1, 0)), on((3,), axes=(0,)), on((0, 2), axes=(1, 0))]
INDICES = [
    np.s_[1],
    np.s_[...],
    np.s_[None],
    np.s_[()],
    np.s_[::2, ::-2],
    np.s_[5:1],
    np.s_[1, 2, 3],
    np.s_[..., None, 1:3],
    np.s_[[0, 0, 1, 0]],  # one twice: both gradients count
    np.s_[:, [2, 0, 2], [1, 1, 1]],
    np.s_[[0, 1], :, [3, -1]],
    np.s_[[[0, 1], [1, 1]], 0],
    np.s_[np.array([], int)],
    np.s_[np.arange(24).reshape(2, 3, 4) % 3 == 0],
    np.s_[:, np.array([[True, False, True, False], [False] * 4, [True] * 4])],
    np.s_[np.int64(1), np.array(2)],
]
GETITEMS = [on((2, 3, 4), index=index) for index in INDICES]
GETITEMS += [on((), index=index) for index in [(), ..., None, np.True_]]
STACKS = [on((2, 3), (2, 3), axis=1), on((2, 3), (2, 3), (2, 3), axis=-1), on((), (), axis=0), on((3,), axis=-2)]
IMAGES = [  # x, w: sizes that the kernel does not tile, H != W, kh != kw, one cell, the whole image
    ((2, 2, 5, 6), (3, 2, 3, 2)),
    ((1, 1, 4, 7), (1, 1, 1, 1)),
    ((1, 2, 3, 4), (2, 2, 3, 4)),
]
CONVOLUTIONS = [
    on(x, w, *bias, stride=stride, padding=padding)
    for x, w in IMAGES
    for bias, stride, padding in [([w[:1]], 1, 1), ([], 1, 0), ([w[:1]], 2, 0), ([], 2, 2), ([], 3, 1)]
]
CONVOLUTIONS += [on((0, 2, 4, 5), (3, 2, 2, 2), (3,), stride=2, padding=1)]
POOLINGS = [
    on((2, 2, 4, 4), stride=2),
    on((1, 3, 5, 7), stride=3),
    on((1, 1, 6, 4), stride=1),
    on((0, 2, 4, 5), stride=2),
]
LABELS = [
    on((3, 4), labels=[0, 2, 2]),
    on((1, 1), labels=(0,)),
    on((5, 10), labels=np.array([9, 0, 4, 9, 1], np.uint8)),
]


# ---- The table ------------------------------------------------------------------------------------------------------


class Row(NamedTuple):
    f: Callable  # of Values and options
    reference: Callable  # the same of float64 arrays, by NumPy or in loops
    examples: list = ARRAYS  # operand shapes and options; see `on`
    random: Callable = one_array  # the same for a random case, given a random generator
    sample: Callable = spread  # draws an operand, given a random generator and a shape
    tolerance: float = 0.0  # relative and absolute, of results against the reference
    numbers: bool = False  # Python floats give a Python float
    dtype: type | None = None  # of the result, where it is not that of the operands


def power(base, exponent):
    return base**exponent


OPERATIONS = {
    "+": Row(operator.add, operator.add, BOTH_WAYS, two_arrays, numbers=True),
    "-": Row(operator.sub, operator.sub, BOTH_WAYS, two_arrays, numbers=True),
    "*": Row(operator.mul, operator.mul, BOTH_WAYS, two_arrays, numbers=True),
    "/": Row(operator.truediv, operator.truediv, BOTH_WAYS, two_arrays, numbers=True),
    "neg": Row(operator.neg, operator.neg, numbers=True),
    "**": Row(power, lambda a, exponent: a ** float(exponent), POWERS, to_a_power, positive, numbers=True),
    "** whole": Row(power, lambda a, exponent: a ** float(exponent), WHOLE_POWERS, to_a_whole_power, numbers=True),
    "@": Row(operator.matmul, operator.matmul, [on(*shapes) for shapes in MATMULS], multiplied, tolerance=1e-14),
    "tanh": Row(lambda v: v.tanh(), np.tanh, numbers=True),
    "relu": Row(lambda v: v.relu(), lambda a: np.where(a > 0, a, 0), sample=apart, numbers=True),
    "exp": Row(lambda v: v.exp(), np.exp, numbers=True),
    "log": Row(lambda v: v.log(), lambda a: np.log(a + 1e-12), sample=positive, numbers=True),
    "log with eps": Row(lambda v: v.log(2.75), lambda a: np.log(a + 2.75), numbers=True),
    "sum": Row(lambda v, **axes: v.sum(**axes), np.sum, REDUCTIONS, reduced, normal, numbers=True),
    "mean": Row(lambda v, **axes: v.mean(**axes), np.mean, REDUCTIONS, reduced, normal, numbers=True),
    "max": Row(lambda v, **axes: v.max(**axes), np.max, REDUCTIONS, reduced, apart, numbers=True),
    "reshape": Row(lambda v, shape: v.reshape(shape), lambda a, shape: a.reshape(shape), RESHAPES, reshaped),
    "transpose": Row(lambda v, axes: v.transpose(axes), np.transpose, TRANSPOSES, transposed),
    "T": Row(lambda v: v.T, np.transpose),
    "getitem": Row(lambda v, index: v[index], lambda a, index: a[index], GETITEMS, indexed),
    "astype": Row(lambda v: v.astype(np.float32), lambda a: a.astype(np.float32), sample=eighths, dtype=np.float32),
    "stack": Row(lambda *v, axis: stack(v, axis), lambda *a, axis: np.stack(a, axis), STACKS, stacked),
    "conv2d": Row(conv2d, conv2d_in_loops, CONVOLUTIONS, convolved, normal, tolerance=1e-12),
    "max_pooling": Row(max_pooling, max_pooling_in_loops, POOLINGS, pooled, apart),
    "cross_entropy": Row(
        lambda v, labels: cross_entropy(v, labels), cross_entropy_in_loops, LABELS, labelled, normal, tolerance=1e-12
    ),
}
EVERY_OPERATION = pytest.mark.parametrize("name", list(OPERATIONS))
