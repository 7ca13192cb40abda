"""Gradients: of every operation against central differences, of convolution and pooling against loops, and at kinks."""

import itertools
import math
import operator

import numpy as np
import pytest
from gradcheck import apart, check_gradients, loop_conv2d, loop_max_pooling, operation, upstream

import engine
from engine import MLP, Conv2dLayer, LinearLayer, Neuron, Value, conv2d, cross_entropy, max_pooling, stack
from model import CNN

ARITHMETIC = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}

BROADCASTING = [
    ((), ()),
    ((1,), ()),
    ((3,), ()),
    ((3,), (1,)),
    ((3,), (3,)),
    ((2, 3), ()),
    ((2, 3), (3,)),
    ((2, 3), (1, 3)),
    ((2, 3), (2, 1)),
    ((2, 1), (1, 3)),
    ((2, 1), (3,)),
    ((1, 1), (2,)),
    ((4, 1, 3), (2, 1)),
    ((4, 1, 3), (1, 2, 3)),
    ((1, 2, 1, 2), (2, 1, 3, 1)),
    ((0, 3), (3,)),
    ((2, 0), (2, 1)),
]


def name(case):
    return str(case).replace(" ", "")


def away_from_zero(rng, shape):
    """Numbers between 0.5 and 2 with a random sign."""
    return rng.uniform(0.5, 2.0, shape) * rng.choice([-1.0, 1.0], shape)


def broadcasting_shapes(rng):
    """Two random shapes that broadcast against each other."""
    full = tuple(int(n) for n in rng.integers(1, 4, rng.integers(0, 5)))
    return tuple(
        tuple(int(n) if rng.random() < 0.6 else 1 for n in full[rng.integers(0, len(full) + 1) :]) for _ in range(2)
    )


# ---- Arithmetic and broadcasting ------------------------------------------------------------------------------------


@pytest.mark.parametrize("symbol", list(ARITHMETIC))
@pytest.mark.parametrize("shapes", BROADCASTING, ids=name)
def test_arithmetic_broadcasts_both_ways(symbol, shapes):
    rng = np.random.default_rng(1)
    a, b = (away_from_zero(rng, shape) for shape in shapes)
    check_gradients(ARITHMETIC[symbol], a, b)
    check_gradients(ARITHMETIC[symbol], b, a)


@pytest.mark.parametrize("symbol", list(ARITHMETIC))
@pytest.mark.parametrize("seed", range(30))
def test_arithmetic_on_random_broadcasting_shapes(symbol, seed):
    rng = np.random.default_rng(seed)
    shapes = broadcasting_shapes(rng)
    a, b = (away_from_zero(rng, shape) for shape in shapes)
    check_gradients(ARITHMETIC[symbol], a, b, seed=seed)
    expected = ARITHMETIC[symbol](a, b)
    np.testing.assert_array_equal(ARITHMETIC[symbol](Value(a), Value(b)).data, expected)


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
@pytest.mark.parametrize("x", [away_from_zero(np.random.default_rng(2), (2, 3)), 1.75], ids=["array", "number"])
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


# ---- Powers, elementwise functions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("exponent", [-3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 2.5, 3, 7, True, np.float32(2.5)])
def test_power_of_positive_numbers(exponent):
    for shape in [(), (1,), (3,), (2, 3), (0, 2)]:
        x = np.random.default_rng(3).uniform(0.5, 2.0, shape)
        check_gradients(lambda v: v**exponent, x)
        np.testing.assert_allclose((Value(x) ** exponent).data, x ** float(exponent), rtol=1e-15)
    check_gradients(lambda v: v**exponent, 1.25)


@pytest.mark.parametrize("exponent", [-3, -2, -1, 0, 1, 2, 3, 4])
def test_integer_power_of_negative_numbers(exponent):
    check_gradients(lambda v: v**exponent, -np.random.default_rng(4).uniform(0.5, 2.0, (2, 3)))
    check_gradients(lambda v: v**exponent, -1.25)


ELEMENTWISE = {
    "tanh": (lambda v: v.tanh(), np.tanh, away_from_zero),
    "relu": (lambda v: v.relu(), lambda x: np.where(x > 0, x, 0), apart),
    "exp": (lambda v: v.exp(), np.exp, away_from_zero),
    "log": (lambda v: v.log(), lambda x: np.log(x + 1e-12), lambda rng, shape: rng.uniform(0.5, 2.0, shape)),
    "log_eps": (lambda v: v.log(0.75), lambda x: np.log(x + 0.75), lambda rng, shape: rng.uniform(-0.2, 2.0, shape)),
    "neg": (lambda v: -v, lambda x: 0 - x, away_from_zero),
}


