"""Add a name to a file's imports, and remove the names that a rewrite left unused."""

from __future__ import annotations

import ast

from codemods.edits import LINE_LENGTH, Edit, Source, parsed, words
from moe_lint.model import Span


def import_edits(before: str, after: str, module: str, name: str) -> list[Edit]:
    """The edits of ``after`` that import ``name`` from ``module`` and drop what ``after`` no longer uses.

    Only names that ``before`` used and ``after`` does not are dropped: unused imports of old are not ours.
    """
    tree = parsed(after)
    statements = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    source = Source(after)
    bound = {alias.asname or alias.name for node in statements for alias in node.names}
    fewer = bound & (words(before) - words(after)).keys()
    unused = {name for name in fewer if not _uses(after, name) and _uses(before, name)}
    edits: list[Edit] = []
    missing = bool(name) and name not in bound
    for node in statements:
        gone = {alias.name for alias in node.names if (alias.asname or alias.name) in unused}
        add = name if missing and _module(node) == module else None
        edit = _changed(node, source, add, gone) if add or gone else None
        if edit is not None:
            edits.append(edit)
            missing = missing and add is None
    if missing:
        edits.append(_new_statement(tree, source, module, name))
    return edits


def _uses(text: str, name: str) -> bool:
    """Whether the code (or its `__all__`) uses a name, imports aside."""
    lines = text.split("\n")
    for statement in parsed(text).body:
        first = min([statement.lineno, *(d.lineno for d in getattr(statement, "decorator_list", ()))])
        if any(name in line for line in lines[first - 1 : statement.end_lineno]) and any(
            (isinstance(node, ast.Name) and node.id == name) or (isinstance(node, ast.Constant) and node.value == name)
            for node in ast.walk(statement)
        ):
            return True
    return False


def _module(node: ast.ImportFrom) -> str:
    return "." * node.level + (node.module or "")


def _distance(module: str) -> tuple[int, str]:
    """isort's order of modules: relative ones from the furthest to the closest."""
    name = module.lstrip(".")
    return len(name) - len(module), name


def _order(name: str) -> tuple[int, str]:
    """isort's order of imported names: CONSTANTS, Classes, the rest."""
    kind = 0 if name.isupper() and len(name) > 1 else 1 if name[:1].isupper() else 2
    return kind, name


def _new_statement(tree: ast.Module, source: Source, module: str, name: str) -> Edit:
    """`from module import name` beside the imports of the same package, in alphabetical order."""
    text = f"from {module} import {name}"
    if len(text) > LINE_LENGTH:
        text = f"from {module} import ({source.newline}    {name},{source.newline})"
    root = module.split(".")[0]  # of a relative one: nothing
    froms = [n for n in tree.body if isinstance(n, ast.ImportFrom) and n.module != "__future__"]
    family = [n for n in froms if _module(n).split(".")[0] == root] or [n for n in froms if n.level == 0]
    later = [n for n in family if _distance(_module(n)) > _distance(module)]
    earlier = [n for n in family if _distance(_module(n)) < _distance(module)]
    before = [n for n in earlier if not later or n.lineno < later[0].lineno]
    if before:
        return _line_behind(before[-1], source, text)
    if later:
        start = source.offset(later[0].lineno, 1)
        return Edit(start, start, f"{text}{source.newline}")
    imports = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
    docstring = tree.body[:1] if ast.get_docstring(tree) is not None else []
    anchor = (imports or docstring)[-1:]
    if anchor:
        return _line_behind(anchor[0], source, text)
    return Edit(0, 0, f"{text}{source.newline}")


def _line_behind(node: ast.stmt, source: Source, text: str) -> Edit:
    """A new line behind a statement, which may itself go with its line."""
    _, end = source.line_of(source.offset(node.end_lineno or node.lineno, 1))
    following = end + len(source.newline)
    if following > len(source.text):
        return Edit(end, end, f"{source.newline}{text}")
    return Edit(following, following, f"{text}{source.newline}")


def _changed(node: ast.ImportFrom, source: Source, add: str | None, remove: set[str]) -> Edit | None:
    """An import statement with a name added and names removed; None where something else would be lost.

    Lines that stay are kept as they are.
    """
    span = Span(node.lineno, node.col_offset + 1, node.end_lineno or node.lineno, 1)
    start = source.offset(span.line, span.column)
    _, end = source.line_of(source.offset(span.end_line, 1))
    text = source.text[start:end]
    names = [alias for alias in node.names if alias.name not in remove]
    if node.col_offset or ";" in text.partition("#")[0] or any(alias.name == "*" for alias in names):
        return None
    if not names and add is None:
        return Edit(start, min(end + len(source.newline), len(source.text)), "")
    if "\n" in text:
        edited = _changed_lines(text, add, remove, source.newline)
        if edited is not None or "#" in text:
            return Edit(start, end, edited) if edited is not None else None
    comment = "  " + text[text.index("#") :] if "#" in text else ""
    written = [f"{a.name} as {a.asname}" if a.asname else a.name for a in names]
    if add is not None:
        written = sorted([*written, add], key=lambda item: _order(item.split(" ")[0]))
    head = f"from {_module(node)} import "
    one_line = head + ", ".join(written)
    if "\n" not in text and len(one_line + comment) <= LINE_LENGTH:
        return Edit(start, end, one_line + comment)
    lines = "".join(f"    {item},{source.newline}" for item in written)
    return Edit(start, end, f"{head}({comment}{source.newline}{lines})")


def _changed_lines(text: str, add: str | None, remove: set[str], newline: str) -> str | None:
    """A parenthesised import with one name a line, changed line by line; None when it is laid out otherwise."""
    lines = text.split(newline)
    inner = lines[1:-1]
    names = [line.split("#")[0].strip().rstrip(",") for line in inner]
    if lines[-1].strip() != ")" or not all(name.split(" ")[0].isidentifier() or not name for name in names):
        return None
    if any(name and not line.split("#")[0].rstrip().endswith(",") for name, line in zip(names, inner, strict=True)):
        return None
    kept = [
        (name, line) for name, line in zip(names, inner, strict=True) if name.split(" ")[0] not in remove or not name
    ]
    if any("#" in line for name, line in zip(names, inner, strict=True) if name.split(" ")[0] in remove and name):
        return None
    if add is not None:
        position = next(
            (i for i, (name, _) in enumerate(kept) if name and _order(name.split(" ")[0]) > _order(add)), len(kept)
        )
        indent = next((line[: len(line) - len(line.lstrip())] for name, line in kept if name), "    ")
        kept.insert(position, (add, f"{indent}{add},"))
    return newline.join([lines[0], *(line for _, line in kept), lines[-1]])
