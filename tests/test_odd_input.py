"""Files that nobody would write on purpose: read, judged and fixed, or refused in one line."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from moe_lint.facts import alone
from moe_lint.model import Span
from tests.runs import moe_lint
from tests.trees import FORGETFUL, model, write_tree

TEXT = model(FORGETFUL)
SUM = "            x = tensor_model_parallel_all_reduce(x)\n"
EXPERTS = "        x = self.experts(x)\n"


def tree_with(root: Path, data: bytes | str, name: str | bytes = "y.py") -> Path:
    """A pretend engine with one more model file, its own being right already."""
    tree = write_tree(root)
    (tree / "models" / "x.py").unlink()
    path = os.path.join(os.fsencode(tree), b"models", os.fsencode(name))
    with open(path, "wb") as file:
        file.write(data if isinstance(data, bytes) else data.encode())
    return tree


def replaced(old: str, new: str) -> str:
    assert old in TEXT
    return TEXT.replace(old, new)


FIXED = {
    "byte-order-mark": b"\xef\xbb\xbf" + TEXT.encode(),
    "crlf": TEXT.replace("\n", "\r\n"),
    "mixed-line-ends": TEXT.replace("\n", "\r\n", 20),
    "form-feed-between-classes": TEXT.replace("\nclass", "\n\f\nclass"),
    "form-feed-in-the-indentation": replaced("        if self.tp", "\f        if self.tp"),
    "line-separators-in-a-string": 'X = "a\u2028b\u0085c\x0bd"\n' + TEXT,
    "latin-1": b"# -*- coding: latin-1 -*-\n# \xe9\xe8\n" + TEXT.encode(),
    "utf-7": b"# coding: utf-7\n" + TEXT.encode(),
    "names-beyond-ascii": replaced("x = self.experts(x)", "é = 'ééé'; x = self.experts(x)"),
    "tabs": TEXT.replace("    ", "\t"),
    "no-newline-at-the-end": TEXT.rstrip("\n"),
    "continued-further-left": replaced(" and not use_reduce", " \\\n and not use_reduce"),
    "one-line-if": TEXT.replace(":\n" + SUM, ": " + SUM.lstrip()),
    "no-space-around-the-condition": replaced("if self.tp", "if(self.tp").replace(":\n" + SUM, "):\n" + SUM),
    "a-comment-further-left-than-the-method": replaced(EXPERTS, f"{EXPERTS}# left\n"),
    "a-name-assigned-in-a-condition-again": replaced("self.tp_size > 1", "(w := self.tp_size > 1)").replace(
        EXPERTS, f"{EXPERTS}        w = x.ready or x.late\n"
    ),
    "600-elifs": replaced(
        EXPERTS, f"{EXPERTS}        if a == 0:\n            b = 0\n" + "        elif a == 1:\n            b = 1\n" * 600
    ),
    "800-chained-calls": replaced(EXPERTS, f"{EXPERTS}        y = x{'.a()' * 800}\n"),
    "300-early-returns": replaced(EXPERTS, EXPERTS + "".join(f"        if a{i}: return a{i}\n" for i in range(300))),
    "150-early-returns-for-two-reasons": replaced(
        EXPERTS, EXPERTS + "".join(f"        if a{i} and b{i}: return a{i}\n" for i in range(150))
    ),
    "a-condition-that-doubles": replaced(
        EXPERTS, f"{EXPERTS}        c0 = a\n" + "".join(f"        c{i + 1} = c{i} and c{i}\n" for i in range(60))
    ).replace("if self.tp_size > 1", "if c60 and self.tp_size > 1"),
    "a-class-that-inherits-from-itself": replaced("class XSparseMoeBlock:", "class XSparseMoeBlock(XSparseMoeBlock):"),
    "properties-in-a-circle": replaced(
        "    def forward(self, x, use",
        "    def p(self):\n        return self.q()\n\n    def q(self):\n        return self.p()\n\n"
        "    def forward(self, x, use",
    ).replace("if self.tp_size > 1", "if self.p() and self.tp_size > 1"),
}


@pytest.mark.parametrize("data", FIXED.values(), ids=FIXED.keys())
def test_it_is_found_and_fixed_and_every_other_byte_stays(tmp_path: Path, data: bytes | str) -> None:
    tree = tree_with(tmp_path, data)
    path = tree / "models" / "y.py"
    before = path.read_bytes()
    assert moe_lint("check", str(tree)).exit_code == 1
    assert path.read_bytes() == before
    assert moe_lint("check", "--fix", str(tree)).exit_code == 0
    after = path.read_bytes()
    assert b"should_skip_post_experts_all_reduce" in after
    kept = [line for line in before.split(b"\n") if line in after.split(b"\n")]
    assert len(kept) > 0.7 * len(before.split(b"\n"))
    assert moe_lint("check", "--fix", str(tree)).exit_code == 0
    assert path.read_bytes() == after


REFUSED = {
    "null-bytes": (TEXT.encode() + b"\0", "syntax error"),
    "undeclared-encoding": (b"# \xe9\xe8\n" + TEXT.encode(), "not readable as text"),
    "unknown-encoding": (b"# coding: klingon\n" + TEXT.encode(), "unknown encoding: klingon"),
    "a-codec-that-is-no-encoding": (b"# coding: rot13\n" + TEXT.encode(), "not a text encoding"),
    "bare-carriage-returns": (TEXT.replace("\n", "\r"), "bare carriage return"),
    "too-deep": (replaced(EXPERTS, f"{EXPERTS}        y = {'+'.join(['x'] * 9000)}\n"), "nested too deeply"),
    "too-many-brackets": (replaced(EXPERTS, f"{EXPERTS}        y = {'(' * 4000}x{')' * 4000}\n"), "too many nested"),
    "half-a-method-before-the-whole-one": (
        replaced("    def forward(", "    def forward(\n    def forward("),
        "syntax error: ",
    ),
    "too-many-brackets-in-a-broken-file": (f"x = = 1\ny = {'(' * 4000}x{')' * 4000}\n{TEXT}", "syntax error: "),
}


@pytest.mark.parametrize(("data", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_it_is_refused_in_one_line_and_left_alone(tmp_path: Path, data: bytes | str, message: str) -> None:
    tree = tree_with(tmp_path, data)
    path = tree / "models" / "y.py"
    before = path.read_bytes()
    result = moe_lint("check", "--fix", str(tree))
    assert result.exit_code == 2
    (line,) = [line for line in result.output.splitlines() if "error:" in line]
    assert "models/y.py:" in line
    assert message in line
    assert path.read_bytes() == before


def test_of_many_conditions_only_those_that_may_change_are_compared_both_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To compare what a function does either way takes as long as the function: for each condition, it adds up."""
    asked: set[Span] = set()

    def only_guards(function: ast.AST, call: Span, condition: Span, lines: list[str]) -> bool:
        asked.add(condition)
        return alone.only_guards(function, call, condition, lines)

    monkeypatch.setattr("moe_lint.facts.file.only_guards", only_guards)
    tree = tree_with(tmp_path, FIXED["300-early-returns"])
    assert moe_lint("check", "--no-cache", str(tree)).exit_code == 1
    assert len(asked) == 1


