"""The training script reads the data, trains, prints what fits the terminal, and never loses what it was to save."""

import errno
import gc
import gzip
import hashlib
import io
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest

import train_on_MNIST as script
from engine import Optimizer, Value, cross_entropy
from model import CNN
from train_on_MNIST import batches, evaluate, learning_rate, load_mnist, main, train, train_step

ROOT = Path(__file__).resolve().parent.parent
FILES = {
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}
IMAGES, LABELS, TEST_IMAGES, TEST_LABELS = FILES
CHANGES = ("PYTHONUNBUFFERED", "OPENBLAS_NUM_THREADS", "COLUMNS", "LINES")  # what the script prints, and how
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in CHANGES}


@pytest.fixture(scope="module")
def raw():
    """The decompressed content of the four files."""
    return {name: gzip.decompress((ROOT / "data" / f"{name}.gz").read_bytes()) for name in FILES}


def idx(magic, sizes, content):
    return b"".join(n.to_bytes(4, "big") for n in (magic, *sizes)) + content


def write_first(folder, raw, train_images, test_images):
    """The first images of MNIST and their labels, not compressed."""
    folder.mkdir()
    for images, labels, n in ((IMAGES, LABELS, train_images), (TEST_IMAGES, TEST_LABELS, test_images)):
        (folder / images).write_bytes(idx(0x803, (n, 28, 28), raw[images][16 : 16 + n * 784]))
        (folder / labels).write_bytes(idx(0x801, (n,), raw[labels][8 : 8 + n]))


@pytest.fixture
def small(tmp_path, raw):
    """A folder with 300 training images and 100 test images."""
    write_first(tmp_path / "small", raw, 300, 100)
    return tmp_path / "small"


def run(*arguments, **options):
    command = [sys.executable, str(ROOT / "train_on_MNIST.py"), *map(str, arguments)]
    options = {"env": ENVIRONMENT, **options}
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=60, **options)


# ---- The data set ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_mnist_is_the_canonical_one(name, raw):
    assert hashlib.md5(raw[name]).hexdigest() == FILES[name]


def test_mnist_is_loaded_normalised_with_integer_labels(raw):
    X_train, y_train, X_test, y_test = load_mnist(ROOT / "data")
    assert (X_train.shape, y_train.shape) == ((60000, 1, 28, 28), (60000,))
    assert (X_test.shape, y_test.shape) == ((10000, 1, 28, 28), (10000,))
    assert X_train.dtype == X_test.dtype == np.float32
    assert y_train.dtype.kind == y_test.dtype.kind == "i"
    for X, y, images, labels in ((X_train, y_train, IMAGES, LABELS), (X_test, y_test, TEST_IMAGES, TEST_LABELS)):
        assert bytes(y.astype(np.uint8)) == raw[labels][8:]
        for i in (0, 4321, len(X) - 1):
            pixels = np.array(list(raw[images][16 + 784 * i : 16 + 784 * (i + 1)])).reshape(28, 28)
            np.testing.assert_allclose(X[i, 0], (pixels / 255 - 0.1307) / 0.3081, rtol=1e-6, atol=1e-7)
    assert abs(X_train.mean()) < 1e-3 and abs(X_train.std() - 1) < 1e-3


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


def test_wrong_data_ends_with_a_sentence_and_status_1(small):
    (small / LABELS).write_bytes(b"nonsense")
    result = run("--data", small)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ") and LABELS in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize("folder", ["x" * 300, "x" * 5000, "null\0byte", "file", "nowhere"], ids=lambda name: name[:9])
def test_impossible_data_folder_is_a_sentence(folder, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["--data", str(tmp_path / folder)]) == 1
    assert re.fullmatch(
        r"error: [^\n]+(cannot be read: [^\n]+|is missing, with \.gz and without)\n", capsys.readouterr().err
    )


