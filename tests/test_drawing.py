"""draw_graph writes the graph of a Value as DOT text, with every label escaped as DOT asks."""

import numpy as np
import pytest

from engine import MLP, Value, conv2d, cross_entropy, draw_graph, max_pooling, stack
from tests.misuse import TYPE, check


def test_draw_graph_shows_what_a_value_holds():
    a, b = Value(2.0, label="a"), Value(np.array([1.0, -3.0]), label="b")
    c = a * b
    c.label = "c"
    c.sum().backward_all()
    lines = draw_graph(c).splitlines()
    assert lines[0].startswith("digraph") and lines[-1] == "}"
    boxes = {s: next(line for line in lines if f"{{ {s} |" in line) for s in "abc"}
    assert "data 2" in boxes["a"] and "grad -2" in boxes["a"]
    assert "shape (2,)" in boxes["b"] and "data [ 1., -3.]" in boxes["b"] and "grad [2., 2.]" in boxes["b"]
    assert "*" in boxes["c"] and "grad [1., 1.]" in boxes["c"]
    names = {s: line.split()[0] for s, line in boxes.items()}
    arrows = [line.strip() for line in lines if "->" in line]
    assert sorted(arrows) == sorted(f"{names[s]} -> {names['c']}" for s in "ab")


def test_draw_graph_is_deterministic_and_changes_no_gradient():
    np.random.seed(0)
    mlp = MLP(3, [4, 2])
    out = mlp(np.ones((2, 3))).sum()
    text = draw_graph(out)
    assert text == draw_graph(out)
    out.backward_all()
    assert mlp.parameters()[-1].grad.tolist() == [2, 2]


def test_draw_graph_shows_constants():
    text = draw_graph(Value(2.0) * 3)
    box = next(line for line in text.splitlines() if "constant" in line)
    assert "data 3" in box and "grad" not in box


def test_draw_graph_draws_an_operand_used_twice_with_two_arrows():
    a = Value(2.0)
    arrows = [line.strip() for line in draw_graph(a * a).splitlines() if "->" in line]
    assert len(arrows) == 2 and len(set(arrows)) == 1


def test_draw_graph_leaves_out_the_data_of_large_arrays():
    assert "data" in draw_graph(Value(np.zeros(9)))
    text = draw_graph(Value(np.zeros(10)))
    assert "data" not in text and "shape (10,)" in text


def test_draw_graph_escapes_labels():
    text = draw_graph(Value(1.0, label='a"b\\c{d}|<e>\nf'))
    assert r"a\"b\\c\{d\}\|\<e\>\nf" in text
    assert len(text.splitlines()) == 5


@pytest.mark.parametrize(
    "label, expected",
    [("a & b", "a &amp; b"), ("&lt;", "&amp;lt;"), ("&", "&amp;"), ("a&&b", "a&amp;&amp;b"), ("<&>", r"\<&amp;\>")],
)
def test_draw_graph_escapes_the_ampersand(label, expected):
    """DOT reads &lt; as <."""
    assert f"{{ {expected} | data 1" in draw_graph(Value(1.0, label=label))


def test_draw_graph_of_thousands_of_values():
    x = v = Value(1.0)
    for _ in range(5000):
        v = v + x
    text = draw_graph(v)
    assert text.count("->") == 10_000 and text.count("label=") == 5001


@pytest.mark.parametrize("thing", [None, 1.0, np.ones(2), "v", [Value(1.0)]], ids=str)
def test_draw_graph_rejects_what_is_no_value(thing):
    check(lambda: draw_graph(thing), TYPE, f"Value.*{type(thing).__name__}")


@pytest.mark.parametrize("label", [3, b"a", ["a"]], ids=str)
def test_label_must_be_a_string(label):
    check(lambda: draw_graph(Value(1.0, label=label)), TYPE, f"label.*str.*{type(label).__name__}")


def test_every_operation_has_its_name_in_the_graph():
    x, image = Value(np.ones((1, 2))), Value(np.ones((1, 1, 2, 2)))
    for out, name in [
        (x + 1, "+"),
        (x - 1, "-"),
        (x * 2, "*"),
        (x / 2, "/"),
        (x**2, "**2"),
        (x @ np.ones(2), "@"),
        (x.tanh(), "tanh"),
        (x.relu(), "relu"),
        (x.exp(), "exp"),
        (x.log(), "log"),
        (x.sum(), "sum"),
        (x.reshape(2), "reshape"),
        (x.T, "transpose"),
        (x[0], "[]"),
        (x.astype(np.float32), "astype"),
        (stack([x]), "stack"),
        (conv2d(image, image), "conv2d"),
        (max_pooling(image, 2), "max_pooling"),
        (cross_entropy(x, [0]), "cross_entropy"),
    ]:
        assert f'label="{{ {name} |' in draw_graph(out)


def test_numbers_have_four_digits():
    text = draw_graph(Value(np.array([1 / 3, 2.0])) * (1 / 3))
    assert "data [0.3333, 2.    ]" in text and "data 0.3333" in text
