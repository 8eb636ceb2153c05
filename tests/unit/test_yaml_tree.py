"""The located, strict YAML tree, and the text of problems."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moeplan.errors import InputError, Problem, did_you_mean, printable
from moeplan.files.yaml_tree import Mark, parse_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e12", 1e12),
        ("1E5", 1e5),
        ("12:30", "12:30"),
        ("2026-11-23", "2026-11-23"),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("off", "off"),
        ("True", "True"),
        ("true", True),
        ("false", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("007", "007"),
        ("0x10", "0x10"),
        ("0o17", "0o17"),
        ("1_000", 1000),
        ("-3", -3),
        ("+.5", 0.5),
        ("1.", 1.0),
        ("4 req/s", "4 req/s"),
        ("'1'", "1"),
        ('"true"', "true"),
        ("${HOME}", "${HOME}"),
        ("=", "="),
    ],
)
def test_scalar(text: str, value: object) -> None:
    found = parse_yaml(f"a: {text}", "f").plain()["a"]
    assert found == value
    assert type(found) is type(value)


def test_every_value_knows_its_place() -> None:
    tree = parse_yaml("a: 1\nb:\n  c: [x, {d: 2}]\n", "f.yaml")
    assert tree.mark_of(("a",)) == Mark("f.yaml", 1, 4)
    assert tree.mark_of(("b", "c", 0)) == Mark("f.yaml", 3, 7)
    assert tree.mark_of(("b", "c", 1, "d")) == Mark("f.yaml", 3, 14)
    assert tree.mark_of(("b", "c"), key=True) == Mark("f.yaml", 3, 3)
    # what is not there is reported at the nearest place that is
    assert tree.mark_of(("b", "nothing", "below")) == Mark("f.yaml", 3, 3)


def test_alias_is_a_copy_while_it_stays_small() -> None:
    assert parse_yaml("a: &x {k: 1}\nb: *x\n", "f").plain() == {"a": {"k": 1}, "b": {"k": 1}}


def test_problems_are_collected() -> None:
    with pytest.raises(InputError) as caught:
        parse_yaml("a: 1\na: 2\nb: .nan\nc: !t 1\nd: 1e999\n", "f")
    assert [(p.line, p.col) for p in caught.value.problems] == [(2, 1), (3, 4), (4, 4), (5, 4)]


@given(st.text(max_size=300))
def test_any_text_gives_a_tree_or_problems(text: str) -> None:
    problems: tuple[Problem, ...] | None = None
    try:
        parse_yaml(text, "f")
    except InputError as error:
        problems = error.problems
    assert problems != ()


@given(
    st.recursive(
        st.booleans() | st.integers(-(10**18), 10**18) | st.floats(allow_nan=False, allow_infinity=False)
        | st.text("abc 123:-", min_size=1, max_size=8),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=4),
        max_leaves=12,
    )
)  # fmt: skip
def test_plain_data_round_trip(value: object) -> None:
    """JSON is YAML: what the standard library writes is read back."""
    import json

    found = parse_yaml(json.dumps({"v": value}), "f").plain()["v"]
    assert _same(found, value)


def _same(a: object, b: object) -> bool:
    if isinstance(b, float) and isinstance(a, float | int):
        return math.isclose(a, b, rel_tol=1e-15, abs_tol=0.0)
    if isinstance(b, list):
        return isinstance(a, list) and len(a) == len(b) and all(map(_same, a, b))
    if isinstance(b, dict):
        return isinstance(a, dict) and a.keys() == b.keys() and all(_same(a[k], b[k]) for k in b)
    return a == b


def test_hostile_documents_are_refused_quickly() -> None:
    bomb = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{c}: &{c} [{','.join(['*' + p] * 10)}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True)
    )
    start = time.perf_counter()
    for text in (bomb, "[" * 900_000, "a: " * 300_000, "- " * 400_000, "&a " * 300_000, "? " * 400_000, '"' * 900_001):
        with pytest.raises(InputError):
            parse_yaml(text, "f")
    assert time.perf_counter() - start < 5.0


def test_problem_text() -> None:
    problem = Problem("s.yaml", 12, 5, "serving.layout.tp", "too large", "99", "1 to 8", "lower it")
    assert str(problem) == "s.yaml:12:5: serving.layout.tp: too large (got 99); allowed: 1 to 8; hint: lower it"
    assert str(Problem("--set", None, None, "gpus", "too large")) == "--set: gpus: too large"


def test_problem_never_writes_to_the_terminal() -> None:
    text = str(Problem("f", 1, 1, "a\x1b[2J", "bad", "\x1b]0;owned\x07\r\u202eabc" + "x" * 1000))
    assert text.isprintable()
    assert len(text) < 400


def test_input_error_counts_what_it_leaves_out() -> None:
    error = InputError([Problem("f", n, 1, "", "bad") for n in range(250)])
    assert str(error).splitlines()[-1] == "... and 150 more problems"
    assert error.exit_code == 2


def test_did_you_mean() -> None:
    assert did_you_mean("ruoting", ["routing", "serving"]) == "did you mean routing?"
    assert did_you_mean("h200", ["gh200", "h20", "h200-sxm", "h200-nvl"]).startswith("did you mean h200-sxm, h200-nvl")
    assert did_you_mean("qqqq", ["routing"]) == ""
    assert did_you_mean("x" * 10**6, ["routing"]) == ""


def test_printable_cuts() -> None:
    assert printable("a" * 500, 10) == "aaaaaaa..."
