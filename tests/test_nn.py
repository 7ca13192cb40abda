"""The specification's examples, layers, modules, saving and loading, the optimizer, the CNN, and drawn graphs."""

import contextlib
import os
import re
import sys
from pathlib import Path
from subprocess import run

import numpy as np
import pytest

import engine
from engine import MLP, Conv2dLayer, LinearLayer, Module, Neuron, Optimizer, Value, as_value, cross_entropy, draw_graph
from model import CNN
from tests.gradcheck import check_gradients, loop_conv2d

f32, f64 = np.float32, np.float64


@pytest.fixture(autouse=True)
def seeded():
    np.random.seed(0)


def test_the_first_example_runs_in_any_folder_without_warnings_and_where_malloc_has_no_settings(tmp_path):
    code = """
import ctypes, sys, numpy as np
for library in (ctypes.CDLL, lambda name: object(), lambda name: len(name), lambda name: open("missing/library")):
    ctypes.CDLL = library
    sys.modules.pop("engine", None)
    from engine import Value, stack, conv2d, max_pooling, cross_entropy, unbroadcast
    from engine import Neuron, LinearLayer, MLP, Conv2dLayer, Optimizer
    x, w = Value(np.array([1.0, 2.0])), Value(np.array([3.0, 4.0]))
    y = x @ w
    y.backward_all()
    print(y.data, x.grad, w.grad)
"""
    env = {**os.environ, "PYTHONPATH": str(Path(engine.__file__).parent)}
    done = run([sys.executable, "-BWerror", "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ("11.0 [3. 4.] [1. 2.]\n" * 4, "", 0)


@pytest.mark.parametrize("seed", range(3))
def test_the_xor_loop_of_the_specification_learns(seed):
    np.random.seed(seed)
    X = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=float)
    y = np.array([[0], [1], [1], [0]], dtype=float)
    model = MLP(2, [4, 1])
    opt = Optimizer(model.parameters())
    for _ in range(3000):
        opt.zero_grad()
        diff = model(Value(X)) - Value(y)
        (diff * diff).sum().backward_all()
        opt.update(lr=0.05)
    np.testing.assert_allclose(model(X).data, y, atol=0.01)


# ---- Layers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3,), (1, 3), (5, 3), (2, 5, 3), (0, 3)], ids=str)
def test_neuron_and_linear_layer_are_their_formulas_on_the_last_axis(shape):
    x, neuron, linear = np.random.default_rng(0).standard_normal(shape), Neuron(3), LinearLayer(3, 2)
    expected = np.tanh(x @ neuron.weight.data + neuron.bias.data)
    np.testing.assert_allclose(neuron(x).data, expected, 1e-12, 1e-12, strict=True)
    expected = (x[..., None] * linear.weight.data).sum(axis=-2) + linear.bias.data
    np.testing.assert_allclose(linear(x).data, expected, 1e-12, 1e-12, strict=True)


@pytest.mark.parametrize("sizes", [[1], [4, 2], [4, 5, 2, 3, 6, 2]], ids=str)
def test_mlp_has_tanh_between_all_of_its_layers_and_returns_a_row_for_each_sample(sizes):
    x, mlp = np.random.default_rng(1).standard_normal((5, 3)), MLP(3, sizes)
    assert [layer.weight.shape for layer in mlp.layers] == list(zip([3, *sizes], sizes))
    expected = x @ mlp.layers[0].weight.data + mlp.layers[0].bias.data
    for layer in mlp.layers[1:]:
        expected = np.tanh(expected) @ layer.weight.data + layer.bias.data
    np.testing.assert_allclose(mlp(x.tolist()).data, expected, 1e-12, 1e-12, strict=True)
    np.testing.assert_allclose(mlp(x[2].astype(f32)).data, expected[2:3].astype(f32), 1e-4, 1e-6, strict=True)
    assert mlp(x[:0]).shape == (0, sizes[-1])
    with pytest.raises(ValueError, match=re.escape("(5, 1, 3)")):
        mlp(x[:, None])


def test_conv2d_layer_has_a_stride_a_padding_and_a_bias_or_none():
    x = np.random.default_rng(2).standard_normal((2, 3, 9, 7))
    for bias, stride, padding in [(True, 1, 2), (False, 1, 3), (True, 3, 0), (False, 4, 2)]:
        layer = Conv2dLayer(3, 2, 4, bias, stride, padding)
        w, b = layer.weight.data, layer.bias.data if bias else layer.bias
        expected, *_ = loop_conv2d(x, w, b, stride, padding, np.zeros((2, 2, 20, 20)))
        np.testing.assert_allclose(layer(x).data, expected, 1e-12, 1e-12, strict=True)
    with pytest.raises(TypeError, match="bias"):  # in PyTorch the fourth argument is the stride
        Conv2dLayer(1, 8, 3, 2)


@pytest.mark.parametrize("dtype, tolerance", [(f32, 1e-4), (f64, 1e-12), (int, 1e-12)])
def test_layers_compute_in_the_dtype_of_their_input_and_learn_in_float64(dtype, tolerance):
    layers = [Neuron(3), LinearLayer(3, 2), MLP(3, [4, 2]), Conv2dLayer(2, 3, 3), CNN()]
    for layer, shape in zip(layers, [(4, 3)] * 3 + [(2, 2, 5, 4), (2, 1, 28, 28)]):
        x, gradients = np.random.default_rng(3).integers(-3, 4, shape), []
        for data in (x.astype(dtype), x.astype(f64)):
            layer.zero_grad()
            out = layer(data)
            assert out.dtype == (f32 if data.dtype == f32 else f64)
            (out * np.random.default_rng(4).standard_normal(out.shape)).sum().backward_all()
            gradients.append([p.grad for p in layer.parameters()])
        for p, a, b in zip(layer.parameters(), *gradients):
            assert p.dtype == a.dtype == f64 and np.any(b)
            np.testing.assert_allclose(a, b, tolerance, tolerance, err_msg=repr(layer))


@pytest.mark.parametrize("make, fan_in", [(Neuron, 50), (LinearLayer, 50), (MLP, 50), (Conv2dLayer, 50 * 3 * 3)])
def test_parameters_are_drawn_uniformly_up_to_1_over_sqrt_fan_in_and_a_seed_reproduces_them(make, fan_in):
    sizes = {Neuron: [50], LinearLayer: [50, 20], MLP: [50, [20]], Conv2dLayer: [50, 20, 3]}[make]
    drawn = []
    for seed in (0, 0, 1):
        np.random.seed(seed)
        drawn.append([[p.data for p in make(*sizes).parameters()] for _ in range(200)])
    for first, same, other in zip(*(map(np.stack, zip(*layers)) for layers in drawn)):
        assert np.array_equal(first, same) and not np.array_equal(first, other)
        scaled = first * np.sqrt(fan_in)
        assert -1 <= scaled.min() < -0.97 and 0.97 < scaled.max() <= 1 and 0.28 < np.var(scaled) < 0.38


@pytest.mark.parametrize("wrong, error", [(0, ValueError), (-1, ValueError), (2.0, TypeError), ("2", TypeError)])
def test_sizes_of_layers_are_integers_from_1_and_wrong_ones_are_named(wrong, error):
    conv_sizes = ["in_channel", "out_channel", "kernel_size", "stride", "padding"]
    for make, names in [(Neuron, ["input_num"]), (LinearLayer, ["input_num", "output_num"]), (Conv2dLayer, conv_sizes)]:
        for name in names:
            with pytest.raises(error, match=name):
                make(**{**dict.fromkeys(names, 2), name: -1 if (name, wrong) == ("padding", 0) else wrong})
    for input_num, layer_num in [(wrong, [2]), (2, [wrong, 2]), (2, [2, wrong])]:
        with pytest.raises(error):
            MLP(input_num=input_num, layer_num=layer_num)


# ---- Modules --------------------------------------------------------------------------------------------------------


class Parts(Module):
    def __init__(self, **parts):
        vars(self).update(parts)

    def forward(self, x, h, *, scale=1.0):
        return x + h * scale


def network():
    """Parameters of every kind of data, wherever they may be, and attributes that are not parameters."""
    linear, gain = LinearLayer(2, 3), Value(np.array(1.5))
    net = Parts(w=Value(2.0), seq=[linear, (Neuron(2), [gain])], again=linear, same=gain)
    net.dict = {"a": Parts(c=Conv2dLayer(1, 2, 3, bias=False)), 7: Value(np.ones(2, f32))}
    net.dict["a"].outer = [net]
    net.mask, net.result, net.name = as_value(np.full(3, -np.inf)), linear(np.ones(2)), "network"
    with engine.no_grad():
        net.constant = net.w * 2
    return net


def test_named_parameters_are_all_leaves_once_in_the_order_of_assignment():
    net = network()
    named = net.named_parameters()
    assert " ".join(named) == "w seq.0.weight seq.0.bias seq.1.0.weight seq.1.0.bias seq.1.1.0 dict.a.c.weight dict.7"
    assert named["seq.1.1.0"] is net.same and named["dict.a.c.weight"] is net.dict["a"].c.weight
    assert net.parameters() == list(named.values())
    assert list(MLP(2, [3, 1]).named_parameters()) == [f"layers.{i}.{p}" for i in (0, 1) for p in ("weight", "bias")]


def test_a_loop_over_the_parameters_freezes_and_thaws_them():
    mlp = MLP(2, [3, 1])
    optimizer = Optimizer(mlp.parameters())
    mlp(np.ones((4, 2))).sum().backward_all()
    for trained in (False, True):
        for p in mlp.parameters()[:2]:
            p.requires_grad = trained
        before = [(p, p.data) for p in mlp.parameters()]
        optimizer.update(lr=0.1)
        assert [np.array_equal(p.data, data) for p, data in before] == [not trained, not trained, False, False]


def test_a_module_passes_all_arguments_on_to_forward():
    assert Parts()(3.0, 4.0) == 7.0 and Parts()(3.0, h=4.0, scale=0.5) == 5.0


def test_reprs_show_the_architecture():
    for layer in (Neuron(1), LinearLayer(1, 4), Conv2dLayer(1, 8, 3, False, 2), Conv2dLayer(2, 1, 1)):
        again = eval(repr(layer))
        assert type(again) is type(layer) and repr(again) == repr(layer)
        assert [p.shape for p in again.parameters()] == [p.shape for p in layer.parameters()]
    assert str(Conv2dLayer(1, 1, 2)) == str(Conv2dLayer(1, 1, 2, True, 1, 0)) != str(Conv2dLayer(1, 1, 2, padding=3))
    net = Parts(cnn=CNN(), mlp=MLP(3, [4, 2]), gain=Value(np.ones((3, 5))))
    for name, part in {"gain": "(3, 5)", **vars(net.cnn)}.items():
        assert any(name in line and str(part) in line for line in repr(net).splitlines())
    assert all(repr(layer) in repr(net) for layer in net.mlp.layers)


# ---- Save and load --------------------------------------------------------------------------------------------------


def content(module):
    """The names, kinds and exact numbers of the parameters."""
    named = module.named_parameters()
    return {name: (type(p.data), p.dtype, p.shape, np.asarray(p.data).tobytes()) for name, p in named.items()}


@pytest.mark.parametrize("make", [network, CNN, lambda: MLP(2, [2] * 25)], ids=["all_kinds", "cnn", "50_parameters"])
def test_what_is_loaded_is_what_was_saved_in_a_file_of_exactly_this_name(make, tmp_path):
    saved, loaded = make(), make()
    for p in saved.parameters():
        p.data = p.data + 1 / 3
    saved.parameters()[0].requires_grad = False  # frozen ones are saved too
    CNN().save(tmp_path / "weights")  # is replaced
    saved.save(tmp_path / "weights")
    assert os.listdir(tmp_path) == ["weights"]
    with np.load(tmp_path / "weights") as archive:
        assert set(archive.files) == set(saved.named_parameters())
    assert loaded.load(str(tmp_path / "weights")) is loaded
    assert content(loaded) == content(saved) != content(make())


def test_a_file_that_the_former_cnn_saved_still_loads_and_each_parameter_keeps_its_dtype(tmp_path):
    shapes = {"conv1.weight": (4, 1, 3, 3), "conv1.bias": (4,), "conv2.weight": (8, 4, 3, 3), "conv2.bias": (8,)}
    shapes |= {"linear.weight": (392, 10), "linear.bias": (10,)}
    arrays = {name: np.random.default_rng(5).standard_normal(shape) for name, shape in shapes.items()}
    np.savez(tmp_path / "w.npz", **arrays)
    cnn = CNN()
    cnn.conv2.bias.data = np.zeros(8, f32)
    for name, p in cnn.load(tmp_path / "w.npz").named_parameters().items():
        dtype = f32 if name == "conv2.bias" else f64
        np.testing.assert_array_equal(p.data, arrays.pop(name).astype(dtype), strict=True)
    assert arrays == {}


EXECUTED = type("Executed", (), {"__reduce__": lambda self: (open, ("executed", "w"))})()  # makes a file
W, B = np.ones((40, 50)), np.ones(50)
REFUSED = {  # new content for a file, or arrays, and what the message names
    "half": (lambda data: data[: len(data) // 2], []),
    "flipped_bit": (lambda data: data[:5000] + bytes([data[5000] ^ 1]) + data[5001:], []),
    "header": (lambda data: data.replace(b"'<f8'", b"'<f4'", 1), []),  # NumPy reads half of the array, and is content
    "text": (lambda data: b"these are not weights", []),
    "npy": (lambda data: np.save("w", W) or Path("w.npy").read_bytes(), []),
    "pickle": ({"weight": W, "bias": np.array([EXECUTED] * 50)}, []),
    "missing": ({"weight": W}, ["bias"]),
    "extra": ({"weight": W, "bias": B, "gain": B}, ["gain"]),
    "another_shape": ({"weight": W.T, "bias": B}, ["weight", "(50, 40)", "(40, 50)"]),
    "a_shape_that_broadcasts": ({"weight": W, "bias": B[:1]}, ["bias", "(1,)", "(50,)"]),
}


@pytest.mark.parametrize("new, named", list(REFUSED.values()), ids=list(REFUSED))
def test_a_file_that_is_damaged_or_of_another_network_is_refused_and_changes_nothing(new, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    layer = LinearLayer(40, 50)
    LinearLayer(40, 50).save("w.npz")
    if callable(new):
        Path("w.npz").write_bytes(new(Path("w.npz").read_bytes()))
    else:
        np.savez("w.npz", **new)
    before = content(layer)
    with pytest.raises(ValueError) as error:
        layer.load("w.npz")
    assert all(text in str(error.value) for text in named)
    assert content(layer) == before and not Path("executed").exists()


def test_a_save_that_fails_leaves_the_old_file_and_no_other(tmp_path):
    net, path = network(), tmp_path / "w.npz"
    net.save(path)
    before = path.read_bytes()
    net.last = type("Unreadable", (Value,), {"data": property(lambda self: 1 / 0)})(1.0)
    with pytest.raises(ZeroDivisionError):
        net.save(path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["w.npz"]


def test_a_write_protected_file_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    CNN().save("w.npz")
    before = Path("w.npz").read_bytes()
    tmp_path.chmod(0o777)
    Path("w.npz").chmod(0o444)
    with contextlib.ExitStack() as undo, pytest.raises(OSError):
        if os.name == "posix" and os.geteuid() == 0:  # root may write to protected files, the user nobody may not
            undo.callback(os.seteuid, 0)
            os.seteuid(65534)
        CNN().save("w.npz")
    assert Path("w.npz").read_bytes() == before and os.listdir() == ["w.npz"]


def test_a_path_that_is_a_folder_or_in_a_missing_one_is_an_os_error(tmp_path):
    for path in (tmp_path, tmp_path / "missing" / "w.npz"):
        for call in (CNN().save, CNN().load):
            with pytest.raises(OSError):
                call(path)
    assert os.listdir(tmp_path) == []


# ---- Optimizer ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [np.array([1.0, 2.0]), np.array([1.0, 2.0], f32), np.array(1.5), 1.5], ids=repr)
def test_update_subtracts_lr_times_the_gradient_and_writes_to_no_array(data):
    p, before = Value(data), np.copy(data)
    optimizer, loss = Optimizer(iter([p])), (p * p).sum()
    loss.backward_all()
    for lr in (np.float64(0.25), 0, 0.125):  # the gradient is kept until zero_grad
        optimizer.update(lr=lr)
    np.testing.assert_array_equal(p.data, before - (0.25 + 0.125) * 2 * before)
    assert (type(p.data), p.dtype, p.shape) == (type(data), before.dtype, before.shape)
    optimizer.zero_grad()
    loss.backward_all()  # the graph keeps the array that it was computed from
    np.testing.assert_array_equal(p.grad, 2 * before)


@pytest.mark.parametrize("lr", [np.nan, np.inf, -0.1, "0.1", Value(0.1), np.array([0.1]), None], ids=repr)
def test_an_optimizer_takes_different_leaves_and_a_finite_learning_rate_from_0(lr):
    p = Value(1.0)
    p.grad = 2.0
    with pytest.raises(ValueError if isinstance(lr, float) else TypeError):
        Optimizer([p]).update(lr)
    assert (p.data, p.grad) == (1.0, 2.0)
    for parameters in ([], [p, p], [p, p * 2], [p, as_value(1.0)]):
        with pytest.raises(ValueError):
            Optimizer(parameters)


# ---- The CNN --------------------------------------------------------------------------------------------------------


def test_the_cnn_computes_the_stages_that_its_docstring_lists():
    cnn, x = CNN(), np.random.default_rng(6).standard_normal((3, 1, 28, 28))
    out, y = cnn(Value(x)), x
    for layer in (cnn.conv1, cnn.conv2):
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(y, [(0, 0), (0, 0), (1, 1), (1, 1)]), (3, 3), (2, 3))
        y = np.einsum("nchwij,ocij->nohw", windows, layer.weight.data) + layer.bias.data[:, None, None]
        n, c, h, w = y.shape
        y = np.maximum(y, 0).reshape(n, c, h // 2, 2, w // 2, 2).max(axis=(3, 5))
    expected = y.reshape(3, 392) @ cnn.linear.weight.data + cnn.linear.bias.data
    np.testing.assert_allclose(out.data, expected, 1e-10, 1e-10, strict=True)
    np.testing.assert_array_equal(cnn(x).data, out.data)
    shapes = {(3, 1, 28, 28), (3, 4, 28, 28), (3, 4, 14, 14), (3, 8, 14, 14), (3, 8, 7, 7), (3, 10)}
    assert shapes <= {v.shape for v in engine.topological_order(out)}


def test_the_cnn_takes_any_number_of_images_of_28_by_28():
    cnn = CNN()
    out = cnn(np.zeros((0, 1, 28, 28), f32))
    out.sum().backward_all()
    assert out.shape == (0, 10) and not any(np.any(p.grad) for p in cnn.parameters())
    for shape in [(28, 28), (1, 28, 28), (2, 3, 28, 28), (2, 1, 28, 29), (2, 1, 32, 32), (2, 784), ()]:
        with pytest.raises(ValueError, match=re.escape(str(shape))):
            cnn(np.zeros(shape))


def test_the_cnn_has_the_gradient_of_central_differences_in_a_random_direction():
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((2, 1, 28, 28)), rng.integers(0, 10, 2)
    start = [(layer.weight.data, layer.bias.data) for layer in vars(CNN()).values()]
    direction = [[rng.standard_normal(data.shape) for data in pair] for pair in start]

    def loss(t):  # at the point start + t * direction
        cnn = CNN()
        for layer, pair, d in zip(vars(cnn).values(), start, direction):
            layer.weight, layer.bias = pair[0] + t * d[0], pair[1] + t * d[1]
        return cross_entropy(cnn(x), labels)

    check_gradients(loss, 0.0)


def test_the_cnn_learns_a_few_images_by_heart_and_computes_in_float32_throughout():
    rng = np.random.default_rng(0)
    cnn, x, labels = CNN(), rng.standard_normal((10, 1, 28, 28)).astype(f32), rng.permutation(10)
    optimizer = Optimizer(cnn.parameters())
    for _ in range(60):
        optimizer.zero_grad()
        loss = cross_entropy(cnn(x), labels)
        loss.backward_all()
        optimizer.update(lr=0.1)
    assert loss.data < 0.1 and np.array_equal(cnn(x).data.argmax(axis=1), labels)
    for v in engine.topological_order(loss):
        assert v.dtype == v.grad.dtype == (f64 if v in cnn.parameters() else f32)
    assert all(np.any(p.grad) for p in cnn.parameters())


# ---- Drawn graphs ---------------------------------------------------------------------------------------------------


def read_dot(text):
    """The boxes {name: fields} and the arrows [(from, to)] of a graph in DOT whose nodes are records."""
    statement = r'\w+=\w+|\w+ \[\w+=(\w+|"([^"\\]|\\.)*")\]|\w+ -> \w+'
    assert re.fullmatch(rf"digraph \w*\s*\{{\n(\s*({statement})\n)*\}}\n", text) and "node [shape=record]" in text
    boxes = {}
    for name, label in re.findall(r'(\w+) *\[label="((?:[^"\\]|\\.)*)"', text):
        label = label[1:-1] if label.startswith("{") else label
        assert re.fullmatch(r"(?:[^{}<>\\]|\\.)*", label), "special characters must be escaped"
        fields = [field.strip().replace("&amp;", "&") for field in re.findall(r"(?:[^|\\]|\\.)+", label)]
        boxes[name] = [re.sub(r"\\(.)", lambda m: "\n" if m[1] == "n" else m[1], field) for field in fields]
    return boxes, re.findall(r"(\w+) -> (\w+)", text)


def test_draw_graph_shows_values_with_their_operations_data_and_gradients():
    a, b = Value(2.5, label="a"), Value(np.array([4.0, -8.0]), label="b")
    product, square = a * b, a * a
    product.label, square.label = "product", "square"
    out = product + square / 4
    out.sum().backward_all()
    boxes, arrows = read_dot(draw_graph(out))
    expected = ["a product", "b product", "a square", "a square", "square /", "constant /", "product +", "/ +"]
    assert sorted(f"{boxes[tail][0]} {boxes[head][0]}" for tail, head in arrows) == sorted(expected)
    shown = {fields[0]: " ".join(fields[1:]) for fields in boxes.values()}
    assert "2.5" in shown["a"] and "-1.5" in shown["a"] and "*" in shown["product"]
    assert "(2,)" in shown["b"] and "-8." in shown["b"] and "2.5" in shown["b"]
    assert "4" in shown["constant"] and "grad" not in shown["constant"]
    assert "8.5" in draw_graph(Value(np.arange(9) + 0.5)) and "8.5" not in draw_graph(Value(np.arange(10) + 0.5))


@pytest.mark.parametrize("label", ['a"b', "\\name", "{x|y}", "<port>", "a & b", "&lt;", "two\nlines", 7], ids=str)
def test_draw_graph_escapes_what_means_something_in_dot(label):
    boxes, _ = read_dot(draw_graph(Value(1.0, label=label) * 2))
    assert sum(str(label) in fields for fields in boxes.values()) == 1 and len(boxes) == 3