@pytest.mark.parametrize("function", list(ELEMENTWISE))
@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3), (2, 1, 3), (0, 3)], ids=name)
def test_elementwise_function(function, shape):
    f, reference, sample = ELEMENTWISE[function]
    x = np.asarray(sample(np.random.default_rng(5), shape))
    check_gradients(f, x)
    np.testing.assert_allclose(f(Value(x)).data, reference(x), rtol=1e-15)


@pytest.mark.parametrize("function", list(ELEMENTWISE))
@pytest.mark.parametrize("x", [0.3, 1.7])
def test_elementwise_function_of_a_python_number(function, x):
    f, reference, _ = ELEMENTWISE[function]
    check_gradients(f, x)
    assert f(Value(x)).data == pytest.approx(float(reference(np.array(x))), rel=1e-15)


def test_tanh_and_its_gradient_do_not_overflow():
    x = Value(np.array([-1000.0, 1000.0]))
    y = x.tanh()
    y.sum().backward_all()
    np.testing.assert_array_equal(y.data, [-1, 1])
    np.testing.assert_array_equal(x.grad, [0, 0])


# ---- Sums, means, shapes --------------------------------------------------------------------------------------------

AXES = [None, 0, 1, 2, -1, -3, (), (0,), (0, 1), (2, 0), (-1, 1), (0, 1, 2), np.int64(1)]


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", AXES, ids=name)
def test_sum_and_mean_over_axes(reduction, axis, keepdims):
    x = np.random.default_rng(6).standard_normal((2, 3, 4))
    check_gradients(lambda v: getattr(v, reduction)(axis, keepdims), x)
    check_gradients(lambda v: getattr(v, reduction)(axis=axis, keepdims=keepdims), x)
    expected = getattr(np, reduction)(x, axis=axis, keepdims=keepdims)
    out = getattr(Value(x), reduction)(axis, keepdims)
    assert np.shape(out.data) == expected.shape
    np.testing.assert_allclose(out.data, expected, rtol=1e-14)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("shape", [(), (1,), (5,), (1, 3), (3, 1)], ids=name)
def test_sum_and_mean_of_everything(reduction, shape):
    x = np.random.default_rng(7).standard_normal(shape)
    check_gradients(lambda v: getattr(v, reduction)(), x)
    check_gradients(lambda v: getattr(v, reduction)(keepdims=True), x)
    assert getattr(Value(x), reduction)().data == pytest.approx(getattr(np, reduction)(x), rel=1e-14)


def test_sum_and_mean_of_a_python_number_are_the_number():
    for reduction in ("sum", "mean"):
        check_gradients(lambda v: getattr(v, reduction)(), 1.5)
        assert getattr(Value(1.5), reduction)().data == 1.5


RESHAPES = [
    ((6,), (2, 3)),
    ((2, 3), (6,)),
    ((2, 3), (3, 2)),
    ((2, 3), (-1,)),
    ((2, 3), (3, -1)),
    ((2, 3), (1, 2, 1, 3)),
    ((), (1, 1)),
    ((1, 1), ()),
    ((0, 3), (3, 0, 2)),
    ((2, 3, 4), (-1, 4)),
]


@pytest.mark.parametrize("case", RESHAPES, ids=name)
def test_reshape_takes_integers_or_one_tuple(case):
    before, after = case
    x = np.random.default_rng(8).standard_normal(before)
    for arguments in (after, (after,), (list(after),)):
        check_gradients(lambda v: v.reshape(*arguments), x)
        np.testing.assert_array_equal(Value(x).reshape(*arguments).data, x.reshape(after), strict=True)


def test_reshape_of_a_python_number():
    check_gradients(lambda v: v.reshape(1, 1), 1.5)
    np.testing.assert_array_equal(Value(1.5).reshape(1, 1).data, [[1.5]], strict=True)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("case", [((), 0), ((), -1), ((3,), 0), ((3,), 1), ((3,), -1), ((2, 3), 0), ((2, 3), 1),
                                  ((2, 3), 2), ((2, 3), -3), ((0, 2), 1)], ids=name)  # fmt: skip
