"""Layers compute their formulas, know their parameters by name, and save and load them exactly or not at all."""

import math
import os
import pickle
import shutil
import stat
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest

from engine import (
    MLP,
    Conv2dLayer,
    Layer,
    LinearLayer,
    Neuron,
    Optimizer,
    Value,
    as_value,
    cross_entropy,
    max_pooling,
    no_grad,
    topological_order,
)
from model import CNN
from tests.gradcheck import check_gradients, loop_conv2d
from tests.misuse import NO_POSITIVE_SIZES, NO_SIZES_FROM_ZERO, NOT_DATA, TYPE, VALUE, check, misuse, shape

f32, f64 = np.float32, np.float64


class Pyramid(Layer):
    """A network of a user's own: parts in lists, tuples and dicts, a shared layer, Values of its own, constants."""

    def __init__(self):
        self.convs = [Conv2dLayer(1, 2, 3, padding=1), [Conv2dLayer(2, 2, 3, bias=False)]]
        self.heads = {"mean": LinearLayer(2, 3), 7: (Neuron(2),)}
        self.again = self.convs[0]
        self.scale = Value(2.0)
        self.shift = Value(np.array([0.5, -0.5], f32))
        self.bias = self.shift
        self.constant = as_value(np.array([1.0, 2.0]))
        self.result = self.scale * 3
        self.name, self.nothing, self.array = "pyramid", None, np.ones(3)

    def forward(self, x):
        for conv in (self.convs[0], *self.convs[1]):
            x = max_pooling(conv(x), 2).relu()
        x = x.mean(axis=(2, 3)) * self.scale + self.bias + self.shift * self.constant
        return self.heads["mean"](x) + self.heads[7][0](x).reshape(-1, 1)


IMAGES = np.random.default_rng(0).standard_normal((2, 1, 10, 12))
PYRAMID = {
    "convs.0.weight": (2, 1, 3, 3),
    "convs.0.bias": (2,),
    "convs.1.0.weight": (2, 2, 3, 3),
    "heads.mean.weight": (2, 3),
    "heads.mean.bias": (3,),
    "heads.7.0.weight": (2,),
    "heads.7.0.bias": (),
    "scale": (),
    "shift": (2,),
}


class Two(Layer):
    """Any two parts."""

    def __init__(self, first, second):
        self.first, self.second = first, second


# ---- What layers compute --------------------------------------------------------------------------------------------


def with_parameters(layer, parameters):
    """The layer with these Values in place of its own."""
    layer.weight, layer.bias = parameters
    return layer


@pytest.mark.parametrize("shape", [(3,), (4, 3), (2, 4, 3), (0, 3)], ids=str)
def test_neuron_and_linear_layer_gradients(shape):
    rng = np.random.default_rng(16)
    x = rng.standard_normal(shape)
    check_gradients(lambda x, *p: with_parameters(Neuron(3), p)(x), x, rng.standard_normal(3), rng.standard_normal(()))
    check_gradients(
        lambda x, *p: with_parameters(LinearLayer(3, 2), p)(x), x, rng.standard_normal((3, 2)), rng.standard_normal(2)
    )


@pytest.mark.parametrize("shape", [(3,), (1, 3), (5, 3)], ids=str)
@pytest.mark.parametrize("sizes", [[2], [4, 2], [3, 1, 2]], ids=str)
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
    check_gradients(lambda x, w, b=None: with_parameters(layer, (w, b))(x), rng.standard_normal((2, 2, 4, 3)), *arrays)


@pytest.mark.parametrize("seed", range(10))
def test_cnn_gradient_in_a_random_direction(seed):
    """Of all its parameters at once."""
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


def test_forward_and_call_are_the_same():
    image = (1, 1, 3, 3)
    for layer, size in [(Neuron(3), 3), (LinearLayer(3, 2), 3), (MLP(3, [2]), 3), (Conv2dLayer(1, 1, 2), image)]:
        x = np.ones(size)
        np.testing.assert_array_equal(layer(x).data, layer.forward(x).data)


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
        ({"in_channel": 1, "out_channel": 8, "kernel_size": 3, "padding": 1}, (2, 1, 28, 28), (2, 8, 28, 28)),
        ({"in_channel": 3, "out_channel": 2, "kernel_size": 2, "stride": 2}, (1, 3, 5, 7), (1, 2, 2, 3)),
        ({"in_channel": 2, "out_channel": 2, "kernel_size": 3, "bias": False}, (0, 2, 3, 4), (0, 2, 1, 2)),
    ],
)
def test_conv2d_layer_shapes(arguments, shape, expected):
    layer = Conv2dLayer(**arguments)
    assert layer(np.zeros(shape)).shape == expected
    assert (layer.bias is None) == (arguments.get("bias") is False)


