"""The CNN computes what its docstring says, and its weights survive on the disk."""

import io
import re

import numpy as np
import pytest

from engine import Value, cross_entropy
from model import CNN


def test_cnn_has_4266_parameters_and_says_what_it_is():
    model = CNN()
    assert sum(p.data.size for p in model.parameters()) == 4266
    assert [p.shape for p in model.parameters()] == [(4, 1, 3, 3), (4,), (8, 4, 3, 3), (8,), (392, 10), (10,)]
    for layer in ("conv1", "conv2", "linear"):
        assert f"{layer}: {getattr(model, layer)}" in repr(model)


@pytest.mark.parametrize("n", [0, 1, 3])
def test_cnn_takes_arrays_and_values_of_any_batch_size(n):
    model, x = CNN(), np.random.default_rng(0).standard_normal((n, 1, 28, 28))
    for dtype in (np.float32, np.float64):
        raw, value = model(x.astype(dtype)), model.forward(Value(x.astype(dtype)))
        assert raw.shape == (n, 10) and raw.data.dtype == dtype
        np.testing.assert_array_equal(raw.data, value.data)


def test_cnn_is_relu_then_pooling_after_each_convolution():
    """Against the layers' definitions, one pixel at a time."""
    rng = np.random.default_rng(0)
    model, x = CNN(), rng.standard_normal((2, 1, 28, 28))

    def block(x, layer):
        w, b = layer.weight.data, layer.bias.data
        x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        y = np.array([[np.einsum("ncij,ocij->no", x[:, :, r : r + 3, c : c + 3], w) + b
                       for c in range(x.shape[3] - 2)] for r in range(x.shape[2] - 2)])  # fmt: skip
        y = np.maximum(y.transpose(2, 3, 0, 1), 0)
        n, o, h, w = y.shape
        return y.reshape(n, o, h // 2, 2, w // 2, 2).max((3, 5))

    y = block(block(x, model.conv1), model.conv2).reshape(2, 392) @ model.linear.weight.data + model.linear.bias.data
    np.testing.assert_allclose(model(x).data, y, rtol=1e-10)


@pytest.mark.parametrize("shape", [(28, 28), (1, 28, 28), (2, 28, 28), (2, 3, 28, 28), (2, 1, 32, 32), (2, 784), ()])
def test_cnn_rejects_images_of_another_shape(shape):
    with pytest.raises(ValueError, match=re.escape(f"(n, 1, 28, 28), got shape {shape}")):
        CNN()(np.zeros(shape))


@pytest.mark.parametrize("x", [None, "image", np.zeros((1, 1, 28, 28), complex)], ids=["None", "str", "complex"])
def test_cnn_rejects_what_is_no_array_of_real_numbers(x):
    with pytest.raises(TypeError, match="real numbers"):
        CNN()(x)


def test_saved_weights_come_back_bit_by_bit(tmp_path):
    path = tmp_path / "weights"  # the name is kept as it is
    model, other = CNN(), CNN()
    model.save(path)
    assert other.load(str(path)) is other and [p.name for p in tmp_path.iterdir()] == ["weights"]
    for p, q in zip(model.parameters(), other.parameters()):
        np.testing.assert_array_equal(p.data, q.data)
        assert q.data.dtype == np.float64


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError("disk full")])
def test_interrupted_save_keeps_the_old_file_only(tmp_path, monkeypatch, interruption):
    path = tmp_path / "weights.npz"
    CNN().save(path)
    before = path.read_bytes()

    def replace(source, target):
        raise interruption

    monkeypatch.setattr("os.replace", replace)
    with pytest.raises(KeyboardInterrupt if interruption is KeyboardInterrupt else ValueError):
        CNN().save(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_save_where_nothing_can_be_written_is_a_value_error(tmp_path):
    for path in (tmp_path / "nowhere" / "weights.npz", tmp_path):
        with pytest.raises(ValueError, match="cannot save weights to .*" + re.escape(str(path))):
            CNN().save(path)


def test_load_rejects_other_files_and_changes_nothing(tmp_path):
    path, model = tmp_path / "weights.npz", CNN()
    model.save(path)
    whole = path.read_bytes()
    arrays = dict(np.load(path))
    before = [p.data.copy() for p in model.parameters()]

    def saved(**changes):
        file = io.BytesIO()
        np.savez(file, **{name: a for name, a in {**arrays, **changes}.items() if a is not None})
        return file.getvalue()

    wrong = {
        "missing": None,
        "empty": b"",
        "text": b"these are no weights",
        "truncated": whole[: len(whole) // 2],
        "damaged": whole[:2000] + bytes(200) + whole[2200:],
        "another shape": saved(**{"linear.bias": np.zeros(11)}),
        "an array too few": saved(**{"linear.bias": None}),
        "an array too many": saved(more=np.zeros(1)),
        "complex": saved(**{"conv1.bias": np.zeros(4, complex)}),
        "integers": saved(**{"conv1.bias": np.zeros(4, int)}),
        "objects": saved(**{"conv1.bias": np.array([None] * 4)}),
    }
    for content in wrong.values():
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ValueError, match="cannot load weights from .*" + re.escape(str(path))) as error:
            model.load(path)
        assert "\n" not in str(error.value)
    path.unlink()
    path.write_bytes(saved())
    for p, data in zip(model.parameters(), before):
        np.testing.assert_array_equal(p.data, data)
    model.load(path)


def test_every_parameter_of_the_cnn_gets_a_gradient():
    np.random.seed(0)
    model, rng = CNN(), np.random.default_rng(0)
    cross_entropy(model(rng.standard_normal((8, 1, 28, 28))), rng.integers(0, 10, 8)).backward()
    assert all(np.abs(p.grad).max() > 0 for p in model.parameters())
