"""check_gradients compares gradients with central differences; conv2d and max_pooling as naive loops; random arrays."""

import numpy as np

from engine import Value


def check_gradients(f, *inputs, seed=0, eps=1e-6, rtol=1e-5, atol=1e-7):
    """Raise AssertionError unless backward_all gives every input of f the gradient that central differences give.

    f takes Values, one for each input (a float, or an array that is used as float64), and returns a Value. The loss is
    sum(v * f(...)) with a random v, because a plain sum hides errors: it weighs every element of the result alike.
    """
    inputs = [x if type(x) is float else np.array(x, np.float64) for x in inputs]
    values = [Value(x if type(x) is float else x.copy()) for x in inputs]
    out = f(*values)
    v = np.random.default_rng(seed).standard_normal(np.shape(out.data))
    (out * v).sum().backward_all()

    def loss(k, x):
        return float(np.sum(v * f(*(Value(y) for y in [*inputs[:k], x, *inputs[k + 1 :]])).data))

    for k, (x, value) in enumerate(zip(inputs, values)):
        assert np.array_equal(value.data, x), f"input {k} was modified: it was {x} and is {value.data}"
        grad = np.asarray(value.grad)
        assert grad.shape == np.shape(x), f"input {k}: gradient of shape {grad.shape} for data of shape {np.shape(x)}"
        assert grad.dtype == np.float64, f"input {k}: gradient of dtype {grad.dtype} for data of dtype float64"
        for index in np.ndindex(np.shape(x)):
            if type(x) is float:
                above, below = x + eps, x - eps
            else:
                above, below = x.copy(), x.copy()
                above[index] += eps
                below[index] -= eps
            expected = (loss(k, above) - loss(k, below)) / (2 * eps)
            if not abs(grad[index] - expected) <= atol + rtol * abs(expected):  # "not <=": nan is wrong as well
                raise AssertionError(
                    f"input {k} of shape {np.shape(x)}, element {index}: "
                    f"backward_all gives {grad[index]}, central differences give {expected}"
                )


def upstream(shape, seed=0):
    """A random gradient for a result of this shape."""
    return np.random.default_rng(seed).standard_normal(shape)


def apart(rng, shape, gap=0.01):
    """Random numbers of which any two, and each and 0, are at least gap apart: far from every kink."""
    n = int(np.prod(shape))
    return (gap * (rng.permutation(2 * n)[:n] - n + 0.5)).reshape(shape)


def loop_conv2d(x, w, b, stride, padding, grad):
    """conv2d and its gradients for x, w and b, given the gradient of the result: the definition in seven loops."""
    (N, C, H, W), (O, _, kh, kw) = x.shape, w.shape
    oh, ow = (H + 2 * padding - kh) // stride + 1, (W + 2 * padding - kw) // stride + 1
    out = np.zeros((N, O, oh, ow))
    dx, dw, db = np.zeros(x.shape), np.zeros(w.shape), np.zeros(O)
    for n, o, y, z in np.ndindex(N, O, oh, ow):
        g = grad[n, o, y, z]
        if b is not None:
            out[n, o, y, z] += b[o]
            db[o] += g
        for c, i, j in np.ndindex(C, kh, kw):
            row, column = y * stride + i - padding, z * stride + j - padding
            if 0 <= row < H and 0 <= column < W:
                out[n, o, y, z] += x[n, c, row, column] * w[o, c, i, j]
                dx[n, c, row, column] += g * w[o, c, i, j]
                dw[o, c, i, j] += g * x[n, c, row, column]
    return out, dx, dw, db


def loop_max_pooling(x, stride, grad):
    """max_pooling and its gradient: the first largest element of each window, looked for row by row."""
    N, C, H, W = x.shape
    oh, ow = H // stride, W // stride
    out, dx = np.zeros((N, C, oh, ow)), np.zeros(x.shape)
    for n, c, y, z in np.ndindex(N, C, oh, ow):
        best = y * stride, z * stride
        for i in range(y * stride, (y + 1) * stride):
            for j in range(z * stride, (z + 1) * stride):
                if x[n, c, i, j] > x[(n, c, *best)]:
                    best = i, j
        out[n, c, y, z] = x[(n, c, *best)]
        dx[(n, c, *best)] += grad[n, c, y, z]
    return out, dx