@pytest.mark.parametrize(
    "f, shape, expected",
    [(lambda x: MLP(3, [4, 2])(x), (0, 3), (0, 2)), (lambda x: CNN()(x), (0, 1, 28, 28), (0, 10))],
    ids=["MLP", "CNN"],
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


def test_layers_and_models_take_raw_arrays_as_constants():
    np.random.seed(0)
    for layer, s in [
        (Neuron(3), (2, 3)),
        (LinearLayer(3, 2), (2, 3)),
        (MLP(3, [2]), (2, 3)),
        (Conv2dLayer(1, 2, 3), (2, 1, 4, 4)),
        (CNN(), (2, 1, 28, 28)),
    ]:
        x = np.random.default_rng(0).standard_normal(s)
        raw, wrapped = layer(x), layer(Value(x))
        np.testing.assert_array_equal(raw.data, wrapped.data)
        assert sum(not v.requires_grad for v in topological_order(raw)) == 1
        assert all(v.requires_grad for v in topological_order(wrapped))


@pytest.mark.parametrize("dtype", [f32, f64])
def test_parameters_may_be_python_numbers(dtype):
    x = np.random.default_rng(0).standard_normal((4, 3)).astype(dtype)
    neuron, linear, mlp = Neuron(3), LinearLayer(3, 2), MLP(3, [4, 2])
    neuron.bias = linear.bias = mlp.layers[0].bias = mlp.layers[1].bias = bias = Value(0.5)
    w = [layer.weight.data for layer in (neuron, linear, *mlp.layers)]
    tolerance = 1e-13 if dtype == f64 else 1e-5
    for layer, expected in [
        (neuron, np.tanh(x @ w[0] + 0.5)),
        (linear, x @ w[1] + 0.5),
        (mlp, np.tanh(x @ w[2] + 0.5) @ w[3] + 0.5),
    ]:
        out = layer(x)
        assert out.dtype == dtype
        np.testing.assert_allclose(out.data, expected, rtol=tolerance, atol=tolerance)
        bias.grad = 0
        optimizer = Optimizer(layer.parameters())
        out.sum().backward_all()
        assert type(bias.grad) is float and bias.grad != 0
        optimizer.update(lr=0.0)
        assert type(bias.data) is float
    bias.grad = 0
    linear(x).sum().backward_all()
    assert bias.grad == 8.0


# ---- Dtypes ---------------------------------------------------------------------------------------------------------


def test_float32_image_runs_through_the_cnn_in_float32():
    """While its parameters stay float64."""
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
def test_parameters_learn_the_same_from_float32_as_from_float64(make, shape):
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


# ---- Parameters -----------------------------------------------------------------------------------------------------


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
def test_parameters_are_uniform_within_1_over_sqrt_fan_in(make, fan_in):
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


def test_named_parameters_are_paths_in_order_of_assignment():
    for layer, names in [
        (Neuron(3), ["weight", "bias"]),
        (LinearLayer(3, 2), ["weight", "bias"]),
        (Conv2dLayer(1, 2, 3), ["weight", "bias"]),
        (Conv2dLayer(1, 2, 3, bias=False), ["weight"]),
        (MLP(3, [4, 2]), ["layers.0.weight", "layers.0.bias", "layers.1.weight", "layers.1.bias"]),
        (CNN(), [f"{part}.{name}" for part in ("conv1", "conv2", "linear") for name in ("weight", "bias")]),
        (Layer(), []),
    ]:
        named = layer.named_parameters()
        assert type(named) is dict and list(named) == names
        assert list(named.values()) == layer.parameters()
    mlp = MLP(3, [4])
    assert mlp.named_parameters()["layers.0.weight"] is mlp.layers[0].weight
    neuron = Neuron(3)
    neuron.weight, bias = Value(np.ones(3)), neuron.bias
    del neuron.bias
    neuron.extra = Value(1.0)
    neuron.bias = bias
    assert list(neuron.named_parameters()) == ["weight", "extra", "bias"]


def test_named_parameters_of_a_network_of_ones_own():
    """Lists, nested lists, tuples, dicts; what is shared once; no constants, no results, nothing that is no Value."""
    pyramid = Pyramid()
    named = pyramid.named_parameters()
    assert {name: p.shape for name, p in named.items()} == PYRAMID and list(named) == list(PYRAMID)
    assert named["convs.1.0.weight"] is pyramid.convs[1][0].weight
    assert named["heads.7.0.bias"] is pyramid.heads[7][0].bias
    assert named["shift"] is pyramid.bias
    pyramid(IMAGES).sum().backward_all()
    assert all(np.any(p.grad) for p in named.values())
    Optimizer(pyramid.parameters()).update(lr=0.1)


def test_shared_layers_and_values_are_there_once():
    linear, value = LinearLayer(2, 2), Value(1.0)
    layer = Two([linear, value, value], {"a": linear, "b": [value]})
    assert list(layer.named_parameters()) == ["first.0.weight", "first.0.bias", "first.1"]
    tied = Two(LinearLayer(2, 2), LinearLayer(2, 2))
    tied.second.weight = tied.first.weight
    assert list(tied.named_parameters()) == ["first.weight", "first.bias", "second.bias"]


def test_layers_that_hold_each_other_end():
    outer, inner = Two(None, Value(1.0)), Two(Value(2.0), None)
    outer.first, inner.second = inner, outer
    assert list(outer.named_parameters()) == ["first.first", "second"]
    assert list(inner.named_parameters()) == ["first", "second.second"]
    outer.itself = [outer]
    assert len(outer.parameters()) == 2
    assert "..." in repr(outer) and len(repr(outer)) < 500


def test_a_value_that_stops_being_a_leaf_is_no_parameter():
    layer = Two(Value(1.0), Value(2.0))
    layer.first = layer.first * 2
    layer.second.requires_grad = False
    assert layer.named_parameters() == {}


# ---- Layers of one's own, repr --------------------------------------------------------------------------------------


def test_a_layer_of_ones_own_trains():
    class Scale(Layer):
        def __init__(self, n):
            self.gain = Value(np.ones(n))

        def forward(self, x):
            return x * self.gain.astype(x.dtype)

    scale = Scale(3)
    assert list(scale.named_parameters()) == ["gain"]
    optimizer = Optimizer(scale.parameters())
    for _ in range(100):
        optimizer.zero_grad()
        ((scale(Value(np.ones((2, 3)))) - np.array([1.0, 2.0, 3.0])) ** 2).sum().backward_all()
        optimizer.update(lr=0.1)
    np.testing.assert_allclose(scale.gain.data, [1, 2, 3], rtol=1e-6)
    assert repr(scale) == "Scale(\n  gain: (3,)\n)"


def test_forward_that_is_missing_is_named():
    class Unfinished(Layer):
        pass

    for call in (lambda: Unfinished()(1.0), lambda: Unfinished().forward(1.0)):
        check(call, NotImplementedError, r"^Unfinished must define forward\(self, x\)$")
    check(lambda: Layer()(1.0), NotImplementedError, "^Layer must define forward")


def test_forward_that_returns_nothing_is_named():
    class Forgetful(Layer):
        def forward(self, x):
            x * 2  # noqa: B018

    check(lambda: Forgetful()(1.0), TYPE, "^Forgetful.forward returned None: is its return missing")


def test_repr_says_which_values_are_no_parameters():
    class Scaled(Layer):
        def __init__(self):
            self.frozen = Value(2.0)
            self.frozen.requires_grad = False
            self.linear = LinearLayer(2, 1)
            self.result = Value(np.ones(3)) * 0.1
            self.constant = as_value(2.0) * 3.0

    lines = ["frozen: ()", "linear: LinearLayer(2, 1)", "result: (3,), no parameter", "constant: (), no parameter"]
    assert repr(Scaled()) == "Scaled(\n  " + "\n  ".join(lines) + "\n)"


def test_reprs_show_the_architecture():
    assert repr(Neuron(3)) == "Neuron(3)"
    assert repr(LinearLayer(3, 4)) == "LinearLayer(3, 4)"
    assert repr(MLP(3, [4, 2])) == "MLP(\n  layers.0: LinearLayer(3, 4)\n  layers.1: LinearLayer(4, 2)\n)"
    assert repr(Conv2dLayer(1, 8, 3, padding=1)) == "Conv2dLayer(1, 8, 3, bias=True, stride=1, padding=1)"
    assert repr(Conv2dLayer(1, 8, 3, False, 2)) == "Conv2dLayer(1, 8, 3, bias=False, stride=2, padding=0)"


def test_repr_of_a_network_of_ones_own():
    assert repr(Pyramid()) == (
        "Pyramid(\n"
        "  convs.0: Conv2dLayer(1, 2, 3, bias=True, stride=1, padding=1)\n"
        "  convs.1.0: Conv2dLayer(2, 2, 3, bias=False, stride=1, padding=0)\n"
        "  heads.mean: LinearLayer(2, 3)\n"
        "  heads.7.0: Neuron(2)\n"
        "  again: Conv2dLayer(1, 2, 3, bias=True, stride=1, padding=1)\n"
        "  scale: ()\n"
        "  shift: (2,)\n"
        "  bias: (2,)\n"
        "  constant: (2,)\n"
        "  result: (), no parameter\n"
        ")"
    )
    assert repr(Two(Two(None, Neuron(2)), None)) == "Two(\n  first: Two(\n    second: Neuron(2)\n  )\n)"
    assert repr(Layer()) == "Layer()"


@pytest.mark.parametrize(
    "make", [CNN, Pyramid, lambda: MLP(784, [1000] * 12), lambda: Two(Two(CNN(), CNN()), [MLP(3, [2])])]
)
def test_reprs_fit_into_80_columns(make):
    text = repr(make())
    assert max(map(len, text.splitlines())) <= 80
    assert text == repr(make())


# ---- Save and load --------------------------------------------------------------------------------------------------


class Mixed(Layer):
    """Parameters of every kind of data."""

    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        self.double = Value(rng.standard_normal((2, 3)))
        self.single = Value(rng.standard_normal(4).astype(f32))
        self.number = Value(float(rng.standard_normal()))
        self.scalar = Value(np.array(rng.standard_normal()))
        self.empty = Value(np.zeros((0, 2)))


def numbers(layer):
    return {name: (np.array(p.data), type(p.data)) for name, p in layer.named_parameters().items()}


def assert_same(a, b):
    assert list(a) == list(b)
    for (x, kind), (y, other) in zip(a.values(), b.values()):
        assert kind is other
        assert (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes())


@pytest.mark.parametrize(
    "make, x",
    [
        (lambda: MLP(3, [4, 2]), np.ones((2, 3))),
        (lambda: Neuron(3), np.ones(3)),
        (lambda: LinearLayer(3, 2), np.ones(3)),
        (lambda: Conv2dLayer(1, 2, 3), IMAGES),
        (lambda: Conv2dLayer(1, 2, 3, bias=False), IMAGES),
        (CNN, np.random.default_rng(0).standard_normal((2, 1, 28, 28))),
        (Pyramid, IMAGES),
    ],
    ids=["MLP", "Neuron", "LinearLayer", "Conv2dLayer", "no_bias", "CNN", "Pyramid"],
)
def test_a_loaded_network_computes_the_same_byte_for_byte(make, x, tmp_path):
    np.random.seed(1)
    saved, loaded = make(), make()
    path = tmp_path / "weights"  # of exactly this name
    assert saved.save(path) is None and os.listdir(tmp_path) == ["weights"]
    assert not np.array_equal(loaded(x).data, saved(x).data)
    assert loaded.load(str(path)) is loaded
    assert_same(numbers(loaded), numbers(saved))
    assert loaded(x).data.tobytes() == saved(x).data.tobytes()
    with np.load(path) as archive:
        frozen = ["constant"] if make is Pyramid else []
        assert sorted(archive.files) == sorted([*saved.named_parameters(), *frozen])


def test_frozen_parameters_are_saved_though_not_trained(tmp_path):
    frozen, other = MLP(2, [2, 1]), MLP(2, [2, 1])
    frozen.layers[0].weight.requires_grad = False
    assert "layers.0.weight" not in frozen.named_parameters() and len(frozen.parameters()) == 3
    frozen.save(tmp_path / "w.npz")
    assert_same(numbers(other.load(tmp_path / "w.npz")), {**numbers(other), **numbers(frozen)})
    np.testing.assert_array_equal(other.layers[0].weight.data, frozen.layers[0].weight.data)


def test_a_leaf_that_names_an_operation_is_a_parameter():
    layer = Layer()
    layer.w = Value(1.0, (), "w")
    with no_grad():
        layer.result = layer.w * 2
    assert list(layer.named_parameters()) == list(layer._leaves()) == ["w"]


def test_parameters_may_be_named_as_arguments_of_numpy(tmp_path):
    layers = Layer(), Layer()
    for number, layer in enumerate(layers):
        layer.file, layer.allow_pickle = Value(np.full(2, 1.0 + number)), Value(np.full(3, 5.0 + number))
    layers[0].save(tmp_path / "w.npz")
    assert_same(numbers(layers[1].load(tmp_path / "w.npz")), numbers(layers[0]))


def test_parameters_may_be_named_as_the_files_of_others(tmp_path):
    """In an npz file, the array "a" is the file "a.npy"."""
    layers = Layer(), Layer()
    for number, layer in enumerate(layers):
        layer.values = {"a": Value(np.full(2, 1.0 + number)), "a.npy": Value(np.full(2, 5.0 + number))}
    layers[0].save(tmp_path / "w.npz")
    layers[1].load(tmp_path / "w.npz")
    assert {name: p.data.tolist() for name, p in layers[1].values.items()} == {"a": [1.0, 1.0], "a.npy": [5.0, 5.0]}


def test_what_is_shared_stays_shared(tmp_path):
    pyramid = Pyramid()
    Pyramid().save(tmp_path / "w.npz")
    pyramid.load(tmp_path / "w.npz")
    assert pyramid.again is pyramid.convs[0] and pyramid.bias is pyramid.shift


def test_loaded_parameters_are_arrays_of_their_own_and_train(tmp_path):
    a, b = Mixed(0), Mixed(1)
    a.save(tmp_path / "w")
    b.load(tmp_path / "w")
    assert_same(numbers(b), numbers(a))
    (b.double * 2).sum().backward_all()
    Optimizer(b.parameters()).update(lr=1.0)
    np.testing.assert_array_equal(b.double.data, a.double.data - 2)
    for p in b.parameters():
        assert isinstance(p.data, float) or (p.data.flags.writeable and p.data.flags.c_contiguous)


def test_parameters_keep_their_own_dtype(tmp_path):
    layer = Mixed()
    before = numbers(layer)
    arrays = {name: (data * 2).astype(f32 if data.dtype == f64 else f64) for name, (data, _) in before.items()}
    arrays["double"] = np.asfortranarray(arrays["double"]).astype(">f4")
    np.savez(tmp_path / "w.npz", **arrays)
    layer.load(tmp_path / "w.npz")
    assert layer.double.dtype == f64 and layer.double.dtype.isnative and layer.double.data.flags.c_contiguous
    assert layer.single.dtype == f32
    assert type(layer.number.data) is float
    assert layer.scalar.dtype == f64 and layer.scalar.shape == ()
    for name, (data, _) in before.items():
        np.testing.assert_allclose(getattr(layer, name).data, 2 * data, rtol=1e-6)


WRONG_FILES = {
    "missing": (lambda w: w.pop("weight"), "weight is missing"),
    "all_missing": (lambda w: w.clear(), "bias is missing, weight is missing"),
    "too_much": (lambda w: w.update(gain=np.ones(2)), "gain is not in this network"),
    "another_name": (lambda w: w.update(gain=w.pop("bias")), "bias is missing, gain is not in this network"),
    "another_shape": (lambda w: w.update(weight=np.ones((2, 3))), r"weight is float64 \(2, 3\) instead of .*\(3, 2\)"),
    "a_shape_that_broadcasts": (lambda w: w.update(bias=np.ones(1)), r"bias is float64 \(1,\) instead of .*\(2,\)"),
    "more_axes": (lambda w: w.update(bias=np.ones((1, 2))), r"bias is float64 \(1, 2\) instead of .*\(2,\)"),
    "nan": (lambda w: w.update(bias=np.array([0.0, math.nan])), "bias is not finite"),
    "infinity": (lambda w: w.update(bias=np.array([-math.inf, 0.0])), "bias is not finite"),
    "integers": (lambda w: w.update(bias=np.array([1, 2])), r"bias is int64 \(2,\) instead of real numbers \(2,\)"),
    "booleans": (lambda w: w.update(bias=np.array([True, False])), "bias is bool.*instead of real numbers"),
    "complex": (lambda w: w.update(bias=np.ones(2, complex)), "bias is complex128.*instead of real numbers"),
    "strings": (lambda w: w.update(bias=np.array(["1", "2"])), "bias is <U1.*instead of real numbers"),
    "everything": (
        lambda w: w.update(gain=np.ones(2), weight=np.ones(7), bias=np.full(2, math.nan)),
        r"bias is not finite, gain is not in this network, weight is float64 \(7,\)",
    ),
}


@pytest.mark.parametrize("wrong", list(WRONG_FILES))
def test_load_names_what_is_wrong_and_changes_nothing(wrong, tmp_path):
    change, message = WRONG_FILES[wrong]
    layer = LinearLayer(3, 2)
    weights = {name: np.copy(p.data) * 2 for name, p in layer.named_parameters().items()}
    change(weights)
    np.savez(tmp_path / "w.npz", **weights)
    before, arrays = numbers(layer), [p.data for p in layer.parameters()]
    check(lambda: layer.load(tmp_path / "w.npz"), VALUE, f"^cannot load weights from .*w.npz: {message}")
    assert all(p.data is data for p, data in zip(layer.parameters(), arrays))
    assert_same(numbers(layer), before)


def test_load_refuses_what_is_too_large_for_float32(tmp_path):
    layer = LinearLayer(3, 2)
    layer.bias = Value(np.ones(2, f32))
    np.savez(tmp_path / "w.npz", weight=np.zeros((3, 2)), bias=np.array([1.0, 1e300]))
    before = numbers(layer)
    check(lambda: layer.load(tmp_path / "w.npz"), VALUE, "^cannot load weights from .*w.npz: bias is not finite")
    assert_same(numbers(layer), before)


def test_two_parameters_of_one_name_are_refused():
    """One of them would be trained or saved, and the other one not."""
    layer = Layer()
    layer.parts = {0: Value(1.0), "0": Value(2.0)}
    check(layer.named_parameters, VALUE, "Layer.*parts.0")


class Marker:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("kind", ["npz", "npz_beside_good_ones", "npy", "pickle"])
def test_load_never_executes_a_pickle(kind, tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "w.npz"
    layer = LinearLayer(3, 2)
    before = numbers(layer)
    evil = np.empty((), object)
    evil[()] = Marker(marker)
    good = {name: p.data for name, p in layer.named_parameters().items()}
    with open(path, "wb") as file:
        if kind == "npz":
            np.savez(file, weight=evil, bias=good["bias"])
        elif kind == "npz_beside_good_ones":
            np.savez(file, **good, gain=evil)
        elif kind == "npy":
            np.save(file, evil)
        else:
            pickle.dump(Marker(marker), file)
    check(lambda: layer.load(path), VALUE, "^cannot load weights from .*w.npz: it is damaged, or no npz file$")
    assert not marker.exists()
    assert_same(numbers(layer), before)
    with open(path, "rb") as file:  # that it would have been executed
        thing = np.load(file, allow_pickle=True)
        if kind.startswith("npz"):
            thing = thing["weight" if kind == "npz" else "gain"]
        (thing[()] if isinstance(thing, np.ndarray) else thing).close()
    assert marker.exists()


class Small(Layer):
    def __init__(self, data=0.0):
        self.a, self.b = Value(data), Value(np.array([data, data]))


def test_every_flipped_bit_is_refused_or_changes_nothing(tmp_path):
    """All bits of the headers of the arrays, and some hundreds of the others."""
    path = tmp_path / "w.npz"
    good = Small(1.25)
    good.save(path)
    expected, content = numbers(good), path.read_bytes()
    headers = [
        i for start in range(len(content)) if content.startswith(b"\x93NUMPY", start) for i in range(start, start + 128)
    ]
    assert len(headers) == 256
    others = np.random.default_rng(0).choice(8 * len(content), 800, replace=False)
    refused = 0
    for bit in sorted({8 * i + k for i in headers for k in range(8)} | {int(i) for i in others}):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        layer = Small(7.0)
        try:
            layer.load(path)
        except ValueError as error:
            refused += 1
            assert str(error).startswith("cannot load weights from "), bit
            assert_same(numbers(layer), numbers(Small(7.0)))
        else:
            assert_same(numbers(layer), expected)
    assert refused > 8 * len(headers)


def test_damage_that_numpy_does_not_notice_is_refused(tmp_path):
    """Of a large array whose header says float32 instead of float64, NumPy reads one half, without the checksum."""
    path = tmp_path / "w.npz"
    layer = Two(Value(np.full(2000, 1.25)), None)
    layer.save(path)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"'<f8'", b"'<f4'"))
    with np.load(path) as archive:
        assert archive["first"].dtype == f32
    before = layer.first.data
    check(lambda: layer.load(path), VALUE, "^cannot load weights from .*w.npz: it is damaged, or no npz file$")
    assert layer.first.data is before