def test_stack_along_every_axis(case, n):
    shape, axis = case
    arrays = [np.random.default_rng(i).standard_normal(shape) for i in range(n)]
    check_gradients(lambda *v: stack(v, axis), *arrays)
    check_gradients(lambda *v: stack(list(v), axis=axis), *arrays)
    out = stack([Value(a) for a in arrays], axis)
    np.testing.assert_array_equal(out.data, np.stack(arrays, axis), strict=True)


def test_stack_of_numbers_arrays_and_values():
    constant = np.array([1.0, 2.0])
    check_gradients(lambda a, b: stack([a, constant, b, a]), np.array([3.0, 4.0]), np.array([5.0, 6.0]))
    check_gradients(lambda a, b: stack([a, 2, b, a]), 3.0, 4.0)
    np.testing.assert_array_equal(stack([Value(3.0), 2, 4.5]).data, [3, 2, 4.5])


# ---- Matrix multiplication ------------------------------------------------------------------------------------------

MATMULS = [
    ((3,), (3,)),
    ((1,), (1,)),
    ((2, 3), (3,)),
    ((1, 3), (3,)),
    ((3,), (3, 2)),
    ((3,), (3, 1)),
    ((1,), (1, 2)),
    ((2, 1), (1,)),
    ((2, 3), (3, 4)),
    ((1, 3), (3, 1)),
    ((2, 1), (1, 2)),
    ((5, 2, 3), (3, 4)),
    ((5, 2, 3), (3,)),
    ((3,), (5, 3, 2)),
    ((1,), (4, 1, 2)),
    ((4, 2, 1), (1,)),
    ((2, 3), (5, 3, 4)),
    ((5, 2, 3), (5, 3, 4)),
    ((1, 2, 3), (5, 3, 4)),
    ((5, 2, 3), (1, 3, 4)),
    ((4, 1, 2, 3), (5, 3, 2)),
    ((2, 1, 1, 3), (1, 3, 3, 1)),
    ((2, 3, 2, 2), (2,)),
    ((2,), (2, 3, 2, 2)),
    ((0, 3), (3, 2)),
    ((2, 0), (0, 3)),
    ((0, 2, 3), (3,)),
]


@pytest.mark.parametrize("shapes", MATMULS, ids=name)
def test_matmul_signature(shapes):
    rng = np.random.default_rng(9)
    a, b = (rng.standard_normal(shape) for shape in shapes)
    check_gradients(operator.matmul, a, b)
    check_gradients(lambda v: v @ b, a)
    check_gradients(lambda v: a @ v, b)
    np.testing.assert_array_equal((Value(a) @ Value(b)).data, a @ b)


@pytest.mark.parametrize("seed", range(60))
def test_matmul_of_random_shapes(seed):
    rng = np.random.default_rng(seed)
    n, k, m = rng.integers(1, 4, 3)
    batch_a, batch_b = (shape[:2] for shape in broadcasting_shapes(rng))
    while True:
        try:
            np.broadcast_shapes(batch_a, batch_b)
            break
        except ValueError:
            batch_a, batch_b = broadcasting_shapes(rng)
    signature = rng.integers(0, 4)
    a = rng.standard_normal((*batch_a, n, k) if signature & 1 else k)
    b = rng.standard_normal((*batch_b, k, m) if signature & 2 else k)
    check_gradients(operator.matmul, a, b, seed=seed)


# ---- Convolution ----------------------------------------------------------------------------------------------------

CONVOLUTIONS = [  # x, w: non-tiling sizes, H != W, kh != kw, one cell, the whole image
    ((2, 2, 5, 6), (3, 2, 3, 2)),
    ((1, 1, 4, 7), (1, 1, 1, 1)),
    ((2, 3, 6, 4), (2, 3, 1, 3)),
    ((1, 2, 3, 4), (2, 2, 3, 4)),
]


@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("bias", [False, True], ids=["no_bias", "bias"])
@pytest.mark.parametrize("shapes", CONVOLUTIONS, ids=name)
def test_conv2d_gradients(shapes, bias, stride, padding):
    rng = np.random.default_rng(10)
    arrays = [rng.standard_normal(shape) for shape in shapes]
    if bias:
        arrays.append(rng.standard_normal(shapes[1][0]))
    check_gradients(lambda *v: conv2d(*v, stride=stride, padding=padding), *arrays)


