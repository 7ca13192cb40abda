"""conv2d and max_pooling compute what their definitions in loops compute, and so do their gradients."""

import itertools
import math

import numpy as np
import pytest

import engine
from engine import Value, conv2d, max_pooling
from tests.gradcheck import apart, check_gradients, loop_conv2d, loop_max_pooling, upstream
from tests.misuse import NO_POSITIVE_SIZES, NO_SIZES_FROM_ZERO, TYPE, VALUE, check, misuse
from tests.operations import case, naming

f32, f64 = np.float32, np.float64


def leaves(*arrays):
    return [Value(a) for a in arrays]


# ---- conv2d ---------------------------------------------------------------------------------------------------------


def compare_conv2d_with_loops(x, w, b=None, stride=1, padding=0):
    values = [None if a is None else Value(a) for a in (x, w, b)]
    out = conv2d(*values, stride, padding)
    v = upstream(out.shape)
    (out * v).sum().backward_all()
    expected, *gradients = loop_conv2d(x, w, b, stride, padding, v)
    assert out.shape == expected.shape
    np.testing.assert_allclose(out.data, expected, rtol=1e-12, atol=1e-12)
    for what, value, gradient in zip("xwb", values, gradients):
        if value is not None:
            np.testing.assert_allclose(value.grad, gradient, rtol=1e-12, atol=1e-12, err_msg=f"d{what}")


def test_conv2d_is_what_its_loops_compute():
    for seed in range(200):
        c = case("conv2d", seed=seed)
        with naming(c):
            compare_conv2d_with_loops(*c.arrays, **c.options)


@pytest.mark.parametrize(
    "size, kernel, stride, padding",
    [(7, 6, 1, 0), (9, 6, 2, 0), (10, 9, 1, 0), (9, 9, 1, 1), (8, 9, 3, 2), (5, 5, 1, 0)],
)
def test_conv2d_of_a_kernel_almost_as_large_as_the_image(size, kernel, stride, padding):
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
@pytest.mark.parametrize(
    "shape, kernel", [((64, 12, 6, 42), (9, 12, 3, 3)), ((8, 24, 20, 20), (24, 24, 5, 5))], ids=str
)
def test_conv2d_in_parts_of_its_columns(shape, kernel, stride):
    """The first takes its products in parts of 1,028 columns; the second is too large for parts that are worth it."""
    rng = np.random.default_rng(12)
    x, w, b = rng.standard_normal(shape), rng.standard_normal(kernel), rng.standard_normal(kernel[0])
    assert (len(engine._column_parts(shape[0] * 20, w.size)) > 1) == (w.size < 1000)
    compare_conv2d_with_shifted_images(x, w, b, stride, 1)


@pytest.mark.parametrize("kernel_size", [1, 7, 100, 999, 1000, 1001, 2000, 10**6, 10**7])
@pytest.mark.parametrize("n", [0, 1, 999, 1000, 1001, 5000, 123_457])
def test_column_parts_cover_every_column_once(n, kernel_size):
    parts = engine._column_parts(n, kernel_size)
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(n))
    assert all(part.step is None for part in parts)
    sizes = [part.stop - part.start for part in parts]
    if kernel_size > 1000:
        assert sizes == [n]  # parts of less than 1000 columns are not worth it
    else:
        assert max(sizes, default=0) * kernel_size <= 10**6
        assert max(sizes, default=0) - min(sizes, default=0) <= 1


@pytest.mark.parametrize("constants", list(itertools.product([False, True], repeat=3)), ids=str)
def test_conv2d_gives_constants_no_gradient(constants):
    """And the others the right one."""
    rng = np.random.default_rng(300)
    x, w, b = rng.standard_normal((2, 3, 6, 5)), rng.standard_normal((3, 3, 2, 3)), np.array([1.0, -2.0, 0.5])
    operands = [a if constant else Value(a) for a, constant in zip((x, w, b), constants)]
    out = conv2d(*operands, 2, 1)
    if all(constants):
        assert not out.requires_grad
        return
    v = upstream(out.shape)
    (out * v).sum().backward_all()
    for value, gradient in zip(operands, loop_conv2d(x, w, b, 2, 1, v)[1:]):
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


def test_conv2d_with_a_stride_beyond_the_kernel_skips_pixels():
    rng = np.random.default_rng(4)
    for stride in (3, 4, 7):
        compare_conv2d_with_loops(rng.standard_normal((2, 2, 9, 8)), rng.standard_normal((2, 2, 2, 2)), None, stride, 1)