def test_unreadable_data_is_not_called_missing(small, monkeypatch, capsys):
    def refused(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("gzip.open", refused)
    assert main(["--data", str(small)]) == 1
    assert re.fullmatch(r"error: [^\n]+cannot be read: Permission denied\n", capsys.readouterr().err)


# ---- Training -------------------------------------------------------------------------------------------------------


def marked_images(n):
    """Images with one bright pixel each, in the middle, whose brightness is the image's number from 1 on."""
    X = np.zeros((n, 1, 28, 28), np.float32)
    X[:, 0, 14, 14] = np.arange(1, n + 1)
    return X, np.arange(1, n + 1) * 7 % 10


def test_batches_hold_every_pair_once_in_a_new_order():
    X, y = marked_images(30)
    np.random.seed(0)
    orders = []
    for _ in range(2):
        epoch = list(batches(X, y, 7))
        assert [(len(a), len(b)) for a, b in epoch] == [(7, 7), (7, 7), (7, 7), (7, 7), (2, 2)]
        numbers = np.concatenate([images.max((1, 2, 3)) for images, _ in epoch])
        np.testing.assert_array_equal(np.concatenate([labels for _, labels in epoch]), y[numbers.astype(int) - 1])
        assert sorted(numbers) == list(range(1, 31)) and all(images.dtype == X.dtype for images, _ in epoch)
        orders.append(list(numbers))
    assert orders[0] != orders[1] and sorted(orders[0]) not in orders


def test_a_batch_moves_by_a_pixel_at_most_in_every_direction():
    X, y = marked_images(600)
    np.random.seed(0)
    shifts = []
    for images, _ in batches(X, y, 3):
        _, _, rows, columns = np.nonzero(images)
        assert len(rows) == 3 and len(set(rows)) == len(set(columns)) == 1  # a batch moves as one
        shifts.append((rows[0] - 14, columns[0] - 14))
    assert set(shifts) == {(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)}
    assert X[:, 0, 14, 14].all()  # the originals stay where they are


def test_learning_rate_rises_to_lr_then_falls_to_zero(monkeypatch):
    monkeypatch.setattr(script, "WARMUP", 500)
    rates = [learning_rate(step, 10_500, 0.3) for step in range(10_500)]
    np.testing.assert_allclose(rates[:501], 0.3 * np.arange(1, 502) / 501)
    np.testing.assert_allclose(rates[500:], 0.3 * np.arange(10_000, 0, -1) / 10_000)
    short = [learning_rate(step, 20, 1.8) for step in range(20)]  # a tenth of the steps
    np.testing.assert_allclose(short, [0.6, 1.2, *1.8 * np.arange(18, 0, -1) / 18])


def test_learning_rate_of_a_short_run_falls_linearly_to_zero(small, monkeypatch, capsys):
    rates = []
    monkeypatch.setattr(script.Optimizer, "update", lambda self, lr: rates.append(lr))
    assert main(["--data", str(small), "--epochs", "2", "--batch-size", "100", "--lr", "0.6"]) == 0
    np.testing.assert_allclose(rates, [0.6, 0.5, 0.4, 0.3, 0.2, 0.1])


def test_train_step_follows_the_gradient_and_returns_the_loss():
    rng = np.random.default_rng(0)
    X, y, model = rng.standard_normal((6, 1, 28, 28)), rng.integers(0, 10, 6), CNN()
    loss = cross_entropy(model(X), y)
    loss.backward()
    before = [(p.data.copy(), p.grad.copy()) for p in model.parameters()]  # and old gradients, which must not count
    result = train_step(model, Optimizer(model.parameters()), X, y, 0.125)
    assert type(result) is float and result == loss.data
    for p, (data, grad) in zip(model.parameters(), before):
        np.testing.assert_allclose(p.data, data - 0.125 * grad, rtol=1e-12, atol=1e-15)


def test_train_step_frees_its_graph():
    results = []

    class Watched(CNN):
        def forward(self, x):
            out = super().forward(x)
            results.append(weakref.ref(out))
            return out

    model = Watched()
    gc.disable()
    try:
        train_step(model, Optimizer(model.parameters()), *marked_images(2), 0.1)
        assert results[0]() is None
    finally:
        gc.enable()


def test_training_on_6000_real_images_reaches_94_percent(raw, tmp_path):
    """Two epochs on a tenth of the images."""
    write_first(tmp_path / "tenth", raw, 6000, 10_000)
    X_train, y_train, X_test, y_test = load_mnist(tmp_path / "tenth")
    np.random.seed(0)
    model = CNN()
    assert evaluate(model, X_test, y_test) < 0.3
    accuracy = train(model, X_train, y_train, X_test, y_test, epochs=2, batch_size=32, lr=0.15)
    assert accuracy == evaluate(model, X_test, y_test) >= 0.94


def test_loss_of_an_epoch_is_the_mean_over_its_images(monkeypatch, capsys):
    """The last batch, of one image, counts a quarter of the one before, of four."""
    losses, steps = [], iter([1.0, 3.5, 0.5, 0.75])
    monkeypatch.setattr(script, "train_step", lambda *arguments: next(steps))
    X, y = marked_images(5)
    train(CNN(), X, y, X, y, epochs=2, batch_size=4, losses=losses)
    assert losses == [1.5, 0.55]
    assert re.findall(r"loss (\S+)", capsys.readouterr().out) == ["1.5000", "0.5500"]


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_loss_that_is_not_finite_stops_the_training(loss, monkeypatch):
    monkeypatch.setattr(script, "train_step", lambda *arguments: loss)
    X, y = marked_images(3)
    with pytest.raises(FloatingPointError, match=f"the loss is {loss}: try a smaller learning rate"):
        train(CNN(), X, y, X, y)


class Reader:
    """Sees the digit that is written into the first pixel, as surely as the second pixel says."""

    def __call__(self, x):
        assert not (Value(1.0) * 2).requires_grad
        return Value(np.eye(10)[x[:, 0, 0, 0].astype(int)] * x[:, 0, 0, 1:2])


def written(digits, certainty=1):
    X = np.zeros((len(digits), 1, 28, 28))
    X[:, 0, 0, 0], X[:, 0, 0, 1] = digits, certainty
    return X


def test_evaluate_is_the_share_of_right_answers_without_a_graph():
    X, y = written([1, 2, 3, 4, 0, 0, 0]), np.array([1, 2, 3, 4, 5, 6, 7])
    for batch_size in (1, 3, 7, 100):
        assert evaluate(Reader(), X, y, batch_size) == 4 / 7
        np.testing.assert_array_equal(script.predict(Reader(), X, batch_size), [1, 2, 3, 4, 0, 0, 0])
    assert script.predict(Reader(), X).dtype.kind == "i"
    assert (Value(1.0) * 2).requires_grad


IMAGE_PAIR = np.zeros((2, 1, 28, 28), np.float32)
NO_PAIRS = {
    "no labels": (IMAGE_PAIR, [], ValueError, "one label.*each image"),
    "one label": (IMAGE_PAIR, [1], ValueError, "one label.*each image"),
    "three labels": (IMAGE_PAIR, [1, 2, 3], ValueError, "one label.*each image"),
    "a row of labels": (IMAGE_PAIR, [[1, 2]], ValueError, "one label.*each image"),
    "no images": (IMAGE_PAIR[:0], np.zeros(0, int), ValueError, "one label.*at least one"),
    "label 10": (IMAGE_PAIR, [0, 10], ValueError, "labels must be 0 ... 9, got 0 ... 10"),
    "label -1": (IMAGE_PAIR, [-1, 9], ValueError, "labels must be 0 ... 9, got -1 ... 9"),
    "fractions": (IMAGE_PAIR, [0.5, 1.0], TypeError, "labels must be integers.*float64"),
    "strings": (IMAGE_PAIR, ["1", "2"], TypeError, "labels must be integers"),
    "masked": (IMAGE_PAIR, np.ma.array([1, 2]), TypeError, "labels must be integers, got MaskedArray"),
    "a missing axis": (IMAGE_PAIR[:, 0], [1, 2], ValueError, r"images must be \(n, 1, 28, 28\).*\(2, 28, 28\)"),
    "three colours": (np.zeros((2, 3, 28, 28)), [1, 2], ValueError, r"images must be.*\(2, 3, 28, 28\)"),
    "a number": (1.0, [1], ValueError, "images must be"),
    "complex": (IMAGE_PAIR + 0j, [1, 2], TypeError, "images must be real numbers"),
    "text": ("images", [1, 2], TypeError, "images must be real numbers"),
}


@pytest.mark.parametrize("X, y, error, message", NO_PAIRS.values(), ids=NO_PAIRS)
def test_wrong_images_and_labels_are_refused_before_training(X, y, error, message, monkeypatch):
    monkeypatch.setattr(script, "train_step", lambda *arguments: pytest.fail("a step was made"))
    y = y if isinstance(y, np.ndarray) else np.array(y, None if y else int)
    with pytest.raises(error, match=message):
        evaluate(CNN(), X, y)
    with pytest.raises(error, match=message):
        script.show(CNN(), X, y)
    with pytest.raises(error, match=message):
        train(CNN(), X, y, IMAGE_PAIR, np.array([0, 9]))
    with pytest.raises(error, match=message):
        train(CNN(), IMAGE_PAIR, np.array([0, 9]), X, y)


@pytest.mark.parametrize(
    "option, message",
    [
        ({"epochs": 0}, "at least 1"), ({"batch_size": 0}, "at least 1"), ({"epochs": -1}, "at least 1"),
        ({"lr": -0.1}, "lr must be"), ({"lr": math.inf}, "lr must be"), ({"lr": math.nan}, "lr must be"),
    ],
    ids=str,
)  # fmt: skip
def test_wrong_settings_are_refused_before_training(option, message, monkeypatch):
    monkeypatch.setattr(script, "train_step", lambda *arguments: pytest.fail("a step was made"))
    with pytest.raises(ValueError, match=message):
        train(CNN(), IMAGE_PAIR, np.array([1, 2]), IMAGE_PAIR, np.array([1, 2]), **option)


def test_smallest_settings_are_enough(capsys):
    X, y = marked_images(3)
    np.random.seed(0)
    model = CNN()
    before = model.parameters()[0].data
    train(model, X, y, X, y, epochs=1, batch_size=1, lr=0)
    np.testing.assert_array_equal(model.parameters()[0].data, before)
    train(model, X, y, X, y, epochs=1, batch_size=100)
    assert np.abs(model.parameters()[0].data - before).max() > 0


# ---- What it prints -------------------------------------------------------------------------------------------------


def test_import_has_no_side_effects(tmp_path):
    code = "import random, signal, numpy as np; s = np.random.get_state()[1].tolist();"
    code += "t = signal.getsignal(signal.SIGTERM);"
    code += "import train_on_MNIST, model, engine; assert s == np.random.get_state()[1].tolist();"
    code += "assert t == signal.getsignal(signal.SIGTERM)"
    command = [sys.executable, "-W", "error", "-c", code]
    result = subprocess.run(
        command, capture_output=True, cwd=tmp_path, env={**ENVIRONMENT, "PYTHONPATH": str(ROOT)}, timeout=60
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


@pytest.mark.parametrize("asked, threads", [(None, "1"), ("2", "2")])
def test_script_takes_one_thread_unless_asked_for_more(asked, threads):
    environment = {**ENVIRONMENT, **({"OPENBLAS_NUM_THREADS": asked} if asked else {}), "PYTHONPATH": str(ROOT)}
    code = "import atexit, os, runpy, sys; atexit.register(lambda: print(os.environ['OPENBLAS_NUM_THREADS']));"
    code += (
        f"sys.argv = ['', '--epochs', 'x']; runpy.run_path({str(ROOT / 'train_on_MNIST.py')!r}, run_name='__main__')"
    )
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout.strip()) == (2, threads)


def test_run_prints_data_model_settings_and_epochs(small, tmp_path):
    environment = {**ENVIRONMENT, "COLUMNS": "40"}  # a pipe has no width
    result = run("--data", small, "--epochs", 3, "--seed", 7, cwd=tmp_path, env=environment)
    assert (result.returncode, result.stderr) == (0, "")
    assert f"300 training images and 100 test images from {small}\n" in result.stdout
    assert f"\n{CNN()}\n4,266 parameters, new weights\n" in result.stdout
    settings = f"batch size {script.BATCH_SIZE}, learning rate up to {script.LR:g}, seed 7"
    assert f"epochs 3, {settings}\n\n" in result.stdout
    line = r"^epoch (\d)/3   loss (\d\.\d{4})   test accuracy (\d+\.\d\d) %   \d+\.\d s$"
    lines = re.findall(line, result.stdout, re.MULTILINE)
    assert [epoch for epoch, _, _ in lines] == ["1", "2", "3"]
    assert re.search(rf"\n\ntest accuracy {lines[-1][2]} %, \d+ s of training\n\n", result.stdout)
    assert "\r" not in result.stdout and "\033" not in result.stdout  # a live line is for terminals
    assert list(tmp_path.iterdir()) == [small] and "label" not in result.stdout  # and so are its weights and mistakes


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True

    def lines(self):
        """What is to be seen at the end: what follows a carriage return overwrites what stands before it."""
        screen = []
        for line in self.getvalue().split("\n"):
            shown = ""
            for part in line.split("\r"):
                shown = part + shown[len(part) :]
            screen.append(shown.rstrip())
        return screen


@pytest.fixture
def on_terminal(monkeypatch, tmp_path):
    """A function that makes input and output terminals, 80 columns wide, of a `python train.py` in an empty folder.

    It is called by the test, because pytest sets sys.stdout after the fixtures.
    """

    def sit_down(columns=80):
        monkeypatch.setattr(sys, "stdin", Terminal())
        monkeypatch.setattr(sys, "stdout", Terminal())
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr(sys, "argv", ["train.py"])
        monkeypatch.setattr(sys, "orig_argv", ["python", "train.py"])
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        return sys.stdout

    return sit_down


WIDE_LIVE = r"\repoch +\d+/10 +\d+%   loss \d\.\d{4}   [\d,]+ images/s   \d+ s left *\r"
NARROW_LIVE = r"\repoch +\d+/10 +\d+%  \d\.\d{4}  \d+ s left *\r"


@pytest.mark.parametrize("columns, live", [(40, NARROW_LIVE), (80, WIDE_LIVE), (200, WIDE_LIVE)])
def test_live_line_fits_and_leaves_no_trace(columns, live, small, monkeypatch, on_terminal):
    terminal = on_terminal(columns)
    clock = iter(range(10**6))
    monkeypatch.setattr(script.time, "perf_counter", lambda: float(next(clock)))  # each look at it is a second later
    assert main(["--data", str(small), "--epochs", "10", "--batch-size", "100"]) == 0
    assert len(re.findall(live, terminal.getvalue())) == 30
    assert max(map(len, terminal.getvalue().replace(str(small), "").replace("\n", "\r").split("\r"))) < max(
        columns, 62
    )  # the model's repr
    assert sum(line.startswith("epoch ") and "left" not in line for line in terminal.lines()) == 10
    assert "left" not in "".join(terminal.lines())


def test_live_line_knows_share_loss_speed_and_time_left(monkeypatch, on_terminal):
    terminal = on_terminal()
    now = 100.0
    monkeypatch.setattr(script.time, "perf_counter", lambda: now)
    progress = script.Progress(4, 1000)
    progress.start_epoch()
    now += 10.0
    progress.add(2.0, 250)
    now += 0.05
    progress.add(2.0, 150)  # too early for another line
    now += 9.95
    progress.add(1.0, 100)
    progress.add(1.0, 500)
    now += 10.0
    progress.end_epoch(0.5)
    progress.start_epoch()
    now += 10.0
    progress.add(1.0, 1000)
    lives = [line.strip() for line in re.findall(r"\r([^\r\n]*\S)", terminal.getvalue())]
    assert lives[0] == "epoch 1/4    25%   loss 2.0000   25 images/s   150 s left"
    assert lives[1] == "epoch 1/4    50%   loss 1.8000   25 images/s   140 s left"
    assert lives[2] == "epoch 1/4   loss 1.4000   test accuracy 50.00 %   30.0 s"
    assert lives[3] == "epoch 2/4   100%   loss 1.0000   100 images/s   40 s left"
    assert len(lives) == 4


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_real_terminal_shows_and_keeps_what_was_learned(columns, small, tmp_path):
    """On a pseudo-terminal; then the command that it prints runs, without training."""
    fcntl, pty, termios = (pytest.importorskip(name) for name in ("fcntl", "pty", "termios"))
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, b"".join(n.to_bytes(2, sys.byteorder) for n in (50, columns, 0, 0)))
    (tmp_path / "here").mkdir()
    options = {"cwd": tmp_path / "here", "env": {**ENVIRONMENT, "PYTHONIOENCODING": "utf-8"}}
    command = [sys.executable, str(ROOT / "train_on_MNIST.py"), "--data", str(small), "--batch-size", "16"]
    output = b""
    with subprocess.Popen([*command, "--epochs", "8", "--lr", "0.1"], stdin=slave, stdout=slave, **options) as process:
        os.close(slave)
        while True:
            try:
                part = os.read(master, 1 << 16)
            except OSError:  # Linux's way to say that the other end is closed
                break
            if not part:
                break
            output += part
    os.close(master)
    text = output.decode().replace("\r\n", "\n")
    assert process.returncode == 0
    before, after = text.split("\nNext:\n")
    for line in before.replace(str(CNN()), "").replace(str(small), "").split("\n"):
        assert len(line.split("\r")[-1]) <= columns
    shown = min({40: 2, 80: 4, 200: 12}[columns], int(re.search(r"of\s+the\s+(\d+)\s+images", text)[1]))
    assert len(re.findall(r"label \d, seen as \d \(\d+\.\d %\)", before)) == shown
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["last.npz"]
    again = subprocess.run(
        after.split("\n    shows")[0], shell=True, capture_output=True, text=True, timeout=60, **options
    )
    assert (again.returncode, again.stderr) == (0, "")
    assert re.search(r"\ntest accuracy \S+ %", text)[0] in again.stdout and "epoch" not in again.stdout.split("Next")[0]


