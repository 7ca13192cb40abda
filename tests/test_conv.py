"""conv2d and max_pooling against their definitions: loops over every pixel, and numbers worked out by hand."""

import itertools
import math

import numpy as np
import pytest

from engine import Value, as_value, conv2d, max_pooling
from tests.gradcheck import apart, check_gradients, loop_conv2d, loop_max_pooling, upstream

f32, f64 = np.float32, np.float64


def shifted_conv2d(x, w, b, stride, padding, grad):
    """loop_conv2d for large images: one cell of the kernel at a time, for all positions at once."""
    (_, _, H, W), (kh, kw) = x.shape, w.shape[2:]
    down, right = (H + 2 * padding - kh) // stride, (W + 2 * padding - kw) // stride
    padded = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    dpadded, dw = np.zeros(padded.shape), np.zeros(w.shape)
    out = np.zeros((len(x), len(w), down + 1, right + 1)) + b[:, None, None]
    for i, j in np.ndindex(kh, kw):
        covered = np.s_[:, :, i : i + down * stride + 1 : stride, j : j + right * stride + 1 : stride]
        out += np.einsum("oc,nchw->nohw", w[:, :, i, j], padded[covered])
        dpadded[covered] += np.einsum("oc,nohw->nchw", w[:, :, i, j], grad)
        dw[:, :, i, j] = np.einsum("nohw,nchw->oc", grad, padded[covered])
    return out, dpadded[:, :, padding : padding + H, padding : padding + W], dw, grad.sum(axis=(0, 2, 3))


def check_conv2d(x, w, b, stride, padding, definition=loop_conv2d, rtol=1e-12):
    values = [None if a is None else as_value(a) for a in (x, w, b)]
    out = conv2d(*values, stride=stride, padding=padding)
    v = upstream(out.shape)
    expected, *gradients = definition(*(None if a is None else a.data.astype(f64) for a in values), stride, padding, v)
    assert out.dtype == np.result_type(*(a.dtype for a in values if a is not None)) and out.shape == expected.shape
    tolerance = {f64: rtol, f32: 1e-5}
    np.testing.assert_allclose(out.data, expected, *[tolerance[out.dtype.type]] * 2)
    assert out.requires_grad == any(a is not None and a.requires_grad for a in values)
    if out.requires_grad:
        (out * v).sum().backward_all()
    for name, a, gradient in zip("xwb", values, gradients):
        if a is not None:
            assert a.grad.dtype == a.dtype and a.grad.shape == a.shape
            gradient = gradient if a.requires_grad else np.zeros(a.shape)
            np.testing.assert_allclose(a.grad, gradient, *[tolerance[a.dtype.type]] * 2, err_msg=f"gradient of {name}")


# ---- conv2d ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", [0, 1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2, 3, 4, 5, 6, 7])
def test_conv2d_is_what_its_loops_compute(stride, padding):
    rng = np.random.default_rng(10 * stride + padding)
    for bias in (True, False, True):
        N, C, O, kh, kw = rng.integers(1, [3, 4, 4, 6, 6])
        H, W = np.maximum([kh, kw] + rng.integers(0, 8, 2) - 2 * padding, 1)
        x, w = Value(rng.standard_normal((N, C, H, W))), Value(rng.standard_normal((O, C, kh, kw)))
        check_conv2d(x, w, Value(rng.standard_normal(O)) if bias else None, stride, padding)


@pytest.mark.parametrize("stride, padding", [(1, 1), (2, 0), (3, 2)])
@pytest.mark.parametrize(
    "image, kernel", [((230, 2, 5, 18), (3, 2, 3, 2)), ((100, 1, 9, 64), (2, 1, 3, 5)), ((2048, 1, 3, 5), (2, 1, 2, 3))]
)
def test_conv2d_of_large_batches_and_wide_images(image, kernel, stride, padding):
    rng = np.random.default_rng(1)
    x, w, b = (Value(rng.standard_normal(shape)) for shape in (image, kernel, kernel[:1]))
    check_conv2d(x, w, b, stride, padding, shifted_conv2d, rtol=1e-10)


@pytest.mark.parametrize("stride, padding", [(1, 0), (2, 1), (3, 2)])
def test_both_have_the_gradients_of_central_differences(stride, padding):
    rng = np.random.default_rng(2)
    x, w, b = map(rng.standard_normal, [(2, 2, 5, 4), (2, 2, 3, 2), (2,)])
    check_gradients(lambda x, w, b: conv2d(x, w, b, stride, padding), x, w, b)
    check_gradients(lambda x: max_pooling(x, stride), apart(rng, x.shape))


