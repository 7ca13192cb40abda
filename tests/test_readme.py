"""The README is true: its examples print what their comments say, its quotations are the code, its picture the run."""

import ast
import contextlib
import inspect
import io
import re
import shutil
import textwrap
from pathlib import Path

import numpy as np
import pytest

import engine
import train_on_MNIST as script
from model import CNN

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
QUOTATIONS = re.findall(r"^```py\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def title(example):
    return next(line for line in example.splitlines() if "import" not in line and line.strip())[:40]


@pytest.mark.parametrize("example", EXAMPLES, ids=title)
def test_example_prints_what_its_comments_say(example, tmp_path, monkeypatch):
    if "load_mnist" in example:
        shutil.copytree(ROOT / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    np.random.seed(0)
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(example, "README.md", "exec"), {"__name__": "example"})
    assert output.getvalue().splitlines() == re.findall(r"# -> (.*)$", example, re.MULTILINE)


def test_there_are_examples_that_print():
    assert sum("# -> " in example for example in EXAMPLES) >= 4


def without_docstrings(source):
    tree = ast.parse(textwrap.dedent(source))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is not None:
            del node.body[0]
    return ast.unparse(tree)


@pytest.mark.parametrize("quotation", QUOTATIONS, ids=title)
def test_quotation_is_what_stands_in_engine_py(quotation):
    """The code of the whole function, and each of its comments; only the docstring may be left out."""
    name = re.search(r"def (\w+)", quotation)[1]
    function = inspect.getsource(getattr(engine.Value, name))
    assert without_docstrings(quotation) == without_docstrings(function)
    assert set(re.findall(r"#.*", quotation)) == set(re.findall(r"#.*", function))


def test_the_engine_is_quoted():
    assert [re.search(r"def (\w+)", q)[1] for q in QUOTATIONS] == ["__mul__", "backward_all", "add_grad"]


def test_picture_shows_the_accuracies_of_the_transcript():
    accuracies = [float(a) for a in re.findall(r"^epoch.*test accuracy (\S+) %", README, re.MULTILINE)]
    svg = (ROOT / ".github" / "mnist.svg").read_text(encoding="utf-8")
    heights = [float(y) for y in re.findall(r'<circle class="dot" cx="[\d.]+" cy="([\d.]+)"', svg)]
    assert len(accuracies) == len(heights) > 5
    slope, offset = np.polyfit(accuracies, heights, 1)
    assert slope < 0
    np.testing.assert_allclose(heights, slope * np.array(accuracies) + offset, atol=0.1)
    assert f">{accuracies[-1]:.2f} %</text>" in svg
    assert f"{accuracies[-1]:.1f} % on MNIST" in README


def test_transcript_is_of_this_script_and_this_model():
    assert str(CNN()) in README
    settings = f"batch size {script.BATCH_SIZE}, learning rate up to {script.LR:g}, seed {script.SEED}"
    assert f"epochs {script.EPOCHS}, {settings}" in README
    assert len(re.findall(rf"^epoch +\d+/{script.EPOCHS} ", README, re.MULTILINE)) == script.EPOCHS
    seconds = re.search(r", (\d+) s of training", README)[1]
    assert f"% on MNIST in {seconds} s" in README


def test_files_that_the_text_names_exist():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert len(links) >= 3
    for path in [*links, *re.findall(r'src="([^"]+)"', README)]:
        assert (ROOT / path).exists(), path