def test_conv2d_of_float32_and_float64():
    """Each operand gets a gradient of its own dtype."""
    x, w, b = leaves(np.ones((1, 1, 3, 3), f32), np.ones((1, 1, 2, 2), f64), np.ones(1, f32))
    out = conv2d(x, w, b)
    assert out.data.dtype == f64
    out.sum().backward_all()
    assert (x.grad.dtype, w.grad.dtype, b.grad.dtype) == (f32, f64, f32)


@pytest.mark.parametrize("stride", [1, 2])
def test_conv2d_of_infinite_values(stride):
    """An infinite pixel makes the results infinite whose windows see it, and no others."""
    x = np.ones((2, 1, 5, 5))
    x[0, 0, 1, 3] = math.inf
    w, b = np.full((1, 1, 2, 2), 2.0), np.array([1.0])
    values = [Value(a) for a in (x, w, b)]
    out = conv2d(*values, stride)
    expected, *_ = loop_conv2d(x, w, b, stride, 0, np.ones(out.shape))
    assert np.isinf(expected).any() and np.isfinite(expected[1]).all() and not np.isnan(expected).any()
    np.testing.assert_array_equal(out.data, expected)
    out.sum().backward_all()
    _, dx, dw, db = loop_conv2d(x, w, b, stride, 0, np.ones(out.shape))
    for value, gradient in zip(values, (dx, dw, db)):
        np.testing.assert_array_equal(value.grad, gradient)


@np.errstate(invalid="ignore")  # OpenBLAS with AVX-512 sets this flag for inf, though the result is right
def test_conv2d_of_an_infinite_kernel_and_of_nan():
    x, w = np.ones((1, 2, 3, 3)), np.ones((2, 2, 2, 2))
    w[1, 0, 0, 0] = math.inf
    out = conv2d(x, w)
    np.testing.assert_array_equal(out.data[0, 0], np.full((2, 2), 8.0))
    np.testing.assert_array_equal(out.data[0, 1], np.full((2, 2), math.inf))
    x[0, 0, 0, 0] = math.nan
    np.testing.assert_array_equal(
        np.isnan(conv2d(x, np.ones((1, 2, 2, 2))).data[0, 0]), [[True, False], [False, False]]
    )


@pytest.mark.parametrize("bias", [True, False])
def test_conv2d_of_no_images(bias):
    operands = [Value(np.zeros(s)) for s in [(0, 2, 4, 5), (3, 2, 2, 2), (3,)][: 2 + bias]]
    out = conv2d(*operands, stride=2, padding=1)
    assert out.shape == (0, 3, 3, 3)
    out.sum().backward_all()
    for v in operands:
        np.testing.assert_array_equal(v.grad, np.zeros(v.shape), strict=True)


# ---- max_pooling ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@pytest.mark.parametrize("shape", [(2, 2, 4, 4), (1, 3, 5, 7), (3, 1, 6, 4), (1, 1, 4, 9)], ids=str)
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


def test_max_pooling_gives_a_tie_to_the_first():
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


def test_max_pooling_of_no_images():
    x = Value(np.zeros((0, 2, 4, 5)))
    out = max_pooling(x, 2)
    assert out.shape == (0, 2, 2, 2)
    out.sum().backward_all()
    np.testing.assert_array_equal(x.grad, np.zeros((0, 2, 4, 5)), strict=True)


# ---- Misuse ---------------------------------------------------------------------------------------------------------


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
    ("a_kernel_higher_than_x", lambda: convolve(w=(4, 3, 6, 3)), VALUE, r"^conv2d: .*\(6, 3\).*larger.*\(2, 3, 5, 6\)"),
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


@pytest.mark.parametrize("thing", ["none", "string", "masked", "masked_integers", "complex"])
def test_refused_operands_are_named(thing):
    """What is no real numbers is called by the name of the argument."""
    for position, name in enumerate("xwb"):
        operands = [np.ones((1, 1, 1, 1)), np.ones((1, 1, 1, 1)), np.ones(1)]
        dtype = int if thing == "masked_integers" else float
        wrong = {"string": "x", "complex": operands[position] * 1j}.get(
            thing, np.ma.array(operands[position], dtype=dtype)
        )
        operands[position] = None if thing == "none" else wrong
        if not (name == "b" and thing == "none"):  # which is no bias
            check(lambda operands=operands: conv2d(*operands), TYPE, f"^{name} must be real numbers")
    check(lambda: max_pooling(None if thing == "none" else wrong, 1), TYPE, "^x must be real numbers")


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
    (
        "a_window_higher_than_x",
        lambda: max_pooling(np.ones((2, 3, 4, 6)), 5),
        VALUE,
        r"^max_pooling: .*5.*larger.*\(2, 3, 4, 6\)",
    ),
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