def test_conv2d_is_cross_correlation_worked_out_by_hand():
    x, w = Value(np.arange(9.0).reshape(1, 1, 3, 3)), Value(np.array([[[[1.0, 2.0], [3.0, 4.0]]]]))
    out = conv2d(x, w, np.array([100.0]))
    np.testing.assert_array_equal(out.data, [[[[127, 137], [157, 167]]]])
    out.sum().backward_all()
    np.testing.assert_array_equal(w.grad, [[[[8, 12], [20, 24]]]])
    np.testing.assert_array_equal(x.grad, [[[[1, 3, 2], [4, 10, 6], [3, 7, 4]]]])


@pytest.mark.parametrize("stride, columns", [(3, [1, 1, 0, 1, 1]), (9, [1, 1, 0, 0, 0])])
def test_pixels_that_no_window_covers_get_no_gradient(stride, columns):
    x = Value(np.ones((1, 1, 5, 5)))
    conv2d(x, np.ones((1, 1, 3, 2)), stride=stride).sum().backward_all()
    np.testing.assert_array_equal(x.grad[0, 0], np.outer([1, 1, 1, 0, 0], columns))  # how many windows cover each pixel


@pytest.mark.parametrize("dtypes", list(itertools.product([f32, f64], repeat=3)))
def test_conv2d_computes_in_the_widest_dtype_and_gradients_have_their_operand_s(dtypes):
    rng = np.random.default_rng(3)
    shapes = (2, 2, 5, 4), (3, 2, 2, 3), (3,)
    check_conv2d(*[Value(rng.standard_normal(s).astype(dtype)) for s, dtype in zip(shapes, dtypes)], 2, 1)


@pytest.mark.parametrize("constants", list(itertools.product([False, True], repeat=3)))
def test_constants_get_no_gradient_and_the_others_the_right_one(constants):
    rng = np.random.default_rng(4)
    arrays = map(rng.standard_normal, [(2, 3, 6, 5), (3, 3, 2, 3), (3,)])
    check_conv2d(*[as_value(a) if constant else Value(a) for a, constant in zip(arrays, constants)], 2, 1)


@pytest.mark.parametrize("axes", [(0, 2, 3, 1), (2, 1, 3, 0), (3, 2, 1, 0)])
@pytest.mark.parametrize("step", [1, -1, 2])
def test_the_memory_order_of_images_changes_nothing(axes, step):
    def same(a):  # the same numbers, the axes in this order in memory, and the last one backwards or with gaps
        a = a.transpose(axes)[..., :: 1 if step > 0 else -1]
        return np.repeat(a, abs(step), axis=-1)[..., ::step].transpose(np.argsort(axes))

    rng = np.random.default_rng(5)
    x, w = rng.standard_normal((2, 3, 5, 4)), rng.standard_normal((2, 3, 2, 2))
    for f in (lambda x: conv2d(x, same(w)), lambda x: max_pooling(x, 2)):
        a, b = Value(x), Value(same(x))
        v = upstream(f(a).shape)
        (f(a) * v).sum().backward_all()
        (f(b) * same(v)).sum().backward_all()
        np.testing.assert_allclose(f(b).data, f(a).data, rtol=1e-13)
        np.testing.assert_allclose(b.grad, a.grad, rtol=1e-13)


def test_an_empty_batch_has_an_empty_result_and_gradients_of_zero():
    x, w, b = Value(np.zeros((0, 2, 4, 5))), Value(np.ones((3, 2, 2, 2))), Value(np.ones(3))
    for out, shape in [(conv2d(x, w, b, 2, 1), (0, 3, 3, 3)), (max_pooling(x, 2), (0, 2, 2, 2))]:
        assert out.shape == shape
        out.sum().backward_all()
        for v in (x, w, b):
            np.testing.assert_array_equal(v.grad, np.zeros(v.shape), strict=True)


