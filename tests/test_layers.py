"""Imports point one way: each module knows only those to its left."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = (
    "model",
    "fingerprint",
    "atomic",
    "remembered",
    "formula",
    "launch",
    "kept",
    "profile",
    "spelling",
    "expressions",
    "source",
    "text",
    "facts",
    "index",
    "dataflow",
    "helper",
    "policy",
    "absorbers",
    "local_predicates",
    "reaching",
    "sites",
    "ways",
    "callers",
    "builders",
    "law",
    "rules",
    "reporters",
    "suppress",
    "ignored",
    "discover",
    "config",
    "selection",
    "baseline",
    "prefilter",
    "reading",
    "analysis",
    "judging",
    "changes",
    "touched",
    "cache",
    "engine",
    "fixing",
    "silencing",
    "initialise",
    "api",
    "hover",
    "editor",
    "language_server",
    "cli",
)
#: Modules outside the chain, and what they may know of it.
BESIDE = {
    "guard_visitor": ORDER[: ORDER.index("sites")],
    "reporters": ("model", "fingerprint", "rules"),
    "__main__": ("cli",),
    "__init__": ("model", "api"),
}
#: Loaded only where they are needed: inside a function, never on import.
LATE = {
    "judging": ("moe_lint.guard_visitor",),
    "fixing": ("codemods.edits", "codemods.guards", "codemods.imports", "codemods.unused"),
    "initialise": ("codemods.edits", "codemods.imports"),
}
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


def test_every_module_has_its_place() -> None:
    assert {layer(path) for path in OURS} == {*ORDER, *BESIDE, "__init__", "profiles"}


@pytest.mark.parametrize("path", OURS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_knows_only_those_to_its_left(path: Path) -> None:
    own = layer(path)
    left = BESIDE.get(own, ORDER[: ORDER.index(own)] if own in ORDER else ())
    for module, at_top in imports(path):
        package, _, rest = module.partition(".")
        if package not in ("moe_lint", "codemods") or (not at_top and module in LATE.get(own, ())):
            continue
        assert package == "moe_lint", f"{own} imports {module}"
        assert rest.split(".")[0] in (*left, own), f"{own} imports {module}"


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
