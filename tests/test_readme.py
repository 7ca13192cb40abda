"""Every Python example in the README runs as it stands there, and prints what its comments say."""

import ast
import contextlib
import html
import importlib.util
import io
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def title(example):
    return next(line for line in example.splitlines() if "import" not in line and line.strip())[:40]


@pytest.mark.parametrize("example", EXAMPLES, ids=title)
def test_readme_example_prints_what_its_comments_say(example, tmp_path, monkeypatch):
    expected = re.findall(r"# -> (.*)$", example, re.MULTILINE)
    if "from torch" in example and importlib.util.find_spec("torch") is None:
        ast.parse(example)  # PyTorch is no dependency; where it is missing, the side-by-side example only has to parse
        return
    if "load_mnist" in example:
        shutil.copytree(ROOT / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    np.random.seed(0)
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(example, "README.md", "exec"), {"__name__": "example"})
    assert output.getvalue().splitlines() == expected


def test_readme_has_examples_that_print():
    assert len(EXAMPLES) >= 10
    assert sum("# -> " in example for example in EXAMPLES) >= 8


def test_readme_picture_shows_the_graph_of_its_example(tmp_path, monkeypatch):
    """The names, data and gradients in the picture are those that the example computes."""
    monkeypatch.chdir(tmp_path)
    example = next(e for e in EXAMPLES if "draw_graph(y)" in e)
    exec(compile(example, "README.md", "exec"), {})
    dot = (tmp_path / "graph.dot").read_text(encoding="utf-8")
    fields = [field.strip() for label in re.findall(r'label="{ (.*) }"', dot) for field in label.split("|")]
    svg = html.unescape((ROOT / ".github" / "graph.svg").read_text(encoding="utf-8"))
    svg = re.findall(r">([^<>]+)</text>", svg)
    assert len(fields) > 10 and sorted(fields) == sorted(svg)
