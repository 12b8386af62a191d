"""The fenced blocks of all pages: valid configurations, code that compiles, commands that exist."""

from __future__ import annotations

import ast
import shlex
from pathlib import Path

import pytest
from cyclopts import CycloptsError

import bridge
from bridge.cli.app import VERBS, build_app
from bridge.config import load
from tests.docs.fences import commands, fences, pages
from tests.paths import DOCS

ALL = [*(page.relative_to(DOCS) for page in pages()), Path("../README.md")]


@pytest.mark.parametrize("page", ALL, ids=str)
def test_the_blocks_of_a_page_are_right(page: Path, tmp_path: Path) -> None:
    for fence in fences(str(page)):
        if fence.language == "toml" and fence.text.startswith("["):
            file = tmp_path / "box.toml"
            file.write_text(fence.text)
            load(file, environ={})
        elif fence.language == "python":
            check_imports(fence.text)
        elif fence.language == "console":
            for command in commands(fence):
                check_command(command.text)


def check_imports(code: str) -> None:
    """`code` compiles, and what it imports from `bridge` is public."""
    tree = compile(code, "page", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    assert isinstance(tree, ast.Module)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "bridge":
            assert {name.name for name in node.names} <= set(bridge.__all__)


def check_command(command: str) -> None:
    """`box-bridge` accepts the command; others are not checked."""
    words = shlex.split(command.replace("\\", ""), comments=True)
    for stop in ("|", "&&"):
        words = words[: words.index(stop)] if stop in words else words
    if words[:1] == ["box-bridge"]:
        assert words[1] in {verb.split()[0] for verb in VERBS}
        build_app().parse_args(words[1:], print_error=False, exit_on_error=False)


@pytest.mark.parametrize("command", ["box-bridge nope", "box-bridge scale web 3 --nope"])
def test_a_command_that_does_not_exist_is_noticed(command: str) -> None:
    with pytest.raises((AssertionError, CycloptsError)):
        check_command(command)