def test_a_truncated_file_is_refused_or_changes_nothing(tmp_path):
    path = tmp_path / "w.npz"
    Small(1.25).save(path)
    content = path.read_bytes()
    for damaged in [content[:n] for n in range(0, len(content), 7)] + [content[n:] for n in range(1, 60)]:
        path.write_bytes(damaged)
        layer = Small(7.0)
        try:
            layer.load(path)
        except ValueError as error:
            assert "damaged, or no npz file" in str(error)
            assert_same(numbers(layer), numbers(Small(7.0)))
        else:
            assert_same(numbers(layer), numbers(Small(1.25)))


@pytest.mark.parametrize("content", [b"", b"weights", b"\x93NUMPY", b"PK\x03\x04", b"PK\x05\x06" + bytes(18)], ids=repr)
def test_a_file_of_something_else_is_refused(content, tmp_path):
    path = tmp_path / "w.npz"
    path.write_bytes(content)
    check(lambda: Small().load(path), VALUE, "^cannot load weights from .*w.npz: ")


def test_an_archive_of_something_else_is_refused(tmp_path):
    path = tmp_path / "w.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", b"no array")
        archive.writestr("b.txt", b"text")
    check(lambda: Small().load(path), VALUE, "^cannot load weights from .*w.npz: ")