def test_lines_break_between_words_and_keep_their_indentation(on_terminal):
    terminal = on_terminal(40)
    long = "/a-folder/with-a-name-that-is-longer-than/a-terminal"
    script._say(f"\nweights that were saved, all of them, to {long}\n  weights that are ready-made and of this width!")
    assert terminal.getvalue() == (
        f"\nweights that were saved, all of them, to\n{long}\n  weights that are ready-made and of\n  this width!\n"
    )


def test_longest_form_that_fits_is_printed(on_terminal):
    on_terminal(40)
    forms = ("x" * 41, "x" * 40, "x" * 39)
    assert script._fitting(*forms) == "x" * 40 and script._fitting("x" * 50, "x" * 45) == "x" * 45


def test_same_seed_prints_the_same_losses(small, capsys):
    losses = []
    for seed in ("1", "1", "2"):
        assert main(["--data", str(small), "--epochs", "2", "--seed", seed]) == 0
        losses.append(re.findall(r"loss (\S+)   test accuracy (\S+)", capsys.readouterr().out))
    assert losses[0] == losses[1] != losses[2]
    assert len(losses[0]) == 2


def test_show_puts_the_surest_mistake_first(capsys):
    X = written([5, 5, 6, 7, 1, 1], [1, 3, 2, 9, 9, 3])
    script.show(Reader(), X, np.array([4, 3, 2, 1, 1, 8]))
    output = capsys.readouterr().out
    share = [f"{100 * math.exp(c) / (math.exp(c) + 9):.1f} %" for c in (9, 3, 3, 2)]
    captions = re.findall(r"label (\d), seen as (\d) \((\d+\.\d %)\)", output)
    assert captions == [("1", "7", share[0]), ("3", "5", share[1]), ("8", "1", share[2]), ("2", "6", share[3])]
    assert "\n4 of the 5 images that it gets wrong, the surest first:\n" in output
    assert not re.search(r" $", output, re.MULTILINE)