def random_convolution(seed):
    rng = np.random.default_rng(seed)
    N, C, O = (int(n) for n in rng.integers(1, 4, 3))
    stride, padding = int(rng.integers(1, 5)), int(rng.integers(0, 4))
    kh, kw = (int(n) for n in rng.integers(1, 5, 2))
    H, W = (int(rng.integers(max(1, k - 2 * padding), k + 6)) for k in (kh, kw))
    x, w = rng.standard_normal((N, C, H, W)), rng.standard_normal((O, C, kh, kw))
    b = rng.standard_normal(O) if rng.random() < 0.5 else None
    return x, w, b, stride, padding


def compare_conv2d_with_loops(x, w, b, stride, padding):
    values = [None if a is None else Value(a) for a in (x, w, b)]
    out = conv2d(*values, stride, padding)
    v = upstream(out.shape)
    (out * v).sum().backward_all()
    expected, *gradients = loop_conv2d(x, w, b, stride, padding, v)
    case = f"x {x.shape}, w {w.shape}, bias {b is not None}, stride {stride}, padding {padding}"
    assert out.shape == expected.shape, case
    np.testing.assert_allclose(out.data, expected, rtol=1e-12, atol=1e-12, err_msg=case)
    for what, value, gradient in zip("xwb", values, gradients):
        if value is not None:
            np.testing.assert_allclose(value.grad, gradient, rtol=1e-12, atol=1e-12, err_msg=f"d{what}: {case}")


@pytest.mark.parametrize("seed", range(100))
def test_conv2d_is_what_its_loops_compute(seed):
    compare_conv2d_with_loops(*random_convolution(seed))


@pytest.mark.parametrize(
    "size, kernel, stride, padding", [(7, 6, 1, 0), (9, 6, 2, 0), (10, 9, 1, 0), (9, 9, 1, 1), (8, 9, 3, 2)]
)
def test_conv2d_of_a_kernel_almost_as_large_as_the_image_is_what_its_loops_compute(size, kernel, stride, padding):
    rng = np.random.default_rng(15)
    x, w = rng.standard_normal((2, 2, size, size + 1)), rng.standard_normal((3, 2, kernel, kernel))
    compare_conv2d_with_loops(x, w, rng.standard_normal(3), stride, padding)


@pytest.mark.parametrize("n", [63, 64, 65, 200])
@pytest.mark.parametrize("stride, padding", [(1, 1), (2, 0), (3, 2)])
def test_conv2d_of_many_images_is_a_sum_of_shifted_images(n, stride, padding):
    rng = np.random.default_rng(n)
    compare_conv2d_with_shifted_images(
        rng.standard_normal((n, 2, 6, 5)), rng.standard_normal((3, 2, 3, 2)), rng.standard_normal(3), stride, padding
    )