def test_a_file_that_cannot_be_read_is_a_value_error(tmp_path):
    for path, message in [
        (tmp_path / "nothing.npz", "No such file"),
        (tmp_path / "no" / "folder.npz", "No such file"),
        (tmp_path, "directory|[Pp]ermission"),
        (tmp_path / ("x" * 300), "too long|No such file|[Ii]nvalid"),
    ]:
        check(lambda path=path: Small().load(path), VALUE, f"^cannot load weights from .*({message})")


# ---- Nothing but whole files ----------------------------------------------------------------------------------------


@pytest.fixture
def old(tmp_path):
    """A good file, alone in its folder."""
    path = tmp_path / "w.npz"
    Small(1.0).save(path)
    return path


def assert_untouched(path):
    assert os.listdir(path.parent) == [path.name]
    assert_same(numbers(Small().load(path)), numbers(Small(1.0)))


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyboardInterrupt(), MemoryError()], ids=repr
)
@pytest.mark.parametrize("stage", ["write_array", "fsync", "replace", "copymode"])
def test_a_save_that_fails_keeps_the_old_file_and_no_other(stage, error, old, monkeypatch):
    def fail(*arguments, **named):
        if stage == "write_array":  # half of the file is written
            arguments[0].write(bytes(100))
        raise error

    owner = {"write_array": np.lib.format, "fsync": os, "replace": os, "copymode": shutil}
    monkeypatch.setattr(owner[stage], stage, fail)
    expected, message = (
        (VALUE, "^cannot save weights to .*No space left") if isinstance(error, OSError) else (type(error), None)
    )
    with pytest.raises(expected, match=message):
        Small(2.0).save(old)
    monkeypatch.undo()
    assert_untouched(old)
    Small(2.0).save(old)
    assert_same(numbers(Small().load(old)), numbers(Small(2.0)))