def test_show_of_a_network_without_mistakes_shows_the_matrix(capsys):
    script.show(Reader(), written([1, 2]), np.array([1, 2]))
    assert re.search(
        r"0 of the 0 images that it gets wrong.*\n {4}2     \.     \.     1", capsys.readouterr().out, re.S
    )


@pytest.mark.parametrize("columns, blocks", [(40, 2), (64, 2), (65, 1), (200, 1)])
def test_confusion_matrix_counts_labels_in_rows(columns, blocks, monkeypatch, on_terminal):
    terminal = on_terminal(columns)
    seen, labels = np.array([9, 9, 9, 4, 0, 5]), np.array([4, 4, 9, 4, 7, 6])
    script.show(Reader(), written(seen), labels)
    matrix = terminal.getvalue().split("saw:\n")[1] if columns > 40 else terminal.getvalue().split("network saw:\n")[1]
    tables = [[line.split() for line in table.split("\n")] for table in matrix.strip("\n").split("\n\n")]
    assert len(tables) == blocks and max(map(len, matrix.split("\n"))) <= columns
    header = [digit for table in tables for digit in table[0]]
    rows = [sum((table[1 + i][1:] for table in tables), []) for i in range(10)]
    assert header == list("0123456789") and all(table[1 + i][0] == str(i) for table in tables for i in range(10))
    counts = np.array([[0 if count == "." else int(count) for count in row] for row in rows])
    expected = np.zeros((10, 10), int)
    np.add.at(expected, (labels, seen), 1)
    np.testing.assert_array_equal(counts, expected)


