"""The pages: short, complete, and true of the tree."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from bridge.cli.app import VERBS
from bridge.config import BOX_VARIABLES, NATS_VARIABLES
from docs.generate import cli, errors, metrics, python, settings
from docs.generate.pages import pages as generated
from tests.docs.fences import pages
from tests.paths import DOCS, REPOSITORY

LONGEST = 1500  # words


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    """The generated pages."""
    return generated(REPOSITORY)


def words(text: str) -> int:
    return len([word for word in text.split() if word != "|"])


def tracked() -> set[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    return {name for name in listed.stdout.splitlines() if (REPOSITORY / name).exists()}


def test_no_page_is_longer_than_a_reader_bears(made: dict[str, str]) -> None:
    texts = {str(page.relative_to(DOCS)): page.read_text() for page in pages()} | made
    del texts["changelog.md"]
    long = {name: count for name, text in texts.items() if (count := words(text)) > LONGEST}
    assert not long


def test_a_decision_is_recorded_in_two_hundred_words_with_a_date_and_what_follows() -> None:
    records = sorted((DOCS / "adr").glob("0*.md"))
    assert len(records) >= 15
    for number, record in enumerate(records, 1):
        text = record.read_text()
        assert text.startswith(f"# {number}. "), record.name
        assert re.search(r"^\*\d{4}-\d\d-\d\d\*$", text, re.MULTILINE), record.name
        assert re.findall(r"^\*\*(\w+)\.\*\*", text, re.MULTILINE) == [
            "Context",
            "Decision",
            "Consequences",
        ], record.name
        assert words(text) <= 200, record.name
        assert f"({record.name})" in (DOCS / "adr" / "index.md").read_text()


def test_the_readme_is_short_and_begins_with_the_two_commands() -> None:
    text = (REPOSITORY / "README.md").read_text()
    assert words(text) <= 800
    first_screen = "\n".join(text.splitlines()[:45])
    assert "```console\n$ make demo" in first_screen
    assert "$ make test" in first_screen


def test_the_configuration_lists_every_key_with_a_text_and_its_variable() -> None:
    page = "".join(settings.pages().values())
    for table in (*settings.HOST.values(), *settings.CONNECTION.values()):
        texts = settings.attribute_docstrings(table)
        for key in table.__struct_fields__:
            assert texts.get(key), f"{table.__name__}.{key} has no docstring"
            assert f"| `{key}` |" in page
    for variable in (*BOX_VARIABLES, *NATS_VARIABLES):
        assert f"`{variable}`" in page


def test_the_command_line_has_a_page_for_every_verb_with_every_flag() -> None:
    written = cli.pages()
    for verb in VERBS:
        assert f"{verb.replace(' ', '-')}.md" in written
        assert f"[`box-bridge {verb}`]" in written["index.md"]
    assert "`--dry-run`" in written["scale.md"]
    assert len(written) > 20


def test_the_metrics_are_those_that_a_box_exports() -> None:
    page = metrics.page()
    assert len(metrics.metrics()) > 5
    for metric in metrics.metrics():
        [family] = metric.describe()
        assert f"| `{family.name}" in page
        assert family.documentation in page


def test_every_error_is_listed_with_its_cure() -> None:
    page = errors.page()
    listed = errors.errors()
    assert len(listed) > 30
    for error in listed:
        section = re.search(
            rf"^#+ {error.__name__}\n(.*?)(?=^#|\Z)", page, re.DOTALL | re.MULTILINE
        )
        assert section, f"{error.__name__} is not listed"
        assert "**Fix:**" in section[1], f"{error.__name__}: its docstring has no `Fix:`"


def test_every_public_name_is_listed_with_a_text() -> None:
    for line in python.page().splitlines()[6:]:
        name, text = line.split("|")[1:3]
        assert text.strip(), f"{name.strip()} has no docstring"


@pytest.mark.parametrize("page", [*pages(), *REPOSITORY.glob("*.md")], ids=lambda page: page.name)
def test_the_files_that_a_page_names_exist(page: Path) -> None:
    files = tracked()
    folders = {str(parent) for name in files for parent in Path(name).parents}
    names = {Path(name).name for name in files}
    for named in re.findall(r"`([\w./-]+)`", page.read_text()):
        if re.match(r"(bridge|tests|deploy|docs|examples)/", named):
            assert named.rstrip("/") in files | folders, f"{page.name} names {named}"
        elif re.fullmatch(r"test_\w+\.py", named):
            assert named in names, f"{page.name} names {named}"


def test_the_pages_that_code_and_messages_name_exist() -> None:
    read = (".py", ".toml", ".service", ".conf", ".md")
    named = [
        (name, page)
        for name in tracked()
        if name.endswith(read) and not name.startswith("docs/")
        for page in re.findall(r"docs/[\w/-]+\.(?:md|py)", (REPOSITORY / name).read_text())
    ]
    assert len(named) > 5
    for name, page in named:
        assert (REPOSITORY / page).exists(), f"{name} names {page}"


def test_the_internals_of_nats_py_that_are_listed_are_those_in_use() -> None:
    page = (DOCS / "explanation" / "views-and-routes.md").read_text()
    _, _, listed = page.partition("The bus relies on these")
    code = "".join(path.read_text() for path in (REPOSITORY / "bridge/bus/core").glob("*.py"))
    internals = re.findall(r"`(_\w+)`", listed)
    assert len(internals) > 20
    for internal in internals:
        assert re.search(rf"\b{internal}\b", code), f"{internal} is not in use"