def compare_conv2d_with_shifted_images(x, w, b, stride, padding):
    values = [Value(a) for a in (x, w, b)]
    out = conv2d(*values, stride, padding)
    v = upstream(out.shape)
    (out * v).sum().backward_all()
    padded = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    expected, dpadded, dw = np.zeros(out.shape) + b[:, None, None], np.zeros(padded.shape), np.zeros(w.shape)
    oh, ow = out.shape[2:]
    for i, j in np.ndindex(w.shape[2:]):
        cell = np.s_[:, :, i : i + (oh - 1) * stride + 1 : stride, j : j + (ow - 1) * stride + 1 : stride]
        expected += np.einsum("oc,nchw->nohw", w[:, :, i, j], padded[cell])
        dpadded[cell] += np.einsum("oc,nohw->nchw", w[:, :, i, j], v)
        dw[:, :, i, j] = np.einsum("nohw,nchw->oc", v, padded[cell])
    dx = dpadded[:, :, padding : padding + x.shape[2], padding : padding + x.shape[3]]
    for a, e in zip((out.data, *(v.grad for v in values)), (expected, dx, dw, v.sum(axis=(0, 2, 3)))):
        np.testing.assert_allclose(a, e, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape, kernel", [((64, 12, 6, 42), (9, 12, 3, 3)), ((8, 24, 20, 20), (24, 24, 5, 5))], ids=name)
def test_conv2d_in_parts_of_its_columns_is_a_sum_of_shifted_images(shape, kernel, stride):
    """The first takes its products in parts of 1,028 columns; the second is too large for parts that are worth it."""
    rng = np.random.default_rng(12)
    x, w, b = rng.standard_normal(shape), rng.standard_normal(kernel), rng.standard_normal(kernel[0])
    assert (len(engine._column_parts(shape[0] * 20, w.size)) > 1) == (w.size < 1000)
    compare_conv2d_with_shifted_images(x, w, b, stride, 1)


@pytest.mark.parametrize("constants", list(itertools.product([False, True], repeat=3)), ids=name)
def test_conv2d_gives_constants_no_gradient_and_the_others_the_right_one(constants):
    x, w, b, stride, padding = *random_convolution(300)[:2], np.array([1.0, -2.0, 0.5]), 2, 1
    w = np.concatenate([w, w, w])[:3]
    operands = [a if constant else Value(a) for a, constant in zip((x, w, b), constants)]
    out = conv2d(*operands, stride, padding)
    if all(constants):
        assert not out.requires_grad
        return
    v = upstream(out.shape)
    (out * v).sum().backward_all()
    for value, gradient in zip(operands, loop_conv2d(x, w, b, stride, padding, v)[1:]):
        if isinstance(value, Value):
            np.testing.assert_allclose(value.grad, gradient, rtol=1e-12, atol=1e-12)


def test_conv2d_is_cross_correlation_by_hand():
    x = Value(np.arange(9.0).reshape(1, 1, 3, 3))
    w = Value(np.array([[[[1.0, 2.0], [3.0, 4.0]]]]))
    out = conv2d(x, w, Value(np.array([100.0])))
    np.testing.assert_array_equal(out.data, [[[[127, 137], [157, 167]]]])
    out.sum().backward_all()
    np.testing.assert_array_equal(w.grad, [[[[8, 12], [20, 24]]]])
    np.testing.assert_array_equal(x.grad, [[[[1, 3, 2], [4, 10, 6], [3, 7, 4]]]])


def test_conv2d_drops_the_rows_and_columns_that_fill_no_window():
    x = Value(np.ones((1, 1, 6, 5)))
    out = conv2d(x, np.ones((1, 1, 3, 2)), stride=2)
    assert out.shape == (1, 1, 2, 2)
    out.sum().backward_all()
    once, twice, never = [1, 1, 1, 1, 0], [2, 2, 2, 2, 0], [0, 0, 0, 0, 0]
    np.testing.assert_array_equal(x.grad[0, 0], [once, once, twice, once, once, never])


def test_conv2d_with_a_stride_beyond_the_image_sees_one_window():
    for stride in (4, 5, 100, 2**40):
        x = Value(np.arange(12.0).reshape(1, 1, 3, 4))
        out = conv2d(x, np.ones((1, 1, 2, 2)), stride=stride)
        np.testing.assert_array_equal(out.data, [[[[0 + 1 + 4 + 5]]]])
        out.sum().backward_all()
        np.testing.assert_array_equal(x.grad[0, 0], [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]])


# ---- Max pooling ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", [(2, 2, 4, 4), (1, 3, 5, 7), (3, 1, 6, 4), (1, 1, 4, 9)], ids=name)
def test_max_pooling_gradients(shape, stride):
    check_gradients(lambda v: max_pooling(v, stride), apart(np.random.default_rng(13), shape))