def test_show_option_counts_all_mistakes_on_a_pipe(small, capsys):
    assert main(["--data", str(small), "--epochs", "2", "--show"]) == 0
    output = capsys.readouterr().out
    shown, wrong = map(int, re.search(r"(\d+) of the (\d+) images that it gets wrong", output).groups())
    pairs = re.findall(r"label (\d), seen as (\d)", output)
    assert len(pairs) == shown == min(wrong, 4) and all(label != seen for label, seen in pairs)
    rows = re.findall(r"^ {4}\d((?: +[\d.]+){10})$", output, re.MULTILINE)
    matrix = np.array([[int(c.replace(".", "0")) for c in row.split()] for row in rows])
    y = load_mnist(small)[3]
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
    lines = script.picture(image)
    assert (lines[0][0], lines[0][1], lines[0][2], lines[1][2]) == ("'", ".", " ", "#")


def test_picture_fills_what_is_brighter_than_three_tenths():
    image = np.zeros((28, 28))
    image[2:26:2, 2:26], image[3:26:2, 2:26] = (76 / 255 - 0.1307) / 0.3081, (77 / 255 - 0.1307) / 0.3081
    assert script.picture(image) == ["▄" * 24] * 12


LOOK = "  python train.py --epochs 0 --load {} --data {}{}\n    shows its mistakes, without training\n"
SHOW = "  --show draws images that it gets wrong\n"
SAVE = "  --save weights.npz keeps what it learns\n"
NEXTS = {  # on a terminal? with which options? then what comes next
    "terminal": (True, [], LOOK.format("last.npz", "{data}", "")),
    "terminal, --save": (True, ["--save", "a b.npz"], LOOK.format("'a b.npz'", "{data}", "")),
    "terminal, loaded": (True, ["--epochs", "0", "--load", "old.npz"], ""),
    "terminal, trained further": (True, ["--load", "old.npz"], LOOK.format("last.npz", "{data}", "")),
    "pipe": (False, [], SHOW + SAVE),
    "pipe, --show": (False, ["--show"], SAVE),
    "pipe, --save": (False, ["--save", "w.npz"], LOOK.format("w.npz", "{data}", " --show")),
    "pipe, --save --show": (False, ["--save", "w.npz", "--show"], LOOK.format("w.npz", "{data}", " --show")),
    "pipe, loaded": (False, ["--epochs", "0", "--load", "old.npz"], LOOK.format("old.npz", "{data}", " --show")),
    "pipe, loaded, --show": (False, ["--epochs", "0", "--load", "old.npz", "--show"], ""),
    "pipe, trained further": (False, ["--load", "old.npz"], SHOW + SAVE),
}


def learn(monkeypatch, accuracy=0.9, losses=(2.0, 1.0)):
    """Instead of training."""

    def trained(*arguments):
        arguments[-1].extend(losses)
        return accuracy

    monkeypatch.setattr(script, "train", trained)


@pytest.mark.parametrize("is_terminal, options, expected", NEXTS.values(), ids=NEXTS)
def test_next_names_what_this_run_has_not_done(is_terminal, options, expected, small, monkeypatch, on_terminal):
    terminal = on_terminal(200)
    if not is_terminal:
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        monkeypatch.setattr(script, "_columns", lambda: 200)  # the name of the folder of the data is long
    CNN().save("old.npz")
    learn(monkeypatch)
    assert main(["--data", str(small), *options]) == 0
    model = "  model.py is the network: change it and run this again\n"
    assert terminal.getvalue().split("\nNext:\n")[1] == expected.replace("{data}", str(small)) + model
    assert Path("last.npz").exists() == ("last.npz" in expected)
    assert ("seen as" in terminal.getvalue()) == (is_terminal or "--show" in options)


@pytest.mark.parametrize("stream", ["stdin", "stdout"])
def test_weights_are_left_only_where_somebody_sits(stream, small, monkeypatch, on_terminal):
    on_terminal()
    for nobody in (None, io.StringIO()):
        monkeypatch.setattr(sys, stream, nobody)
        learn(monkeypatch)
        assert main(["--data", str(small)]) == 0
        assert list(Path().iterdir()) == []


def test_next_leaves_out_the_folder_of_the_default_data(small, monkeypatch, on_terminal):
    terminal = on_terminal()
    monkeypatch.setattr(script, "DATA", small)
    learn(monkeypatch)
    assert main(["--batch-size", "7"]) == 0
    assert "\n100 test images from MNIST\n".strip() in terminal.getvalue()
    assert "\n  python train.py --epochs 0 --load last.npz\n" in terminal.getvalue()


def test_run_that_cannot_leave_its_weights_says_so(small, monkeypatch, on_terminal):
    terminal = on_terminal()
    Path("last.npz").mkdir()
    learn(monkeypatch)
    assert main(["--data", str(small)]) == 0
    assert " s of training cannot save weights to last.npz: " in " ".join(terminal.getvalue().split())
    assert f"\nNext:\n{SAVE}  model.py" in terminal.getvalue()


@pytest.mark.parametrize(
    "accuracy, losses, why", [(0.15, (2.0, 1.0), "guessing"), (0.9, (0.5, 0.75), "0.5000 to 0.7500")]
)
def test_run_that_learned_nothing_says_so(accuracy, losses, why, small, monkeypatch, on_terminal):
    terminal = on_terminal()
    Path("last.npz").write_bytes(b"better ones")
    learn(monkeypatch, accuracy, losses)
    assert main(["--data", str(small)]) == 0
    assert re.search(rf"It learned nothing:[^:]*{why}", terminal.getvalue())
    assert "Next:" not in terminal.getvalue() and Path("last.npz").read_bytes() == b"better ones"


