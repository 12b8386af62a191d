"""The pages read plainly: short sentences, and none of the words that puzzle a reader."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.fences import pages
from tests.paths import REPOSITORY

LONGEST = 25  # words of a sentence
PUZZLING = re.compile(
    r"\b(anew|mend(ed|s)?|heed(ed|s)?|befall\w*|lest|nobody|told|tells?|but for|in thought)\b",
    re.IGNORECASE,
)
TEXTS = [*pages(), *REPOSITORY.glob("*.md"), REPOSITORY / "examples" / "README.md"]


def sentences(text: str) -> Iterator[str]:
    """The sentences of a page; code counts as one word, and a cell of a table as a paragraph."""
    text = re.sub(r"^```.*?^```$|^    .*?$", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"\]\([^)]*\)", "]", re.sub(r"`[^`]*`", "X", text))
    for paragraph in re.split(r"\n\s*\n|\n(?=\s*(?:- |\d+\. |\|))|\|", text):
        if not paragraph.strip().startswith("#"):
            yield from re.split(r"(?<=[.:;!?])\s+", " ".join(paragraph.split()))


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.name)
def test_a_page_has_short_sentences_of_plain_words(page: Path) -> None:
    for sentence in sentences(page.read_text()):
        assert len(sentence.split()) <= LONGEST, sentence
        assert PUZZLING.search(sentence) is None, sentence
