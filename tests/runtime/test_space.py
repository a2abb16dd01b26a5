"""Modules of a tree: which of their imports may fail."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from reference_runtime.space import Source


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("try:\n    import a\nexcept ImportError:\n    a = None\nimport b\n", {2}),
        ("try: import a\nexcept Exception: pass\nelse: import b\n", {1}),
        ("if x:\n  try:\n    from a import (\n      b,\n    )\n  except ImportError:\n    pass\n", {3, 4, 5}),
        ("def f():\n\ttry:\n\t\timport a\n\t# told\n\n\tfinally:\n\t\tpass\n", set()),
        ("try:\n  try:\n    import a\n  finally:\n    import b\nexcept ImportError:\n  import c\n", {3, 5}),
        ("try:\n    import a\nexcept ValueError:\n    import b\n", set()),
        # a string, and a bracket, that reach farther to the left than the statement
        ("try:\n    x = '''\nimport a\n'''\n    import b\nexcept ImportError:\n    pass\n", {5}),
        ("def f():\n    try:\n        g(\n  1)\n        import a\n    except:\n        import b\n", {5}),
        # the lines of a statement in a string are never asked for
        ("'''\ntry:\n import a\nexcept:\n  pass\n'''\ntry :\r\n  import b\r\nexcept (OSError, ImportError): pass", {8}),
    ],
)  # fmt: skip
def test_imports_that_the_file_catches_may_fail(tmp_path: Path, text: str, lines: set[int]) -> None:
    file = tmp_path / "m.py"
    file.write_bytes(text.encode())
    imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
    asked = {line for node in imports for line in range(node.lineno, (node.end_lineno or 0) + 1)}
    assert Source(file).optional & asked == lines