def test_learning_nothing_is_no_better_than_guessing_or_worse():
    even, half = np.arange(100) % 10, np.array([0] * 50 + list(range(10)) * 5)  # 10 % and 55 % are the likeliest label
    assert script._failure(0.18, [1.0], even) and not script._failure(0.20, [1.0], even)
    assert script._failure(0.59, [1.0], half) and not script._failure(0.60, [1.0], half)
    assert script._failure(0.9, [1.0, 0.5, 1.01], even) and not script._failure(0.9, [1.0, 2.0, 1.0], even)


# ---- Weights --------------------------------------------------------------------------------------------------------


def test_saved_weights_are_tested_and_trained_further(small, tmp_path, capsys):
    path = str(tmp_path / "weights.npz")
    accuracy = []
    for options in (["--epochs", "4", "--save", path], ["--epochs", "0", "--load", path]):
        assert main(["--data", str(small), *options]) == 0
        output = capsys.readouterr().out
        assert (f"weights from {path}" in output) == ("--load" in options)
        assert (f"\nweights saved to {path}\n" in output) == ("--save" in options)
        assert ("\nepochs 4, " in output) == ("s of training" in output) == ("--save" in options)
        accuracy.append(re.findall(r"\ntest accuracy (\S+) %", output)[-1])
    assert accuracy[0] == accuracy[1]
    assert main(["--data", str(small), "--epochs", "1", "--load", path]) == 0
    further = float(re.findall(r"loss (\S+) ", capsys.readouterr().out)[0])
    assert main(["--data", str(small), "--epochs", "1"]) == 0
    assert further < float(re.findall(r"loss (\S+) ", capsys.readouterr().out)[0])


def stop(monkeypatch, step, reason):
    """Ctrl-C, or whatever ends a run, in the given step of training."""
    update, steps = script.Optimizer.update, []

    def stopped(self, lr):
        steps.append(lr)
        if len(steps) == step:
            raise reason
        update(self, lr)

    monkeypatch.setattr(script.Optimizer, "update", stopped)


@pytest.mark.parametrize("step", [1, 3, 5])
@pytest.mark.parametrize(
    "reason, status, word", [(KeyboardInterrupt, 130, "interrupted"), (script.Terminated, 143, "terminated")]
)
def test_stop_prints_the_result_and_saves_the_weights(reason, status, word, step, small, tmp_path, monkeypatch, capsys):
    path = tmp_path / "weights.npz"
    stop(monkeypatch, step, reason)
    assert main(["--data", str(small), "--epochs", "2", "--batch-size", "100", "--save", str(path)]) == status
    output = capsys.readouterr()
    assert output.err == f"{word}\n" and output.out.endswith(f"\nweights saved to {path}\n")
    assert ("interrupted after" in output.out) == (step > 1)
    if step > 1:
        epoch = {
            3: r"interrupted after 200 of 300 images\nepoch 1/2",
            5: r"interrupted after 100 of 300 images\nepoch 2/2",
        }
        accuracy = 100 * evaluate(CNN().load(path), *load_mnist(small)[2:])
        assert re.search(rf"{epoch[step]}   loss \d\.\d{{4}}   test accuracy {accuracy:.2f} %", output.out)
    CNN().load(path)


ENDS = {
    "disk full": (OSError(errno.ENOSPC, "No space left"), "error: the output cannot be written: No space left\n"),
    "closed pipe": (BrokenPipeError(errno.EPIPE, "Broken pipe"), ""),
    "memory": (MemoryError(), "error: out of memory\n"),
    "a mistake": (NameError("name 'y'"), r"error: NameError in .*test_training\.py, line \d+: name 'y'\n"),
    "a sentence": (ValueError("wrong"), "error: wrong\n"),
    "a request": (SystemExit(3), ""),
}


@pytest.mark.parametrize("reason, message", ENDS.values(), ids=ENDS)
def test_whatever_ends_a_training_the_weights_are_saved(reason, message, small, tmp_path, monkeypatch, capsys):
    path = tmp_path / "weights.npz"
    stop(monkeypatch, 3, reason)
    arguments = ["--data", str(small), "--save", str(path)]
    if isinstance(reason, SystemExit):
        with pytest.raises(SystemExit):
            main(arguments)
    else:
        assert main(arguments) == 1
    assert re.fullmatch(message, capsys.readouterr().err)
    CNN().load(path)


@pytest.mark.parametrize("reason", [KeyboardInterrupt, AttributeError("conv9"), ValueError("wrong")])
def test_stop_before_anything_is_learned_keeps_the_file_that_is_there(reason, small, tmp_path, monkeypatch, capsys):
    path = tmp_path / "weights.npz"
    CNN().save(path)
    before = path.read_bytes()
    stop(monkeypatch, 1, reason)
    assert main(["--data", str(small), "--save", str(path)]) != 0
    assert path.read_bytes() == before and "saved" not in capsys.readouterr().out


@pytest.mark.parametrize("exists", [False, True])
def test_weights_that_are_no_better_than_guessing_replace_no_file(exists, small, tmp_path, monkeypatch, capsys):
    path = tmp_path / "weights.npz"
    if exists:
        path.write_bytes(b"better ones")
    learn(monkeypatch, 0.15)
    assert main(["--data", str(small), "--save", str(path)]) == 0
    output = capsys.readouterr().out
    assert "It learned nothing" in output
    if exists:
        assert path.read_bytes() == b"better ones" and f"{path} is kept as it was" in " ".join(output.split())
    else:
        CNN().load(path)


def test_weights_of_a_loss_that_rose_are_saved_as_asked(small, tmp_path, monkeypatch, capsys):
    path = tmp_path / "weights.npz"
    path.write_bytes(b"older ones")
    learn(monkeypatch, 0.9, (0.5, 0.75))
    assert main(["--data", str(small), "--save", str(path)]) == 0
    assert "It learned nothing: the loss rose" in " ".join(capsys.readouterr().out.split())
    CNN().load(path)


def test_a_parameter_that_is_a_number_is_counted(small, monkeypatch, capsys):
    class Scaled(CNN):
        def __init__(self):
            super().__init__()
            self.scale = Value(1.0)

    monkeypatch.setattr(script, "CNN", Scaled)
    learn(monkeypatch)
    assert main(["--data", str(small)]) == 0
    assert "4,267 parameters, new weights" in capsys.readouterr().out