def test_the_new_file_is_on_the_disk_before_it_takes_its_place(old, monkeypatch):
    synced, replace = [], os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd)))

    def replacing(source, target):
        assert [(s.st_ino, s.st_size) for s in synced] == [(os.stat(source).st_ino, os.stat(source).st_size)]
        assert_same(numbers(Small().load(source)), numbers(Small(2.0)))
        assert_same(numbers(Small().load(target)), numbers(Small(1.0)))
        replace(source, target)

    monkeypatch.setattr(os, "replace", replacing)
    Small(2.0).save(old)
    assert len(synced) == 1
    assert_same(numbers(Small().load(old)), numbers(Small(2.0)))


@pytest.mark.parametrize("data", [math.nan, math.inf, -math.inf])
def test_parameters_that_are_not_finite_are_not_saved(data, old):
    layer = Small(2.0)
    layer.a.data = data
    check(lambda: layer.save(old), VALUE, "^cannot save weights to .*w.npz: a is not finite")
    layer = Small(2.0)
    layer.b.data = np.array([1.0, data])
    check(lambda: layer.save(old), VALUE, "^cannot save weights to .*w.npz: b is not finite")
    assert_untouched(old)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666, *([0o400] if os.name == "posix" else [])])
def test_the_mode_of_the_old_file_is_kept(mode, old):
    old.chmod(mode)
    expected = stat.S_IMODE(old.stat().st_mode)
    Small(2.0).save(old)
    assert stat.S_IMODE(old.stat().st_mode) == expected
    assert_same(numbers(Small().load(old)), numbers(Small(2.0)))