@pytest.mark.parametrize("values", [2, 4, 1000], ids=["mostly_ties", "many_ties", "few_ties"])
@pytest.mark.parametrize("seed", range(30))
def test_max_pooling_is_what_its_loops_compute(seed, values):
    rng = np.random.default_rng(seed)
    stride = int(rng.integers(1, 5))
    N, C, H, W = (*rng.integers(1, 4, 2), *rng.integers(stride, stride + 6, 2))
    x = rng.integers(-(values // 2), values - values // 2, (N, C, H, W)).astype(float)
    a = Value(x)
    out = max_pooling(a, stride)
    v = upstream(out.shape)
    (out * v).sum().backward_all()
    expected, gradient = loop_max_pooling(x, stride, v)
    np.testing.assert_array_equal(out.data, expected, strict=True)
    np.testing.assert_array_equal(a.grad, gradient, err_msg=f"x {x.shape}, stride {stride}")


def test_max_pooling_gives_a_tie_to_the_first_in_row_major_order():
    for window, gradient in [
        ([[7, 7], [7, 7]], [[1, 0], [0, 0]]),
        ([[1, 7], [7, 7]], [[0, 1], [0, 0]]),
        ([[1, 2], [7, 7]], [[0, 0], [1, 0]]),
        ([[1, 7], [7, 2]], [[0, 1], [0, 0]]),
        ([[7, 1], [7, 7]], [[1, 0], [0, 0]]),
        ([[1, 2], [3, 7]], [[0, 0], [0, 1]]),
        ([[-0.0, 0.0], [0.0, -0.0]], [[1, 0], [0, 0]]),
    ]:
        x = Value(np.array(window, float).reshape(1, 1, 2, 2))
        max_pooling(x, 2).sum().backward_all()
        np.testing.assert_array_equal(x.grad[0, 0], gradient)


def test_max_pooling_conserves_the_gradient():
    x = Value(np.random.default_rng(14).integers(0, 2, (2, 3, 6, 8)).astype(float))
    max_pooling(x, 2).sum().backward_all()
    np.testing.assert_array_equal(x.grad.reshape(2, 3, 3, 2, 4, 2).sum(axis=(3, 5)), np.ones((2, 3, 3, 4)))


def test_max_pooling_drops_what_fills_no_window():
    x = Value(np.arange(35.0).reshape(1, 1, 5, 7))
    out = max_pooling(x, 2)
    np.testing.assert_array_equal(out.data[0, 0], [[8, 10, 12], [22, 24, 26]])
    out.sum().backward_all()
    assert x.grad.sum() == 6
    np.testing.assert_array_equal(x.grad[0, 0, 4], np.zeros(7))
    np.testing.assert_array_equal(x.grad[0, 0, :, 6], np.zeros(5))


# ---- Cross-entropy --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (4, 1), (3, 4), (5, 10)], ids=name)
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


# ---- Layers ---------------------------------------------------------------------------------------------------------


def with_parameters(layer, parameters):
    """The layer with these Values in place of its own."""
    layer.weight, layer.bias = parameters
    return layer


@pytest.mark.parametrize("shape", [(3,), (4, 3), (2, 4, 3), (0, 3)], ids=name)
def test_neuron_and_linear_layer_gradients(shape):
    rng = np.random.default_rng(16)
    x = rng.standard_normal(shape)
    check_gradients(lambda x, *p: with_parameters(Neuron(3), p)(x), x, rng.standard_normal(3), rng.standard_normal(()))
    check_gradients(
        lambda x, *p: with_parameters(LinearLayer(3, 2), p)(x), x, rng.standard_normal((3, 2)), rng.standard_normal(2)
    )


@pytest.mark.parametrize("shape", [(3,), (1, 3), (5, 3)], ids=name)
@pytest.mark.parametrize("sizes", [[2], [4, 2], [3, 1, 2]], ids=name)
def test_mlp_gradients(sizes, shape):
    rng = np.random.default_rng(17)
    mlp = MLP(3, sizes)
    shapes = [p.shape for p in mlp.parameters()]

    def f(x, *parameters):
        for layer, pair in zip(mlp.layers, zip(parameters[::2], parameters[1::2])):
            with_parameters(layer, pair)
        return mlp(x)

    check_gradients(f, rng.standard_normal(shape), *(rng.standard_normal(shape) for shape in shapes))


def test_mlp_computes_tanh_on_all_but_the_last_layer():
    rng = np.random.default_rng(18)
    mlp = MLP(3, [4, 5, 2])
    (w0, b0), (w1, b1), (w2, b2) = [(layer.weight.data, layer.bias.data) for layer in mlp.layers]
    x = rng.standard_normal((6, 3))
    expected = np.tanh(np.tanh(x @ w0 + b0) @ w1 + b1) @ w2 + b2
    np.testing.assert_allclose(mlp(x).data, expected, rtol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
def test_conv2d_layer_gradients(bias):
    rng = np.random.default_rng(19)
    layer = Conv2dLayer(2, 3, 2, bias=bias, stride=2, padding=1)
    arrays = [rng.standard_normal(p.shape) for p in layer.parameters()]
    check_gradients(
        lambda x, w, b=None: with_parameters(layer, (w, b))(x), rng.standard_normal((2, 2, 4, 3)), *arrays
    )


@pytest.mark.parametrize("seed", range(10))
def test_cnn_gradient_in_a_random_direction_of_all_its_parameters(seed):
    rng = np.random.default_rng(seed)
    np.random.seed(seed)
    cnn = CNN()
    layers = [cnn.conv1, cnn.conv2, cnn.linear]
    start = [(layer.weight.data, layer.bias.data) for layer in layers]
    directions = [tuple(rng.standard_normal(a.shape) for a in pair) for pair in start]
    x, y = rng.standard_normal((2, 1, 28, 28)), rng.integers(0, 10, 2)

    def f(t):
        for layer, pair, direction in zip(layers, start, directions):
            with_parameters(layer, tuple(a + t * d for a, d in zip(pair, direction)))
        return cross_entropy(cnn(x), y)

    check_gradients(f, np.array(0.0), eps=1e-7, rtol=1e-4)


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
                    lambda: a + b,
                    lambda: a - b,
                    lambda: a * b,
                    lambda: a / (b * b + 1.5),
                    lambda: a.tanh(),
                    lambda: (a * 0.25).tanh().exp(),
                    lambda: (a * a).log(0.5),
                    lambda: a.mean(axis=-1, keepdims=True),
                    lambda: (a * a + 1.0) ** -0.5,
                    lambda: 2.0 - a,
                    lambda: stack([a, a * 0.5]).sum(axis=0),
                ][kind]().tanh()
            )  # fmt: skip
        return sum(v.sum() * (k + 1) for k, v in enumerate(values))

    rng = np.random.default_rng(seed + 1000)
    check_gradients(f, rng.standard_normal((2, 3)), rng.standard_normal((2, 1)), rng.standard_normal(3), seed=seed)


FLOAT32_CASES = {
    **{f"a {symbol} b": (f, [(4, 3), (3,)]) for symbol, f in ARITHMETIC.items()},
    "a ** 3": (lambda a: a**3, [(4, 3)]),
    "abs(a) ** 0.5": (lambda a: (a * a) ** 0.25, [(4, 3)]),
    "a @ b": (operator.matmul, [(5, 4, 3), (3, 2)]),
    "vector @ vector": (operator.matmul, [(3,), (3,)]),
    "tanh": (lambda a: a.tanh(), [(4, 3)]),
    "relu": (lambda a: a.relu(), [(4, 3)]),
    "exp": (lambda a: a.exp(), [(4, 3)]),
    "log": (lambda a: (a * a).log(), [(4, 3)]),
    "sum": (lambda a: a.sum(1), [(4, 3)]),
    "mean": (lambda a: a.mean((0, 2)), [(2, 4, 3)]),
    "neg": (lambda a: -a, [(4, 3)]),
    "reshape": (lambda a: a.reshape(2, -1), [(4, 3)]),
    "stack": (lambda a, b: stack([a, b, a], 1), [(4, 3), (4, 3)]),
    "conv2d": (lambda *v: conv2d(*v, stride=2, padding=1), [(2, 3, 6, 5), (4, 3, 3, 2), (4,)]),
    "max_pooling": (lambda a: max_pooling(a, 2), [(2, 3, 5, 6)]),
    "cross_entropy": (lambda a: cross_entropy(a, [0, 2, 1, 2]), [(4, 3)]),
}


@pytest.mark.parametrize("case", list(FLOAT32_CASES))
@pytest.mark.parametrize("seed", range(5))
def test_float32_results_are_those_of_float64(case, seed):
    f, shapes = FLOAT32_CASES[case]
    rng = np.random.default_rng(seed)
    arrays = [away_from_zero(rng, shape).astype(np.float32) for shape in shapes]
    results = {}
    for dtype in (np.float32, np.float64):
        values = [Value(a.astype(dtype)) for a in arrays]
        out = f(*values)
        (out * upstream(out.shape, seed).astype(dtype) if out.shape else out * 1.5).sum().backward_all()
        results[dtype] = [out.data] + [v.grad for v in values]
        assert all(a.dtype == dtype for a in results[dtype])
    for a, b in zip(results[np.float32], results[np.float64]):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6 * max(1.0, np.abs(b).max()))


