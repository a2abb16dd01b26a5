"""What the documents say about the repository: links, files and the order of imports."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from moe_lint.cli import COMMANDS
from moe_lint.model import Confidence
from moe_lint.reporters import FORMATS
from moe_lint.rules import all_rules

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "benchmarks/README.md"]
ARCHITECTURE = (ROOT / "ARCHITECTURE.md").read_text()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_are_there(document: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        name, _, heading = link.partition("#")
        if "://" in link:
            continue
        target = document.parent / name if name else document
        assert target.exists(), link
        if heading:
            heads = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert heading in {re.sub(r"[^\w\- ]", "", head.strip().lower()).replace(" ", "-") for head in heads}, link


def test_the_files_of_the_data_flow_are_there() -> None:
    folders = [ROOT, ROOT / "moe_lint", ROOT / "moe_lint/cli", ROOT / "codemods", ROOT / "reference_runtime"]
    named = re.findall(r"`([\w/]+(?:\.py|/))`", ARCHITECTURE)
    assert len(named) > 40
    assert [name for name in named if not any(found.exists() for f in folders for found in [f / name])] == []


def imports(package: str) -> Iterator[tuple[Path, str, str]]:
    """(file, module, what it imports) of a package, each as the name below `moe_lint` or the whole name."""
    for path in sorted((ROOT / package).rglob("*.py")):
        importer = path.relative_to(ROOT / package).with_suffix("").parts[0]
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module is not None:
                inner = [f"moe_lint.{alias.name}" for alias in node.names]
                names = inner if node.module == "moe_lint" else [node.module]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            yield from ((path, importer, name) for name in names)


def test_codemods_and_reporters_import_what_the_order_of_imports_says() -> None:
    codemods = {name for path, _, name in imports("codemods") if path.name != "commands.py"}
    assert {name for name in codemods if re.match("moe_lint|libcst|msgspec|rich|click|torch", name)} <= {
        "moe_lint.model",
        "libcst",
        "msgspec",
        "msgspec.structs",
    }
    reporters = {name for path, importer, name in imports("moe_lint") if path.parent.name == "reporters"}
    ours = {name.split(".")[1] for name in reporters if name.startswith("moe_lint.")}
    assert ours == {"model", "fingerprint", "rules", "reporters"}
    rich = {path.name for path, _, name in imports("moe_lint") if name.startswith("rich") and "reporters" in str(path)}
    assert rich == {"table.py", "text.py"}


def test_the_readme_names_every_rule_and_says_which_are_off() -> None:
    table = re.findall(r"^\| (MOE[0-8]\d\d) \| (\S+) \| (.*) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    rules = [rule for rule in all_rules() if rule.code < "MOE9"]
    assert [(code, name) for code, name, _ in table] == [(rule.code, rule.name) for rule in rules]
    off = [code for code, _, text in table if re.search(r"off by default|\(only if selected\)", text)]
    assert off == [rule.code for rule in rules if rule.confidence is Confidence.LOW]


def test_the_documents_name_every_output_and_command() -> None:
    text = "".join(path.read_text() for path in (ROOT / "README.md", *ROOT.glob("docs/*.md")))
    assert [name for name in FORMATS if f"`{name}`" not in text] == []
    assert [name for name in COMMANDS if f"moe-lint {name}" not in text] == []
