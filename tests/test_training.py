"""The data, the model's files and the training script."""

import gzip
import hashlib
import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import train_on_MNIST as script
from engine import Value, no_grad
from model import CNN
from train_on_MNIST import evaluate, load_mnist, main, train

ROOT = Path(__file__).resolve().parent.parent
FILES = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
IMAGES, LABELS, TEST_IMAGES, TEST_LABELS = FILES


@pytest.fixture(scope="module")
def mnist():
    return load_mnist(ROOT / "data")


@pytest.fixture(scope="module")
def raw():
    """The decompressed content of the four files."""
    return {name: gzip.decompress((ROOT / "data" / f"{name}.gz").read_bytes()) for name in FILES}


def idx(magic, sizes, content):
    return b"".join(n.to_bytes(4, "big") for n in (magic, *sizes)) + content


@pytest.fixture
def small(tmp_path, raw):
    """A folder with the first 300 training images and 100 test images, not compressed."""
    folder = tmp_path / "small"
    folder.mkdir()
    for images, labels, n in ((IMAGES, LABELS, 300), (TEST_IMAGES, TEST_LABELS, 100)):
        (folder / images).write_bytes(idx(0x803, (n, 28, 28), raw[images][16 : 16 + n * 784]))
        (folder / labels).write_bytes(idx(0x801, (n,), raw[labels][8 : 8 + n]))
    return folder