def test_a_new_file_has_the_mode_of_any_new_file(tmp_path):
    Small().save(tmp_path / "w.npz")
    (tmp_path / "other").write_bytes(b"")
    assert (tmp_path / "w.npz").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("there", [True, False], ids=["to_a_file", "to_nothing"])
def test_a_symbolic_link_is_followed(there, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    target, link = folder / "target.npz", tmp_path / "link.npz"
    if there:
        Small(1.0).save(target)
    link.symlink_to(target)
    Small(2.0).save(link)
    assert link.is_symlink() and target.is_file() and not target.is_symlink()
    assert_same(numbers(Small().load(target)), numbers(Small(2.0)))
    assert sorted(os.listdir(tmp_path)) == ["folder", "link.npz"] and os.listdir(folder) == ["target.npz"]


@pytest.mark.skipif(os.name != "posix", reason="Windows replaces no file that is open")
def test_two_threads_save_while_a_third_loads(tmp_path):
    path = tmp_path / "w.npz"
    Small(1.0).save(path)
    errors, done = [], threading.Event()

    def save(data):
        try:
            for _ in range(60):
                Small(data).save(path)
        except Exception as error:  # noqa: BLE001
            errors.append(error)

    def load():
        while not done.is_set():
            try:
                layer = Small().load(path)
                assert layer.a.data in (1.0, 2.0) and np.all(layer.b.data == layer.a.data)
            except Exception as error:  # noqa: BLE001
                errors.append(error)

    reader, *writers = [threading.Thread(target=load), *(threading.Thread(target=save, args=(d,)) for d in (1.0, 2.0))]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    assert not errors and os.listdir(tmp_path) == ["w.npz"]


@pytest.mark.skipif(os.name != "posix", reason="pipes and links of POSIX")
def test_a_path_that_cannot_be_written_is_a_value_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in [
        tmp_path,  # a folder
        tmp_path / "missing" / "w.npz",
        tmp_path / "file" / "w.npz",
        tmp_path / ("x" * 300),
        tmp_path.joinpath(*["x" * 200] * 30),
        Path("/proc/w.npz"),  # where nobody may write, nor root; or there is no such folder
        pipe,  # which a new file would replace, as it would replace a device
        loop / "w.npz",
    ]:
        check(lambda path=path: Small().save(path), VALUE, "^cannot save weights to ")
        check(lambda path=path: Small().save(str(path)), VALUE, "^cannot save weights to ")
    assert sorted(os.listdir(tmp_path)) == ["file", "loop", "pipe"] and pipe.is_fifo()
    assert (tmp_path / "file").read_bytes() == b""


def test_a_relative_path_is_one_of_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Small(3.0).save("w.npz")
    assert_same(numbers(Small().load(Path("w.npz"))), numbers(Small(3.0)))
    assert os.listdir(tmp_path) == ["w.npz"]


# ---- Misuse ---------------------------------------------------------------------------------------------------------


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
        check(lambda s=s: layer(np.ones(s)), VALUE, f"({name}).*{shape(*s)}")
        check(lambda s=s: layer(Value(np.ones(s))), VALUE, f"({name}).*{shape(*s)}")
    check(lambda: layer(1.0), VALUE, rf"({name}).*\(\)")
    check(lambda: layer(None), TYPE, "real numbers.*NoneType")
    check(lambda: layer("x"), TYPE, "real numbers.*str")
    check(lambda: layer([[1, 2, 3], [1, 2]]), VALUE, "inhomogeneous")
    check(lambda: layer(), TYPE, "x")
    for p, data in zip(layer.parameters(), before):
        np.testing.assert_array_equal(p.data, data)
        np.testing.assert_array_equal(p.grad, np.zeros(p.shape))


@pytest.mark.parametrize(
    "make", [lambda: Neuron(3), lambda: LinearLayer(3, 2), lambda: MLP(3, [2]), lambda: Conv2dLayer(1, 1, 1), CNN]
)
def test_refused_inputs_are_named(make):
    for x in (None, "x", 1j, np.ma.array([1.0, 2.0, 3.0], mask=[0, 0, 1]), np.ma.array([1, 2, 3], mask=[0, 0, 1])):
        check(lambda x=x: make()(x), TYPE, "^x must be real numbers")


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
        check(lambda x=x: Conv2dLayer(3, 2, 3)(x), error, message)


@pytest.mark.parametrize(
    "s", [(28, 28), (1, 28, 28), (2, 28, 28), (784,), (2, 784), (2, 3, 28, 28), (2, 1, 27, 28), (2, 1, 28, 29),
          (2, 1, 32, 32), (2, 28, 28, 1), (1, 2, 1, 28, 28), ()], ids=str)  # fmt: skip
def test_cnn_rejects_images_that_are_not_n_1_28_28(s):
    check(lambda: CNN()(np.ones(s)), VALUE, rf"\(n, 1, 28, 28\).*{shape(*s)}")
    check(lambda: CNN().forward(Value(np.ones(s))), VALUE, rf"\(n, 1, 28, 28\).*{shape(*s)}")


def test_cnn_rejects_other_types():
    for x, error, message in (NOT_DATA[key] for key in ("none", "string", "complex", "ragged_list", "object_array")):
        check(lambda x=x: CNN()(x), error, message)