# ---- At kinks -------------------------------------------------------------------------------------------------------


def gradient(f, x):
    value = Value(x)
    f(value).sum().backward_all()
    return value.grad


def test_relu_has_gradient_0_at_0():
    np.testing.assert_array_equal(gradient(lambda v: v.relu(), np.array([-1.0, -0.0, 0.0, 1.0])), [0, 0, 0, 1])
    for x, expected in [(-1.0, 0.0), (0.0, 0.0), (-0.0, 0.0), (1.0, 1.0)]:
        assert gradient(lambda v: v.relu(), x) == expected


def test_power_0_is_1_and_has_gradient_0_everywhere():
    for exponent in (0, 0.0, -0.0, False):
        x = np.array([-2.0, 0.0, 3.0, math.inf, math.nan])
        np.testing.assert_array_equal((Value(x) ** exponent).data, np.ones(5))
        np.testing.assert_array_equal(gradient(lambda v: v**exponent, x), np.zeros(5))
        assert gradient(lambda v: v**exponent, 0.0) == 0.0


def test_powers_at_0():
    np.testing.assert_array_equal(gradient(lambda v: v**1, np.array([0.0])), [1])
    np.testing.assert_array_equal(gradient(lambda v: v**2, np.array([0.0])), [0])
    np.testing.assert_array_equal(gradient(lambda v: v**1.5, np.array([0.0])), [0])
    assert gradient(lambda v: v**1, 0.0) == 1.0


