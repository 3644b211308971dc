"""YAML as people write it: what would be read otherwise than it is meant is refused, with its line."""

import time

import pytest
import yaml

from energytl.strict_yaml import load, read


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: the key a stands twice, first in line 1"),
        ("cases:\n  x: {}\n  'x': {}", "line 3: the key x stands twice"),
        ("cases:\n  1: {}\n  '1': {}", "line 3: the key 1 stands twice"),
        ("a: {b: 1, c: {d: 2, d: 3}}", "line 1: the key d stands twice"),
        ("- {e: 1,\n   e: 1}", "line 2: the key e stands twice"),
        ("? [a, b]\n: 1", "line 1: a key is a name"),
        ("a: &a {b: *a}", "line 1: an alias stands within what it names"),
        ("a: &a\n  - *a", "an alias stands within what it names"),
        ("a: " + "[" * 2000 + "]" * 2000, "line 1: more than 64 lists and mappings"),
        ("a: " + "{a: " * 2000 + "}" * 2000, "line 1: more than 64 lists and mappings"),
        ("levels: 1:3:8", "line 1: 1:3:8 is a number to the base of 60"),
        ("a: 2026-13-45", "line 1: month must be in 1..12"),
        (f"a: {'9' * 5000}", "line 1: Exceeds the limit"),
        ("a: [1", "line 1: while parsing a flow sequence, expected ',' or ']'"),
        ("a: 1\n---\nb: 2", "line 2: expected a single document"),
        ("a: !!python/object/apply:os.system [echo]", "line 1: could not determine a constructor"),
    ],
    ids=lambda text: text[:20],
)
def test_what_is_not_meant_is_refused_with_its_line(text, says):
    with pytest.raises(yaml.YAMLError) as raised:
        load(text)
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)


def test_keys_are_as_they_are_written():
    assert list(load("{on: 1, off: 2, no: 3, yes: 4, null: 5, ~: 6, 1: 7, 1.0: 8, 0x10: 9, 2026-01-02: 10}")) == [
        *("on", "off", "no", "yes", "null", "~", "1", "1.0", "0x10", "2026-01-02")
    ]


def test_merged_keys_may_be_said_anew_wherever_they_are_used():
    text = "a: &a {x: 1, y: 2}\nb: &b {<<: *a, x: 3}\nc: {<<: *b, y: 4}\nd: *b"
    assert load(text) == {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}, "c": {"x": 3, "y": 4}, "d": {"x": 3, "y": 2}}


@pytest.mark.parametrize(("text", "number"), [("1e-3", 1e-3), ("1.0e3", 1e3), ("-2E+4", -2e4), ("1.5e-2", 0.015)])
def test_a_number_with_an_exponent_is_a_number(text, number):
    assert load(f"a: {text}") == {"a": number}
    assert load(f"a: '{text}'") == {"a": text}


def test_aliases_that_stand_for_billions_of_values_are_refused_at_once():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    started = time.process_time()
    with pytest.raises(yaml.YAMLError, match="stands for more than 20,000 values"):
        load("\n".join(lines))
    assert time.process_time() - started < 1


def test_of_several_merged_mappings_the_first_wins():
    text = "a: &a {size: 1}\nb: &b {size: 2, depth: 3}\nc: {<<: [*a, *b], name: 4}"
    assert load(text)["c"] == {"size": 1, "depth": 3, "name": 4}
    with pytest.raises(yaml.YAMLError, match="<< merges mappings in, and this is none"):
        load("a: &a 3\nb: {<<: *a}")


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "large.yaml"
    path.write_bytes(b"a" * (2**20 + 1))
    with pytest.raises(OSError, match="no file of settings"):
        read(path)