MISTAKES = {  # in place of the size in model.py's reshape: what the script says, and in which file and line
    "8 * 7 * 8": ("ValueError", "model.py", r"cannot reshape \(\d+, 8, 7, 7\) to \(\d+, 448\)"),
    "'392'": ("TypeError", "model.py", "a size in reshape must be an integer, got '392'"),
    "seven": ("NameError", "model.py", "name 'seven' is not defined"),
    "open('seven')": ("FileNotFoundError", "model.py", r".*No such file or directory: 'seven'"),
    "x": ("TypeError", "model.py", r"a size in reshape must be an integer, got Value\(.* \[\.\.\.\]"),
    "helper.size(x)": ("ZeroDivisionError", "helper.py", ".* by zero"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_changed_model_is_told_in_one_line_with_its_place(mistake, small, tmp_path):
    error, file, words = MISTAKES[mistake]
    for name in ("engine.py", "train_on_MNIST.py"):
        shutil.copy(ROOT / name, tmp_path)
    model = (ROOT / "model.py").read_text(encoding="utf-8").replace("[0], 8 * 7 * 7", f"[0], {mistake}")
    model = model.replace("from engine", "import helper\nfrom engine")
    (tmp_path / "model.py").write_text(model, encoding="utf-8")
    (tmp_path / "helper.py").write_text("def size(x):\n    return 1 // 0  # helper.size(x)\n", encoding="utf-8")
    command = [sys.executable, str(tmp_path / "train_on_MNIST.py"), "--data", str(small)]
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, encoding="utf-8", timeout=60)
    told = re.fullmatch(rf"error: {error} in (.*{re.escape(file)}), line (\d+): {words}\n", result.stderr)
    assert result.returncode == 1 and told, result.stderr
    lines = Path(told[1]).read_text(encoding="utf-8").splitlines()
    assert mistake in lines[int(told[2]) - 1]


def test_an_error_without_words_is_told_with_its_place(small, monkeypatch, capsys):
    stop(monkeypatch, 3, AssertionError())
    assert main(["--data", str(small)]) == 1
    assert re.fullmatch(r"error: AssertionError in .*test_training\.py, line \d+\n", capsys.readouterr().err)


@pytest.mark.skipif(sys.platform != "linux", reason="names that are no text are for Linux")
def test_name_that_cannot_be_printed_does_not_hide_the_stop(small, tmp_path, monkeypatch, capsys):
    stop(monkeypatch, 3, KeyboardInterrupt)
    assert main(["--data", str(small), "--save", str(tmp_path / "w\udcff.npz")]) == 130
    assert capsys.readouterr().err == "interrupted\n" and (tmp_path / "w\udcff.npz").exists()


def test_stop_without_save_writes_nothing(small, monkeypatch, on_terminal):
    terminal = on_terminal()
    stop(monkeypatch, 3, KeyboardInterrupt)
    assert main(["--data", str(small)]) == 130
    assert list(Path().iterdir()) == [] and "saved" not in terminal.getvalue()


@pytest.mark.parametrize("reason", [KeyboardInterrupt, MemoryError, FloatingPointError])
def test_stop_clears_the_live_line(reason, small, monkeypatch, on_terminal):
    terminal = on_terminal()
    clock = iter(range(10**6))
    monkeypatch.setattr(script.time, "perf_counter", lambda: float(next(clock)))
    stop(monkeypatch, 3, reason)
    main(["--data", str(small), "--save", "w.npz"])
    assert "left" in terminal.getvalue() and "left" not in "".join(terminal.lines())
    assert terminal.lines()[-2:] == ["" if reason is FloatingPointError else "weights saved to w.npz", ""]


class Full(io.StringIO):
    """A log on a disk that is full from a line on."""

    def __init__(self, line):
        super().__init__()
        self.line, self.full = line, False

    def write(self, text):
        self.full |= text.startswith(self.line)
        return super().write(text)

    def flush(self):
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")


def test_full_disk_of_the_log_does_not_lose_the_weights(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", Full("epoch 1"))
    assert main(["--data", str(small), "--epochs", "1", "--save", str(tmp_path / "w.npz")]) == 1
    assert capsys.readouterr().err == "error: the output cannot be written: No space left on device\n"
    CNN().load(tmp_path / "w.npz")


def test_full_disk_of_the_log_does_not_hide_the_reason(small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", Full("weights saved"))
    stop(monkeypatch, 3, MemoryError())
    assert main(["--data", str(small), "--save", str(tmp_path / "w.npz")]) == 1
    assert capsys.readouterr().err == "error: out of memory\n"
    CNN().load(tmp_path / "w.npz")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux only")
def test_output_to_a_full_device_is_one_line_and_status_1(small):
    command = [sys.executable, str(ROOT / "train_on_MNIST.py"), "--data", str(small), "--epochs", "1"]
    with open("/dev/full", "w") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, env=ENVIRONMENT)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert result.stderr.startswith("error: the output cannot be written: ")


@pytest.mark.skipif(os.name != "posix", reason="a POSIX shell closes the output")
def test_closed_output_is_no_error(small, tmp_path):
    command = [sys.executable, str(ROOT / "train_on_MNIST.py"), "--data", str(small), "--epochs", "1", "--show"]
    command += ["--save", str(tmp_path / "w.npz")]
    result = subprocess.run(
        ["sh", "-c", 'exec "$@" <&- >&-', "sh", *command], capture_output=True, timeout=60, env=ENVIRONMENT
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")
    CNN().load(tmp_path / "w.npz")


def test_reader_that_goes_away_gets_no_traceback(small, tmp_path):
    command = [sys.executable, str(ROOT / "train_on_MNIST.py"), "--data", str(small), "--epochs", "3"]
    command += ["--save", str(tmp_path / "w.npz")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGTERM")
@pytest.mark.parametrize("number, status, word", [("SIGTERM", 143, "terminated"), ("SIGINT", 130, "interrupted")])
def test_signal_ends_a_run_with_its_status_and_the_weights(number, status, word, small, tmp_path):
    # Where the tests run in the background of a shell, SIGINT is ignored, and so it would be in the script.
    code = "import runpy, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); del sys.argv[0];"
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", code, str(ROOT / "train_on_MNIST.py"), "--data", str(small), "--epochs", "1000"]
    command += ["--save", str(tmp_path / "w.npz")]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT, "env": ENVIRONMENT}
    with subprocess.Popen(command, **options) as process:
        while not process.stdout.readline().startswith("epoch    1"):
            assert process.poll() is None
        process.send_signal(getattr(signal, number))
        output, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (status, f"{word}\n")
    assert output.endswith(f"weights saved to {tmp_path / 'w.npz'}\n")
    CNN().load(tmp_path / "w.npz")


def test_training_that_diverges_says_so_and_saves_nothing(small, tmp_path):
    path = tmp_path / "weights.npz"
    path.write_bytes(b"better ones")
    result = run("--data", small, "--lr", 1e30, "--save", path)
    assert result.returncode == 1 and path.read_bytes() == b"better ones"
    assert re.fullmatch(r"error: the loss is (inf|nan): try a smaller learning rate.*\n", result.stderr)


UNWRITABLE = ["nowhere/w.npz", "folder", "x" * 300, "null\0byte", "file/w.npz", "x/" * 3000 + "w"]


@pytest.mark.parametrize("name", UNWRITABLE, ids=lambda name: name[:9])
def test_place_that_cannot_be_written_is_found_at_once(name, small, tmp_path, capsys):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    before = sorted(tmp_path.iterdir())
    path = tmp_path / name
    assert main(["--data", str(small), "--save", str(path)]) == 1
    output = capsys.readouterr()
    assert output.out == "" and output.err.startswith(f"error: cannot save weights to {path}: ")
    assert output.err.count("\n") == 1 and sorted(tmp_path.iterdir()) == before


@pytest.mark.skipif(os.name != "posix", reason="devices and permissions of POSIX")
def test_devices_and_forbidden_folders_are_found_at_once(small, tmp_path, capsys):
    assert main(["--data", str(small), "--save", os.devnull]) == 1
    assert capsys.readouterr().err == f"error: cannot save weights to {os.devnull}: it is not a regular file\n"
    (tmp_path / "forbidden").mkdir()
    (tmp_path / "forbidden" / "old.npz").touch()
    (tmp_path / "forbidden").chmod(0o555)
    if not os.access(tmp_path / "forbidden", os.W_OK):  # root may write everywhere
        for name in ("old.npz", "new.npz"):
            assert main(["--data", str(small), "--save", str(tmp_path / "forbidden" / name)]) == 1
            output = capsys.readouterr()
            assert output.out == "" and output.err.endswith(": Permission denied\n")


def test_looking_whether_a_place_can_be_written_changes_nothing(tmp_path):
    (tmp_path / "old.npz").write_bytes(b"weights")
    script._check_writable(tmp_path / "old.npz")
    script._check_writable(tmp_path / "new.npz")
    assert (tmp_path / "old.npz").read_bytes() == b"weights"
    assert [path.name for path in tmp_path.iterdir()] == ["old.npz"]


@pytest.mark.parametrize("name", ["w.npz", "nowhere", "x" * 300, "null\0byte", ""], ids=lambda name: name[:9])
def test_load_of_a_wrong_file_is_a_sentence_and_status_1(name, small, tmp_path, capsys):
    path = tmp_path / name
    (tmp_path / "w.npz").write_bytes(b"nonsense")
    assert main(["--data", str(small), "--load", str(path)]) == 1
    output = capsys.readouterr()
    assert output.out == "" and output.err.startswith(f"error: cannot load weights from {path}: ")
    assert output.err.count("\n") == 1


# ---- Options --------------------------------------------------------------------------------------------------------

EPOCHS_WORDS, SIZE_WORDS = (
    "--epochs must be a whole number, 0 or more",
    "--batch-size must be a whole number, 1 or more",
)
LR_WORDS, SEED_WORDS = "--lr must be a number above 0", "--seed must be a whole number, 0 to 4294967295"


@pytest.mark.parametrize(
    "options, words",
    [
        (["--epochs", "-1"], EPOCHS_WORDS), (["--epochs", "1.5"], EPOCHS_WORDS), (["--epochs", "x"], EPOCHS_WORDS),
        (["--epochs", "0"], "--epochs 0 needs --load FILE"),
        (["--batch-size", "0"], SIZE_WORDS), (["--batch-size", "x"], SIZE_WORDS), (["--batch-size", ""], SIZE_WORDS),
        (["--lr", "0"], LR_WORDS), (["--lr", "-1"], LR_WORDS), (["--lr", "nan"], LR_WORDS), (["--lr", "inf"], LR_WORDS),
        (["--lr", "high"], LR_WORDS), (["--seed", "-1"], SEED_WORDS), (["--seed", "4294967296"], SEED_WORDS),
        (["--nonsense"], "--nonsense"), (["weights.npz"], "weights.npz"),
    ],
    ids=str,
)  # fmt: skip
def test_wrong_option_gets_plain_words_and_status_2(options, words, capsys):
    with pytest.raises(SystemExit) as exit:
        main(options)
    assert exit.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("usage: ") and error.endswith(f"{words}\n") and options[0] in error


def test_smallest_and_largest_options_are_taken():
    args = script._parse(["--epochs", "1", "--batch-size", "1", "--lr", "1e-9", "--seed", "4294967295"])
    assert (args.epochs, args.batch_size, args.lr, args.seed) == (1, 1, 1e-9, 2**32 - 1)
    args = script._parse(["--epochs", "0", "--load", "w.npz", "--seed", "0"])
    assert (args.epochs, args.seed, args.load) == (0, 0, Path("w.npz"))


def test_default_options_are_the_constants_and_mnist():
    args = script._parse([])
    assert (args.epochs, args.batch_size, args.lr) == (script.EPOCHS, script.BATCH_SIZE, script.LR)
    assert (args.seed, args.data, args.save, args.load, args.show) == (0, ROOT / "data", None, None, False)


def test_help_names_every_option_with_examples(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as exit:
        main(["--help"])
    text = capsys.readouterr().out
    assert exit.value.code == 0 and max(map(len, text.split("\n"))) <= 80
    for option in ("epochs", "batch-size", "lr", "seed", "data", "save", "load", "show"):
        assert f"--{option}" in text
    examples = re.findall(r"^ +python train_on_MNIST\.py.*$", script.__doc__, re.MULTILINE)
    assert len(examples) == 4 and all(f"\n{example}\n" in text for example in examples)
    for example in examples:
        script._parse(example.split("#")[0].split()[2:])