# ---- max_pooling ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("different", [2, 4, 1000], ids=["mostly_ties", "many_ties", "few_ties"])
@pytest.mark.parametrize("stride", [1, 2, 3, 4, 5, 6, 7])
@pytest.mark.parametrize("dtype", [f32, f64])
def test_max_pooling_is_what_its_loops_compute(dtype, stride, different):
    rng = np.random.default_rng(stride)
    for _ in range(3):
        shape = (*rng.integers(1, 4, 2), *rng.integers(stride, 3 * stride + 3, 2))
        x = Value((rng.integers(0, different, shape) - different // 2).astype(dtype))
        out = max_pooling(x, stride)
        v = upstream(out.shape).astype(dtype)
        (out * v).sum().backward_all()
        expected, gradient = loop_max_pooling(x.data, stride, v)
        np.testing.assert_array_equal(out.data, expected.astype(dtype), strict=True)
        np.testing.assert_array_equal(x.grad, gradient.astype(dtype), strict=True)


@pytest.mark.parametrize(
    "window, first",
    [("77/77", "10/00"), ("17/77", "01/00"), ("12/77", "00/10"), ("17/72", "01/00"), ("12/37", "00/01")]
    + [("377/777/777", "010/000/000"), ("123/477/777", "000/010/000"), ("123/456/788", "000/000/010")],
)
def test_the_first_of_equal_pixels_gets_the_gradient(window, first):
    window, first = ([[float(digit) for digit in row] for row in text.split("/")] for text in (window, first))
    x = Value(np.array([[window]]))
    (max_pooling(x, len(window)) * 5).sum().backward_all()
    np.testing.assert_array_equal(x.grad[0, 0] / 5, first)


@pytest.mark.parametrize("position", list(np.ndindex(2, 2)))
def test_nan_in_a_window_gives_nan_there_and_nowhere_else(position):
    x = np.array([[[[1.0, 2.0], [3.0, math.inf]], [[1.0, 1.0], [1.0, 1.0]]]])
    x[(0, 0, *position)] = math.nan
    x = Value(x)
    out = max_pooling(x, 2)
    np.testing.assert_array_equal(out.data, [[[[math.nan]], [[1.0]]]])
    out.sum().backward_all()
    np.testing.assert_array_equal(x.grad.sum(axis=(2, 3)), [[1, 1]])
    np.testing.assert_array_equal(x.grad[0, 1], [[1, 0], [0, 0]])


# ---- Shapes that do not fit -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "x, w, b, named",
    [
        ((5, 3, 6), (4, 3, 2, 3), None, ["(5, 3, 6)"]),
        ((2, 3, 5, 6), (4, 3, 2), None, ["(4, 3, 2)"]),
        ((2, 3, 5, 6), (4, 1, 2, 3), None, ["(2, 3, 5, 6)", "(4, 1, 2, 3)"]),
        ((2, 3, 5, 6), (4, 3, 0, 3), None, ["(4, 3, 0, 3)"]),
        ((2, 0, 5, 6), (4, 0, 2, 3), None, ["(4, 0, 2, 3)"]),
        ((2, 3, 5, 6), (4, 3, 2, 3), (1,), ["(4, 3, 2, 3)", "(1,)"]),
        ((2, 3, 5, 6), (4, 3, 2, 3), (4, 1), ["(4, 3, 2, 3)", "(4, 1)"]),
        ((2, 3, 5, 6), (4, 3, 8, 2), None, ["8, 2", "5, 6"]),  # one row more than the image has with padding 1
        ((2, 3, 5, 6), (4, 3, 2, 9), None, ["2, 9", "5, 6"]),
    ],
)
def test_conv2d_names_the_shapes_that_do_not_fit(x, w, b, named):
    with pytest.raises(ValueError) as error:
        conv2d(np.ones(x), np.ones(w), None if b is None else np.ones(b), padding=1)
    assert all(shape in str(error.value) for shape in named)


@pytest.mark.parametrize("shape, named", [((3, 4, 6), "(3, 4, 6)"), ((2, 3, 4, 6), "4, 6"), ((2, 3, 6, 4), "6, 4")])
def test_max_pooling_names_the_shape_that_does_not_fit(shape, named):
    with pytest.raises(ValueError) as error:
        max_pooling(np.ones(shape), 5)
    assert named in str(error.value)


@pytest.mark.parametrize("wrong, error", [(-1, ValueError)] + [(x, TypeError) for x in (1.0, "1", None, True, (1, 1))])
def test_strides_and_paddings_are_integers_in_range(wrong, error):
    image = np.ones((1, 1, 4, 4))
    assert conv2d(image, image, stride=np.int64(2), padding=np.int8(0)).shape == (1, 1, 1, 1)
    with pytest.raises(error, match="padding"):
        conv2d(image, image, padding=wrong)
    for f in (lambda stride: conv2d(image, image, stride=stride), lambda stride: max_pooling(image, stride)):
        for stride in (wrong, 0 if wrong == -1 else wrong):
            with pytest.raises(error, match="stride"):
                f(stride)