def test_a_broken_file_is_told_where_only_its_layer_is_of_interest(tmp_path: Path) -> None:
    """Its reductions stand in another file, and what is broken in it is nothing that a rule has to read."""
    head, block, layer = (part.strip() for part in replaced(", use_reduce_scatter=scatter", "").split("\n\n\n"))
    tree = tree_with(tmp_path, f"{head}\n\n\n{block}\n", "block.py")
    text = f"{head}\nfrom engine.models.block import XSparseMoeBlock\n\n\n{layer}\n"
    (tree / "models/layer.py").write_text(text)
    assert re.search(r"layer.py:\d+:\d+: MOE201", moe_lint("check", "--format", "concise", str(tree)).stdout)
    (tree / "models/layer.py").write_text(f"{text}\n\ndef unread(self):\nreturn\n")
    result = moe_lint("check", "--fix", str(tree))
    assert result.exit_code == 2
    assert ": error: syntax error: expected an indented block" in result.stderr


@pytest.mark.parametrize("depth", [800, 4000, 20000])
@pytest.mark.parametrize("kind", ["elifs", "calls", "operators", "a-condition", "a-nest-in-a-condition", "choices"])
def test_however_deep_it_nests_it_is_fixed_or_refused_in_one_line(tmp_path: Path, kind: str, depth: int) -> None:
    """How deep Python can go depends on its version: what it cannot read is said, and nothing is written."""
    text = {
        "elifs": replaced(
            EXPERTS,
            f"{EXPERTS}        if a == 0:\n            b = 0\n" + "        elif a == 1:\n            b = 1\n" * depth,
        ),
        "calls": replaced(EXPERTS, f"{EXPERTS}        y = x{'.a()' * depth}\n"),
        "operators": replaced(EXPERTS, f"{EXPERTS}        y = {'-' * depth}x\n"),
        "a-condition": replaced("if self.tp_size > 1", f"if {'a and ' * depth}self.tp_size > 1"),
        "a-nest-in-a-condition": replaced("if self.tp_size > 1", f"if a{'.b()' * depth} and self.tp_size > 1"),
        "choices": replaced("if self.tp_size > 1", f"if ({'b if c else ' * depth}a) and self.tp_size > 1"),
    }[kind]
    tree = tree_with(tmp_path, text)
    path = tree / "models" / "y.py"
    result = moe_lint("check", "--fix", str(tree))
    if result.exit_code == 0:
        assert "should_skip_post_experts_all_reduce" in path.read_text()
        return
    assert result.exit_code == 2
    (line,) = [line for line in result.output.splitlines() if "error:" in line]
    assert "models/y.py:" in line
    assert "nested too deeply" in line
    assert path.read_text() == text