def run(*arguments, **options):
    command = [sys.executable, str(ROOT / "train_on_MNIST.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=60, **options)


# ---- The data set ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_mnist_is_the_canonical_one(name, raw):
    assert hashlib.md5(raw[name]).hexdigest() == FILES[name]


def test_mnist_is_loaded_as_normalised_float32_images_and_integer_labels(mnist, raw):
    X_train, y_train, X_test, y_test = mnist
    assert (X_train.shape, y_train.shape) == ((60000, 1, 28, 28), (60000,))
    assert (X_test.shape, y_test.shape) == ((10000, 1, 28, 28), (10000,))
    assert X_train.dtype == X_test.dtype == np.float32
    assert y_train.dtype.kind == y_test.dtype.kind == "i"
    for X, y, images, labels in ((X_train, y_train, IMAGES, LABELS), (X_test, y_test, TEST_IMAGES, TEST_LABELS)):
        assert bytes(y.astype(np.uint8)) == raw[labels][8:]
        for i in (0, 4321, len(X) - 1):
            pixels = np.array(list(raw[images][16 + 784 * i : 16 + 784 * (i + 1)])).reshape(28, 28)
            np.testing.assert_allclose(X[i, 0], (pixels / 255 - 0.1307) / 0.3081, rtol=1e-6, atol=1e-7)
    assert abs(X_train.mean(dtype=float)) < 1e-3 and abs(X_train.std(dtype=float) - 1) < 1e-3


def test_data_may_be_compressed_or_not(small, tmp_path):
    plain = load_mnist(small)
    for name in FILES:
        (small / f"{name}.gz").write_bytes(gzip.compress((small / name).read_bytes()))
        (small / name).unlink()
    for a, b in zip(plain, load_mnist(str(small))):
        np.testing.assert_array_equal(a, b)


def images_of(n, rows=28, columns=28, content=None):
    return idx(0x803, (n, rows, columns), bytes(n * rows * columns) if content is None else content)


@pytest.mark.parametrize(
    "name, content, message",
    [
        (IMAGES, None, "missing"),
        (TEST_LABELS, None, "missing"),
        (IMAGES, b"", "magic number"),
        (IMAGES, b"\0\0\x08", "magic number"),
        (IMAGES, idx(0x801, (300, 28, 28), bytes(300 * 784)), "magic number 0x803.*0x801"),
        (LABELS, idx(0x803, (300,), bytes(300)), "magic number 0x801.*0x803"),
        (IMAGES, images_of(300)[:-1], "bytes"),
        (IMAGES, images_of(300) + b"\0", "bytes"),
        (IMAGES, images_of(300)[:10], "bytes|pixels"),
        (IMAGES, images_of(300, 32, 32), "32 x 32.*28 x 28"),
        (IMAGES, images_of(0), "empty"),
        (LABELS, idx(0x801, (299,), bytes(299)), "299 labels.*300 images"),
        (TEST_LABELS, idx(0x801, (100,), bytes(99) + b"\x0a"), "label 10"),
        (LABELS, idx(0x801, (300,), bytes([255]) * 300), "label 255"),
    ],
)
def test_wrong_data_file_is_named_in_one_sentence(small, name, content, message):
    (small / name).unlink() if content is None else (small / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"(?s){name}.*({message})") as error:
        load_mnist(small)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", ["truncated", "checksum", "header", "empty", "not_gzip", "deflate", "folder"])
def test_damaged_gzip_file_is_named_in_one_sentence(small, damage):
    whole = gzip.compress((small / IMAGES).read_bytes(), mtime=0)
    content = {
        "truncated": whole[: len(whole) // 2],
        "checksum": whole[:-8] + bytes(8),
        "header": b"\x1f\x8b\x07" + whole[3:],
        "empty": b"",
        "not_gzip": b"<html>not found</html>",
        "deflate": whole[:10] + b"\xff" * 100 + whole[110:],
        "folder": None,
    }[damage]
    path = small / f"{IMAGES}.gz"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(ValueError, match=IMAGES) as error:
        load_mnist(small)
    assert "\n" not in str(error.value)


def test_script_stops_at_wrong_data_with_a_sentence_and_status_1(small):
    (small / LABELS).write_bytes(b"nonsense")
    result = run("--data", small)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ") and LABELS in result.stderr and result.stderr.count("\n") == 1


# ---- The model ------------------------------------------------------------------------------------------------------


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
def test_interrupted_save_keeps_the_old_file_and_leaves_nothing_else(tmp_path, monkeypatch, interruption):
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


def test_load_rejects_what_is_no_file_of_these_weights_and_changes_nothing(tmp_path):
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


# ---- Training -------------------------------------------------------------------------------------------------------


def test_training_on_6000_real_images_reaches_94_percent(mnist):
    """Two epochs on a tenth of the images."""
    X_train, y_train, X_test, y_test = mnist
    np.random.seed(0)
    model = CNN()
    assert evaluate(model, X_test, y_test) < 0.3
    accuracy = train(model, X_train[:6000], y_train[:6000], X_test, y_test, epochs=2)
    assert accuracy == evaluate(model, X_test, y_test) >= 0.94


def test_evaluate_is_the_share_of_right_answers_and_records_no_graph():
    class Reader:
        """Sees the digit that is written into the first pixel."""

        def __call__(self, x):
            assert not (Value(1.0) * 2).requires_grad
            return Value(np.eye(10)[x[:, 0, 0, 0].astype(int)])

    X, y = np.zeros((7, 1, 28, 28)), np.array([1, 2, 3, 4, 5, 6, 7])
    X[:, 0, 0, 0] = [1, 2, 3, 4, 0, 0, 0]
    for batch_size in (1, 3, 7, 100):
        assert evaluate(Reader(), X, y, batch_size) == 4 / 7
    with no_grad():
        pass
    assert (Value(1.0) * 2).requires_grad


@pytest.mark.parametrize("labels", [[], [1], [1, 2, 3], [[1, 2]]], ids=str)
def test_evaluate_and_train_reject_images_and_labels_that_do_not_fit(labels):
    X, y = np.zeros((2, 1, 28, 28), np.float32), np.array(labels, int)
    with pytest.raises(ValueError, match="one label.*each image"):
        evaluate(CNN(), X, y)
    with pytest.raises(ValueError, match="one label.*each image"):
        train(CNN(), X, y, X, np.array([1, 2]))


@pytest.mark.parametrize("option", [{"epochs": 0}, {"batch_size": 0}, {"epochs": -1}])
def test_train_rejects_no_epochs_and_no_batches(option):
    X, y = np.zeros((2, 1, 28, 28), np.float32), np.array([1, 2])
    with pytest.raises(ValueError, match="at least 1"):
        train(CNN(), X, y, X, y, **option)


# ---- The script -----------------------------------------------------------------------------------------------------


def test_import_has_no_side_effects(tmp_path):
    code = "import random, numpy as np; s = np.random.get_state()[1].tolist(); import train_on_MNIST, model, engine;"
    code += "assert s == np.random.get_state()[1].tolist()"
    command = [sys.executable, "-W", "error", "-c", code]
    result = subprocess.run(command, capture_output=True, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


def test_script_prints_the_data_the_model_the_settings_and_a_line_for_each_epoch(small, tmp_path):
    result = run("--data", small, "--epochs", 3, "--seed", 7, cwd=tmp_path)  # from another folder than its own
    assert (result.returncode, result.stderr) == (0, "")
    assert "300 training images and 100 test images" in result.stdout
    assert "4,266 parameters" in result.stdout and "conv2: Conv2dLayer(4, 8, 3" in result.stdout
    settings = f"batch size {script.BATCH_SIZE}, learning rate {script.LR:g} falling to 0, seed 7"
    assert f"epochs 3, {settings}" in result.stdout
    line = r"^epoch +(\d)/3 +loss (\d\.\d{4}) +test accuracy (\d+\.\d\d) % +\d+\.\d s$"
    lines = re.findall(line, result.stdout, re.MULTILINE)
    assert [epoch for epoch, _, _ in lines] == ["1", "2", "3"]
    assert f"\ntest accuracy {lines[-1][2]} %" in result.stdout
    assert "\r" not in result.stdout and "\033" not in result.stdout  # a live line is for terminals


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def test_terminal_shows_a_live_line_that_leaves_no_trace(small, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    clock = iter(range(10**6))
    monkeypatch.setattr(script.time, "perf_counter", lambda: float(next(clock)))  # each look at it is a second later
    assert main(["--data", str(small), "--epochs", "1"]) == 0
    live = re.findall(r"\r(epoch 1/1 +\d+%   loss \d\.\d{4}   [\d,]+ images/s) *\r", terminal.getvalue())
    assert len(live) >= 5
    screen = [line.rsplit("\r", 1)[-1] for line in terminal.getvalue().split("\n")]  # what the last \r leaves
    assert sum(line.startswith("epoch 1/1   loss") for line in screen) == 1


def test_same_seed_prints_the_same_losses_and_another_seed_others(small, capsys):
    losses = []
    for seed in ("1", "1", "2"):
        assert main(["--data", str(small), "--epochs", "2", "--seed", seed]) == 0
        losses.append(re.findall(r"loss (\S+)   test accuracy (\S+)", capsys.readouterr().out))
    assert losses[0] == losses[1] != losses[2]
    assert len(losses[0]) == 2


def test_saved_weights_are_tested_and_trained_further(small, tmp_path, capsys):
    path = str(tmp_path / "weights.npz")
    accuracy = []
    for options in (["--epochs", "4", "--save", path], ["--epochs", "0", "--load", path]):
        assert main(["--data", str(small), *options]) == 0
        accuracy.append(re.findall(r"\ntest accuracy (\S+) %", capsys.readouterr().out)[-1])
    assert accuracy[0] == accuracy[1]
    assert main(["--data", str(small), "--epochs", "1", "--load", path]) == 0
    further = float(re.findall(r"loss (\S+) ", capsys.readouterr().out)[0])
    assert main(["--data", str(small), "--epochs", "1"]) == 0
    assert further < float(re.findall(r"loss (\S+) ", capsys.readouterr().out)[0])


def interrupt(monkeypatch, step):
    """Ctrl-C in the given step of training."""
    update, steps = script.Optimizer.update, []

    def interrupted(self, lr):
        steps.append(lr)
        if len(steps) == step:
            raise KeyboardInterrupt
        update(self, lr)

    monkeypatch.setattr(script.Optimizer, "update", interrupted)


@pytest.mark.parametrize("step", [1, 3, 12])
def test_ctrl_c_ends_with_status_130_the_result_and_the_weights(small, tmp_path, monkeypatch, capsys, step):
    path = tmp_path / "weights.npz"
    interrupt(monkeypatch, step)
    assert main(["--data", str(small), "--epochs", "2", "--save", str(path)]) == 130
    output = capsys.readouterr()
    assert "Traceback" not in output.err and f"weights saved to {path}" in output.out
    assert ("interrupted after" in output.out) == (step > 1)
    CNN().load(path)


def test_learning_rate_falls_linearly_to_zero(small, monkeypatch, capsys):
    rates = []
    monkeypatch.setattr(script.Optimizer, "update", lambda self, lr: rates.append(lr))
    assert main(["--data", str(small), "--epochs", "2", "--batch-size", "100", "--lr", "0.6"]) == 0
    np.testing.assert_allclose(rates, [0.6, 0.5, 0.4, 0.3, 0.2, 0.1])


def test_training_that_diverges_says_so(small, tmp_path):
    path = tmp_path / "weights.npz"
    result = run("--data", small, "--lr", 1e30, "--save", path)
    assert result.returncode == 1 and not path.exists()
    assert re.fullmatch(r"error: the loss is (inf|nan): try a smaller learning rate.*\n", result.stderr)


def test_show_draws_wrong_digits_and_counts_all_of_them(small, capsys):
    assert main(["--data", str(small), "--epochs", "2", "--show"]) == 0
    output = capsys.readouterr().out
    shown, wrong = map(int, re.search(r"(\d+) of the (\d+) images that it gets wrong", output).groups())
    pairs = re.findall(r"label (\d), seen as (\d)", output)
    assert len(pairs) == shown == min(wrong, script.SHOWN) and all(label != seen for label, seen in pairs)
    rows = re.findall(r"^ {4}\d((?: +[\d.]+){10})$", output, re.M)
    matrix = np.array([[int(c.replace(".", "0")) for c in row.split()] for row in rows])
    _, _, X, y = load_mnist(small)
    np.testing.assert_array_equal(matrix.sum(1), np.bincount(y, minlength=10))
    assert matrix.sum() - np.trace(matrix) == wrong


def test_picture_fills_the_halves_of_its_characters(monkeypatch):
    image = np.full((28, 28), -0.42, np.float32)  # black
    image[2, 2] = image[3, 3] = image[4:6, 4] = 2.8  # white: an upper half, a lower half, both
    lines = script.picture(image)
    assert [len(line) for line in lines] == [24] * 12
    assert (lines[0][0], lines[0][1], lines[0][2], lines[1][2]) == ("▀", "▄", " ", "█")

    class Ascii(io.StringIO):
        encoding = "ascii"

    monkeypatch.setattr(sys, "stdout", Ascii())
    assert "".join(script.picture(image)).isascii()


@pytest.mark.parametrize(
    "options",
    [
        ["--epochs", "-1"], ["--epochs", "1.5"], ["--epochs", "0"], ["--batch-size", "0"], ["--batch-size", "x"],
        ["--lr", "0"], ["--lr", "-1"], ["--lr", "nan"], ["--lr", "inf"], ["--seed", "-1"], ["--seed", "4294967296"],
        ["--nonsense"], ["weights.npz"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_wrong_option_gets_argparse_s_message_and_status_2(options, capsys):
    with pytest.raises(SystemExit) as exit:
        main(options)
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("usage: ") and options[0] in error


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["--help"])
    text = capsys.readouterr().out
    assert exit.value.code == 0
    for option in ("epochs", "batch-size", "lr", "seed", "data", "save", "load", "show"):
        assert f"--{option}" in text


def test_save_where_nothing_can_be_written_is_said_before_the_training(small, tmp_path, capsys):
    assert main(["--data", str(small), "--save", str(tmp_path / "nowhere" / "weights.npz")]) == 1
    output = capsys.readouterr()
    assert "epoch" not in output.out and re.fullmatch(r"error: cannot save weights to .*nowhere.*\n", output.err)


def test_load_of_a_wrong_file_ends_with_a_sentence_and_status_1(small, tmp_path, capsys):
    path = tmp_path / "weights.npz"
    path.write_bytes(b"nonsense")
    assert main(["--data", str(small), "--load", str(path)]) == 1
    assert re.fullmatch(r"error: cannot load weights from .*weights.npz.*\n", capsys.readouterr().err)


def test_reader_that_goes_away_gets_no_traceback(small):
    command = [sys.executable, str(ROOT / "train_on_MNIST.py"), "--data", str(small), "--epochs", "3"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
