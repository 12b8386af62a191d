"""The forms of a result: YAML that a YAML reader reads back, and flags that contradict."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.cli.output import Style, yaml_lines
from bridge.errors import ConfigError

TEXTS = st.text(alphabet=st.characters(exclude_categories=["Cs"]))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner),
    max_leaves=8,
)


def test_yaml_is_a_document_of_blocks() -> None:
    value = {"total": 1, "hosts": [{"name": "box-a", "labels": {}, "order": None}], "more": "no"}
    assert list(yaml_lines(value)) == [
        "total: 1",
        "hosts:",
        "- name: box-a",
        "  labels: {}",
        "  order: null",
        'more: "no"',
    ]


@given(VALUES)
def test_yaml_is_printable_ascii_whatever_the_text(value: object) -> None:
    for line in yaml_lines(value):
        assert line.isascii()
        assert line.isprintable()


def test_two_forms_at_once_are_refused() -> None:
    assert Style.of("json", json=True) == Style.of(None, json=True)
    with pytest.raises(ConfigError, match="give one of them"):
        Style.of("yaml", json=True)