def test_a_name_that_is_not_text_is_printed_escaped(tmp_path: Path) -> None:
    tree = tree_with(tmp_path, TEXT, b"bad\xff.py")
    assert "bad\\udcff.py" in moe_lint("check", str(tree)).output
    assert moe_lint("check", "--fix", str(tree)).exit_code == 0


def test_a_fix_of_a_file_with_a_newline_in_its_name_is_told_in_one_line(tmp_path: Path) -> None:
    tree = tree_with(tmp_path, TEXT)
    os.rename(tree / "models" / "y.py", tree / "models" / "y\nz.py")
    result = moe_lint("--fix", str(tree))
    assert "models/y\\nz.py:" in result.stdout
    assert all(
        line.startswith(("fixed ", "    before: ", "1 place ", "No findings")) for line in result.stdout.splitlines()
    )


def test_a_working_directory_that_is_gone_is_told(tmp_path: Path) -> None:
    tree, gone = tree_with(tmp_path, TEXT), tmp_path / "gone"
    gone.mkdir()
    code = "import os, sys; os.rmdir(os.getcwd()); from moe_lint.cli import main; main(sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tree)], cwd=gone, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "moe-lint: error: the working directory: No such file or directory\n"


def test_a_link_to_a_file_of_the_tree_is_not_a_second_file(tmp_path: Path) -> None:
    tree = tree_with(tmp_path, TEXT)
    (tree / "models" / "alias.py").symlink_to("y.py")
    (tree / "models" / "itself.py").symlink_to("itself.py")
    (tree / "around").symlink_to(tree)
    assert "1 finding (1 fixable): 1 post-experts reduction in 8 files" in moe_lint("check", str(tree)).output
    assert moe_lint("check", "--fix", str(tree)).exit_code == 0
    assert (tree / "models" / "alias.py").is_symlink()


def test_a_link_to_a_file_elsewhere_is_read(tmp_path: Path) -> None:
    outside = tmp_path / "outside.py"
    outside.write_text(TEXT)
    tree = tree_with(tmp_path, "")
    (tree / "models" / "z.py").symlink_to(outside)
    assert "models/z.py:" in moe_lint("check", str(tree)).output
