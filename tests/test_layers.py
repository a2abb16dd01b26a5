"""Imports point one way: each module knows only those to its left."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
(CHAIN,) = re.findall(r"```\n(\w[^`]*<-[^`]*)\n```", (ROOT / "ARCHITECTURE.md").read_text())
ORDER = [names.split("/") for names in CHAIN.replace("\n", " ").split(" <- ")]
#: What these may know, and no more.
NARROWER = {
    "reporters": {"model", "fingerprint", "rules"},
    "guard_visitor": {"model", "facts", "source", "expressions"},
}
#: These load codemods, inside functions: libcst comes with them.
REWRITING = ("fixing", "initialise")
OURS = sorted((ROOT / "moe_lint").rglob("*.py"))
CODEMODS = sorted(path for path in (ROOT / "codemods").glob("*.py") if path.name != "commands.py")


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(module, whether at the top level) of every import in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node in tree.body) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            yield node.module or "", node in tree.body


def layer(path: Path) -> str:
    return path.relative_to(ROOT / "moe_lint").with_suffix("").parts[0]


def left_of(own: str) -> set[str]:
    """The modules that one may import."""
    if own in ("__init__", "__main__"):
        return {"model", "api", "cli"}
    place = next(number for number, names in enumerate(ORDER) if own in names)
    return NARROWER.get(own, {name for names in ORDER[:place] for name in names})


def test_every_module_has_its_place() -> None:
    placed = [name for names in ORDER for name in names]
    assert sorted([*placed, "__init__", "__main__", "profiles"]) == sorted({layer(path) for path in OURS})


@pytest.mark.parametrize("path", OURS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_knows_only_those_to_its_left(path: Path) -> None:
    own = layer(path)
    known = {own} if own == "profiles" else {own, *left_of(own)}
    for module, at_top in imports(path):
        package, _, rest = module.partition(".")
        if package == "codemods":
            assert own in REWRITING, f"{own} imports {module}"
            assert not at_top, f"{own} loads libcst on import"
        elif package == "moe_lint":
            assert rest.split(".")[0] in known, f"{own} imports {module}"


@pytest.mark.parametrize("path", CODEMODS, ids=lambda path: path.name)
def test_codemods_know_the_model_and_libcst_only(path: Path) -> None:
    standard = {
        "__future__",
        "ast",
        "collections",
        "functools",
        "io",
        "itertools",
        "textwrap",
        "tokenize",
        "re",
        "typing",
    }
    for module, _ in imports(path):
        assert module == "moe_lint.model" or module.split(".")[0] in {"codemods", "libcst", "msgspec", *standard}


def test_nothing_imports_torch_or_an_engine() -> None:
    for path in (ROOT / "moe_lint", ROOT / "codemods"):
        for file in path.rglob("*.py"):
            roots = {module.split(".")[0] for module, _ in imports(file)}
            assert not roots & {"torch", "sglang", "vllm", "flashinfer", "triton"}, file
