"""train_on_MNIST.py: its data, its steps, the accuracy that it reaches, and its command line as a terminal shows it."""

import gzip
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from engine import LinearLayer, Module, Optimizer, Value
from model import CNN
from train_on_MNIST import (
    BATCH_SIZE,
    DATA,
    DEVIATION,
    EPOCHS,
    LR,
    MEAN,
    SEED,
    WARMUP,
    batches,
    evaluate,
    learning_rate,
    load_mnist,
    mistakes,
    picture,
    predict,
    show,
    train,
    train_step,
)

ROOT = Path(__file__).resolve().parent.parent
NAMES = {(split, kind): f"{split}-{kind}" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")}


@pytest.fixture(scope="module")
def mnist():
    return load_mnist(DATA)


def idx(array):
    """The bytes of an IDX file."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return header + array.astype(np.uint8).tobytes()


def write(folder, images, labels, zipped=True, suffix=".gz"):
    """The four files of a data set, with the same images for training and for testing."""
    folder.mkdir(exist_ok=True)
    for (_, kind), name in NAMES.items():
        content = idx(images if "images" in kind else labels)
        (folder / f"{name}-ubyte{suffix}").write_bytes(gzip.compress(content) if zipped else content)
    return folder


@pytest.fixture(scope="module")
def small(mnist, tmp_path_factory):
    """A folder with 300 of MNIST's training images."""
    X, y = mnist[0][:300, 0], mnist[1][:300]
    return write(tmp_path_factory.mktemp("data"), np.rint((X * DEVIATION + MEAN) * 255), y)


# ---- Data -----------------------------------------------------------------------------------------------------------


def test_mnist_is_loaded_whole_and_normalised(mnist):
    X_train, y_train, X_test, y_test = mnist
    assert X_train.shape == (60000, 1, 28, 28) and X_test.shape == (10000, 1, 28, 28)
    assert X_train.dtype == X_test.dtype == np.float32 and y_train.dtype == y_test.dtype == np.int64
    assert list(y_train[:5]) == [5, 0, 4, 1, 9] and list(np.bincount(y_test)[:3]) == [980, 1135, 1032]
    assert abs(X_train.mean()) < 1e-3 and abs(X_train.std() - 1) < 1e-3


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("suffix", [".gz", ""])
def test_the_content_of_a_data_file_says_whether_it_is_gzipped(tmp_path, zipped, suffix):
    images, labels = np.arange(3 * 28 * 28).reshape(3, 28, 28) % 256, np.array([7, 0, 9])
    X, y, X_test, _ = load_mnist(write(tmp_path, images, labels, zipped, suffix))
    np.testing.assert_array_equal(y, labels)
    np.testing.assert_allclose(X[:, 0], (images / 255 - 0.1307) / 0.3081, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(X, X_test)


IMAGES, LABELS = idx(np.zeros((2, 28, 28))), idx(np.array([1, 2]))


@pytest.mark.parametrize(
    "name, content",
    {
        "cut": ("train-images-idx3-ubyte", IMAGES[:-1]),
        "too long": ("train-labels-idx1-ubyte", LABELS + b"0"),
        "without a header": ("train-labels-idx1-ubyte", b"\0\0"),
        "empty": ("t10k-images-idx3-ubyte", b""),
        "labels for images": ("train-images-idx3-ubyte", LABELS),
        "of another type": ("train-labels-idx1-ubyte", b"\0\0\x0d" + LABELS[3:]),
        "gzip cut": ("train-images-idx3-ubyte", gzip.compress(IMAGES)[:-9]),
        "gzip changed": ("train-labels-idx1-ubyte", gzip.compress(LABELS)[:-8] + bytes(8)),
        "a label missing": ("train-labels-idx1-ubyte", idx(np.array([1]))),
        "a page of a web server": ("t10k-labels-idx1-ubyte", b"<html>not found</html>"),
    }.items(),
    ids=str,
)
def test_a_damaged_data_file_is_a_value_error(tmp_path, name, content):
    file, data = content
    write(tmp_path, np.zeros((2, 28, 28)), np.array([1, 2]), zipped=False, suffix="")
    load_mnist(tmp_path)
    (tmp_path / file).write_bytes(data)
    with pytest.raises(ValueError, match="labels named train" if name == "a label missing" else file):
        load_mnist(tmp_path)


def test_no_images_at_all_are_a_value_error(tmp_path):
    with pytest.raises(ValueError):
        load_mnist(write(tmp_path, np.zeros((0, 28, 28)), np.zeros(0)))


def test_a_missing_data_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="train-images-idx3-ubyte"):
        load_mnist(tmp_path)


# ---- Training -------------------------------------------------------------------------------------------------------


def test_an_epoch_has_every_image_once_with_its_label():
    X, y = np.zeros((10, 1, 28, 28)), np.arange(10)
    X[:, 0, 10, 10] = y + 1
    np.random.seed(0)
    epoch = list(batches(X, y, 4))
    assert [len(labels) for _, labels in epoch] == [4, 4, 2]
    assert sorted(np.concatenate([labels for _, labels in epoch])) == list(range(10))
    assert list(np.concatenate([labels for _, labels in epoch])) != list(range(10))
    for images, labels in epoch:
        np.testing.assert_array_equal(images.max(axis=(1, 2, 3)), labels + 1)


def test_a_batch_is_moved_by_at_most_a_pixel_in_every_direction():
    X = np.zeros((1, 1, 28, 28))
    X[0, 0, 10, 10] = 1
    np.random.seed(0)
    places = [tuple(int(i[0]) for i in np.nonzero(images[0, 0])) for _ in range(200) for images, _ in batches(X, X, 1)]
    assert set(places) == {(row, column) for row in (9, 10, 11) for column in (9, 10, 11)}


def test_the_learning_rate_rises_for_the_warm_up_and_then_falls_to_almost_0():
    assert WARMUP == 500
    assert [learning_rate(step, 10501, 2.0) for step in (0, 250, 500, 5500, 10500)] == pytest.approx(
        [2 / 501, 2 * 251 / 501, 2.0, 2 * 5001 / 10001, 2 / 10001]
    )
    assert [learning_rate(step, 20, 1.0) for step in range(4)] == pytest.approx([1 / 3, 2 / 3, 1, 17 / 18])
    assert learning_rate(0, 1, 0.5) == 0.5


def test_a_training_step_moves_every_parameter_against_its_gradient():
    layer = LinearLayer(2, 2)
    weight, bias = layer.weight.data.copy(), layer.bias.data.copy()
    x = np.array([[1.0, 2.0]])
    z = x @ weight + bias
    p = np.exp(z) / np.exp(z).sum()
    layer.weight.grad = 100.0  # of an earlier step
    assert train_step(layer, Optimizer(layer.parameters()), x, np.array([1]), 0.5) == pytest.approx(-np.log(p[0, 1]))
    dz = p - np.array([[0, 1]])
    np.testing.assert_allclose(layer.weight.data, weight - 0.5 * x.T @ dz, rtol=1e-12)
    np.testing.assert_allclose(layer.bias.data, bias - 0.5 * dz[0], rtol=1e-12)


def test_the_cnn_learns_a_tenth_of_mnist(mnist, tmp_path, capsys):
    """To 94 % of 2,000 test images in three epochs; the weights of the last one are in the file."""
    X, y, X_test, y_test = mnist
    np.random.seed(1)
    model, file = CNN(), tmp_path / "weights.npz"
    accuracy = train(model, X[:6000], y[:6000], X_test[:2000], y_test[:2000], epochs=3, save=file)
    assert accuracy >= 0.94
    assert accuracy == evaluate(CNN().load(file), X_test[:2000], y_test[:2000])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and all(re.match(rf"epoch {i}/3   loss 0\.\d+   accuracy 9", lines[i - 1]) for i in (2, 3))
    assert f"{100 * accuracy:.2f} %" in lines[2]


def test_a_seed_repeats_a_training(mnist):
    X, y = mnist[0][:200], mnist[1][:200]

    def run(seed):
        np.random.seed(seed)
        model = CNN()
        train(model, X, y, X, y, epochs=2, batch_size=50)
        return model.linear.weight.data

    np.testing.assert_array_equal(run(3), run(3))
    assert not np.array_equal(run(3), run(4))


def test_the_learning_rate_and_the_batch_size_are_used(mnist):
    """One step with all images: each parameter moves by lr times its gradient; with half of them, there are two."""
    X, y = mnist[0][:100], mnist[1][:100]
    moved = []
    for lr, batch_size in ((1e-3, 100), (2e-3, 100), (1e-3, 50)):
        np.random.seed(0)
        model = CNN()
        before = model.linear.bias.data
        train(model, X, y, X, y, epochs=1, batch_size=batch_size, lr=lr)
        moved.append(np.linalg.norm(model.linear.bias.data - before))
    assert moved[1] == pytest.approx(2 * moved[0], rel=1e-6)
    assert moved[2] == pytest.approx(1.5 * moved[0], rel=0.2)  # at the rates lr and lr / 2


def test_a_loss_that_is_not_finite_ends_the_training_and_saves_nothing(mnist, tmp_path):
    X, y = mnist[0][:500], mnist[1][:500]
    with pytest.raises(FloatingPointError):
        train(CNN(), X, y, X, y, epochs=2, lr=1e6, save=tmp_path / "weights.npz")
    assert list(tmp_path.iterdir()) == []


# ---- Testing --------------------------------------------------------------------------------------------------------


class Brightness(Module):
    """Ten logits, of which the one at the number in the first pixel is 3 and the others 0."""

    def forward(self, x):
        return Value(3.0 * (np.arange(10) == x[:, 0, 0, :1]))


def test_predictions_accuracy_and_mistakes():
    X, y = np.zeros((450, 1, 28, 28)), np.arange(450) % 10
    X[:, 0, 0, 0] = y
    X[7, 0, 0, 0], X[8, 0, 0, 0] = 2, -1  # wrong: once with confidence, once with ten equal logits, the first counts
    model = Brightness()
    expected = y.copy()
    expected[7:9] = 2, 0
    np.testing.assert_array_equal(predict(model, X), expected)
    assert evaluate(model, X, y) == 448 / 450
    wrong, predicted, confidence = mistakes(model, X, y)
    assert list(wrong) == [7, 8] and list(predicted[7:9]) == [2, 0]
    assert confidence[7:9] == pytest.approx([math.exp(3) / (math.exp(3) + 9), 0.1])


def test_a_picture_has_a_character_for_two_pixels():
    """Of which the lower, the upper or both are filled, if they are brighter than 0.3."""
    pixels = np.zeros((28, 28))
    pixels[2:26, 2:6] = 0.29  # not filled
    pixels[3, 2] = pixels[4, 3] = 0.31
    pixels[4:6, 4] = pixels[0] = pixels[:, 27] = 1  # the border is left out
    lines = picture((pixels - MEAN) / DEVIATION)
    assert len(lines) == 12 and {len(line) for line in lines} == {24}
    filled = [line.rstrip().replace("▄", ".").replace("▀", "'").replace("█", "#") for line in lines]
    assert filled == [".", " '#"] + [""] * 10


def test_the_drawn_images_are_the_mistakes(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    X, y = np.zeros((12, 1, 28, 28)), np.arange(12) % 10
    X[:, 0, 0, 0] = y
    X[7, 0, 0, 0] = X[9, 0, 0, 0] = 3  # wrong
    X[7, 0, 10:20, 5] = X[9, 0, 12, 5:20] = X[0, 0, 2:26, 2:26] = X[8, 0, 2:26, 2:26] = 1
    show(Brightness(), X, y)
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split("label") == ["", " 7, predicted 3, 69.1 %".ljust(25), " 9, predicted 3, 69.1 %"]
    pictures = zip(picture(X[7, 0]), picture(X[9, 0]))
    assert lines[3:15] == [f"{left:30}{right}".rstrip() for left, right in pictures]


# ---- Command line ---------------------------------------------------------------------------------------------------


def run(*options, script=ROOT / "train_on_MNIST.py", **keywords):
    command = [sys.executable, "-W", "error", script, *options]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, encoding="utf-8", **keywords)


def test_training_saving_and_testing_from_the_command_line(small, tmp_path):
    file = tmp_path / "weights"  # the name is used as it is
    settings = ["--epochs", "2", "--batch-size", "1", "--lr", "0.01", "--seed", "1"]
    first = run("--data", small, *settings, "--save", file)
    assert (first.returncode, first.stderr) == (0, "")
    assert "300 training images" in first.stdout and "4,266 parameters" in first.stdout
    assert (
        len(re.findall(r"^epoch \d/2   loss \d\.\d+   accuracy \S+ %   \d{1,2}\.\d s$", first.stdout, re.MULTILINE))
        == 2
    )
    accuracy = re.search(r"^test accuracy (\S+) %", first.stdout, re.MULTILINE)[1]
    assert [f.name for f in tmp_path.iterdir()] == ["weights"]
    second = run("--data", small, "--epochs", "0", "--load", file, "--show")
    assert second.returncode == 0 and f"test accuracy {accuracy} %" in second.stdout and "epoch" not in second.stdout
    assert len(re.findall(r"label \d, predicted \d", second.stdout)) == 6 and "█" in second.stdout


def test_help_names_every_option_and_the_source_of_other_data():
    help = run("--help").stdout
    for option in ("--epochs", "--batch-size", "--lr", "--seed", "--data", "--save", "--load", "--show"):
        assert option in help
    for number in (EPOCHS, BATCH_SIZE, LR, SEED):
        assert f"({number})" in help
    assert SEED == 0
    assert "zalandoresearch/fashion-mnist" in help and "t10k-labels-idx1-ubyte.gz" in help


@pytest.mark.parametrize(
    "options, status, words",
    [
        (["--epochs", "x"], 2, "--epochs"),
        (["--epochs", "-1"], 2, "--epochs"),
        (["--epochs", "0"], 2, "--load"),
        (["--batch-size", "0"], 2, "--batch-size"),
        (["--lr", "nan"], 2, "--lr"),
        (["--lr", "0"], 2, "--lr"),
        (["--lr", "inf"], 2, "--lr"),
        (["--seed", "4294967296"], 2, "--seed"),
        (["--sead", "1"], 2, "--sead"),
        (["--data", "nowhere"], 1, "nowhere"),
        (["--load", "nowhere.npz"], 1, "nowhere.npz"),
        (["--load", "README.md"], 1, "README.md"),
        (["--save", "nowhere/weights.npz"], 1, "nowhere"),
        (["--save", "."], 1, "not a regular file"),
        (["--lr", "1e9"], 1, "smaller learning rate"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_on_the_command_line_is_one_sentence(small, options, status, words):
    result = run("--data", small, "--epochs", "1", *options, cwd=ROOT)
    assert result.returncode == status and words in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr and (status == 2 or len(result.stderr.splitlines()) == 1)


def test_a_mistake_in_the_network_is_pythons_traceback(small, tmp_path):
    for file in ("engine.py", "model.py", "train_on_MNIST.py"):
        shutil.copy(ROOT / file, tmp_path)
    model = tmp_path / "model.py"
    model.write_text(model.read_text(encoding="utf-8").replace("8 * 7 * 7)", "8 * 7 * 8)"), encoding="utf-8")
    result = run("--data", small, script=tmp_path / "train_on_MNIST.py")
    assert result.returncode == 1 and "Traceback" in result.stderr and "model.py" in result.stderr


def wait_for(process, text):
    """What the process has printed until it has printed text."""
    output = ""
    while text not in output and process.poll() is None:
        output += os.read(process.stdout.fileno(), 1000).decode()
    assert text in output
    return output


ON_POSIX = pytest.mark.skipif(os.name == "nt", reason="Windows has neither SIGINT for a process nor pseudo-terminals")


@ON_POSIX
@pytest.mark.parametrize("epoch", [1, 2])
def test_an_interrupted_run_ends_with_130_and_loses_one_epoch_at_most(small, tmp_path, epoch):
    """In the first epoch, the file that was there stays as it was."""
    file = tmp_path / "weights.npz"
    file.write_bytes(b"good weights")
    command = [sys.executable, "-u", ROOT / "train_on_MNIST.py", "--epochs", "100000", "--save", file]
    command += ["--data", small] if epoch == 2 else []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        wait_for(process, "epoch      2/" if epoch == 2 else "seed")
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and b"Traceback" not in errors
    assert [f.name for f in tmp_path.iterdir()] == ["weights.npz"]
    if epoch == 1:
        assert file.read_bytes() == b"good weights"
    else:
        CNN().load(file)


@ON_POSIX
@pytest.mark.parametrize("columns", [40, 80, 130, 200])
def test_a_terminal_shows_a_live_line_and_the_mistakes(small, columns):
    import pty
    import struct
    import termios
    from fcntl import ioctl

    terminal, end = pty.openpty()
    ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")} | {"PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, ROOT / "train_on_MNIST.py", "--data", small, "--epochs", "12"]
    with subprocess.Popen(command, stdout=end, stdin=end, env=environment) as process:
        os.close(end)
        output = b""
        while chunk := read(terminal):
            output += chunk
    os.close(terminal)
    text = output.decode()
    assert process.returncode == 0
    live = re.findall(r"\r(epoch +\d+/12 +\d+% loss \d\.\d+ \d+ s left) *\r", text)
    assert 0 < len(live) == text.count("left") and all(len(line) < columns for line in live)
    pictures = text[text.index("label") :].replace("\r", "").split("\n")
    side_by_side = {40: [1] * 6, 80: [2, 2, 2], 130: [4, 2], 200: [6]}[columns]
    assert [line.count("predicted") for line in pictures if "predicted" in line] == side_by_side
    assert max(map(len, pictures)) <= columns


def read(terminal):
    try:
        return os.read(terminal, 10000)
    except OSError:  # how Linux says that the other end was closed
        return b""