def test_square_root_at_0_has_an_infinite_gradient_and_a_warning():
    for x in (np.array([0.0]), 0.0):
        with pytest.warns(RuntimeWarning, match="divide by zero"):
            assert gradient(lambda v: v**0.5, x) == math.inf


def test_log_at_0_is_finite_with_gradient_1_over_eps():
    np.testing.assert_array_equal(Value(np.array([0.0])).log().data, [math.log(1e-12)])
    np.testing.assert_array_equal(gradient(lambda v: v.log(), np.array([0.0])), [1 / 1e-12])
    np.testing.assert_array_equal(gradient(lambda v: v.log(eps=0.25), np.array([0.0])), [4])


# ---- The checker itself ---------------------------------------------------------------------------------------------

X = np.array([[0.5, -1.0, 2.0], [1.5, 0.25, -0.75]])
SQUARE = np.array([[0.5, -1.0], [1.5, 0.25]])
WRONG = {
    "50 times too large": lambda x, g: 50 * g * 3 * x**2,
    "0.01 % too large": lambda x, g: 1.0001 * g * 3 * x**2,
    "a factor missing": lambda x, g: g * x**2,
    "the wrong sign": lambda x, g: -g * 3 * x**2,
    "zero": lambda x, g: 0 * g,
    "the upstream gradient ignored": lambda x, g: 3 * x**2,
    "the upstream gradient passed on": lambda x, g: g,
    "the upstream gradient averaged": lambda x, g: np.mean(g) * 3 * x**2,
    "nan": lambda x, g: g * math.nan,
    "infinite": lambda x, g: g * math.inf,
    "one element wrong": lambda x, g: g * 3 * x**2 + 0.001 * (np.arange(6).reshape(2, 3) == 5),
    "reversed": lambda x, g: (g * 3 * x**2)[::-1],
}


def cube(v, gradient):
    return operation(v.data**3, (v,), lambda g: (gradient(v.data, g),))


def test_checker_accepts_a_right_gradient():
    check_gradients(lambda v: cube(v, lambda x, g: g * 3 * x**2), X)


@pytest.mark.parametrize("mistake", list(WRONG))
def test_checker_rejects_a_gradient_that_is(mistake):
    with pytest.raises(AssertionError, match=r"input 0 of shape \(2, 3\), element .* central differences give"):
        check_gradients(lambda v: cube(v, WRONG[mistake]), X)


def test_checker_rejects_a_transposed_gradient():
    with pytest.raises(AssertionError, match=r"input 0 of shape \(2, 2\)"):
        check_gradients(lambda v: cube(v, lambda x, g: (g * 3 * x**2).T), SQUARE)


def test_checker_rejects_a_missing_gradient():
    with pytest.raises(AssertionError, match="input 1"):
        check_gradients(lambda a, b: operation(a.data * b.data, (a, b), lambda g: (g * b.data,)), X, X + 3)


def test_checker_rejects_swapped_gradients():
    with pytest.raises(AssertionError, match="input 0"):
        check_gradients(lambda a, b: operation(a.data * b.data, (a, b), lambda g: (g * a.data, g * b.data)), X, X + 3)


def test_checker_rejects_a_wrong_gradient_of_a_python_number():
    check_gradients(lambda v: cube(v, lambda x, g: g * 3 * x**2), 1.5)
    with pytest.raises(AssertionError, match="input 0"):
        check_gradients(lambda v: cube(v, lambda x, g: g * 2 * x**2), 1.5)


def test_checker_rejects_a_function_that_modifies_its_input():
    def f(v):
        v.data *= 2
        return v * 1.0

    with pytest.raises(AssertionError, match="input 0 was modified"):
        check_gradients(f, X)


def test_checker_does_not_modify_its_inputs():
    x = X.copy()
    check_gradients(lambda v: v * v, x)
    np.testing.assert_array_equal(x, X)
