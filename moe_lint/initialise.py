"""`moe-lint init`: give a tree without a helper the one that its own guards add up to, and export it."""

from __future__ import annotations

import ast
import os
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from msgspec import Struct

from moe_lint.analysis import Tree, analyse
from moe_lint.discover import python_file_names
from moe_lint.formula import And, Atom, Formula, Or
from moe_lint.helper import Helper, find_function
from moe_lint.ignored import DEFAULT_FILES, FileFilter
from moe_lint.model import UsageError, display_path
from moe_lint.profile import Profile
from moe_lint.rewritten import Rewritten
from moe_lint.source import SourceError, decode, lines_with_ends, parse, problem_of


class InitPlan(Struct, frozen=True):
    """The files that `init` changes, and where the helper will stand."""

    files: tuple[Rewritten, ...]
    helper: Helper


def plan_init(
    tree_path: str, profile: Profile, into: str | None = None, files: FileFilter = DEFAULT_FILES
) -> InitPlan | None:
    """What `init` would write; None when the tree has a helper already. Raises ``UsageError``."""
    tree, paths, helper = _judged(tree_path, profile, files)
    if not helper.proposed:
        return None
    if into is None and not helper.path:
        raise UsageError(f"{tree_path}: no module defines the skip predicates; name one with --into FILE")
    home = Path(helper.path if into is None else into).resolve()
    if into is not None and not home.is_file():
        raise UsageError(f"--into: {into or repr(into)}: no such file")
    if str(home) not in paths:
        raise UsageError(f"--into: {into}: no Python file of {tree_path}")
    module = _source(home)
    written = helper_source(helper, profile, _imports(tree, home, module, helper))
    new = _with_public_name(_with_helper(module, helper, written), helper.name)
    return InitPlan((Rewritten(display_path(str(home)), module, new), *_exported(home, helper.name)), helper)


def plan_export(tree_path: str, profile: Profile) -> InitPlan:
    """What is left of `init` once the helper is written. Raises ``UsageError``."""
    _, _, helper = _judged(tree_path, profile, DEFAULT_FILES)
    return InitPlan(tuple(_exported(Path(helper.path), helper.name)), helper)


def _judged(tree_path: str, profile: Profile, files: FileFilter) -> tuple[Tree, list[str], Helper]:
    """The tree, its files, and its helper: what it has, or what it would get. Raises ``UsageError``."""
    path = Path(tree_path)
    if not tree_path or not path.exists():  # to Path, no name at all is the working directory
        raise UsageError(f"{tree_path or repr(tree_path)}: no such file or directory")
    if not path.is_dir():
        raise UsageError(f"{tree_path}: init needs the folder of a tree")
    paths = list(python_file_names(str(path.resolve()), files))
    tree = analyse(str(path), paths, profile)
    helper = tree.policy.helper
    if tree.policy.problems:
        problem = tree.policy.problems[0]
        raise UsageError(f"{display_path(problem.path)}:{problem.line}: {problem.message}")
    if helper is None:
        raise UsageError(
            f"{tree_path}: no guard names a skip reason and nothing absorbs: there is nothing to centralise"
        )
    return tree, paths, helper


def _exported(home: Path, name: str) -> Iterator[Rewritten]:
    """The package of a module with a name that it re-exports from there; nothing if it does, or re-exports nothing.

    Raises ``UsageError``.
    """
    package = home.parent / "__init__.py"
    if package.is_file():
        old = _source(package)
        new = _with_export(old, home.stem, name)
        if new != old:
            yield Rewritten(display_path(str(package)), old, new)


def _source(file: Path) -> str:
    """The text of a Python file. Raises ``UsageError`` for one that cannot be read and parsed."""
    try:
        text = decode(file.read_bytes())
        parse(text)
    except (OSError, SourceError) as error:
        problem = problem_of(display_path(str(file)), error)
        raise UsageError(f"{problem.path}:{problem.line}: {problem.message}") from None
    return text


def _imports(tree: Tree, home: Path, text: str, helper: Helper) -> dict[str, str]:
    """The skip predicates that the helper's module does not know -> the module to import each from.

    Raises ``UsageError`` when there is none.
    """
    found = {}
    for name in sorted(_predicates(helper) - set(_bound(ast.parse(text).body))):
        asked = (tree.index.resolve(site.path, name) for site in tree.sites)  # in a file that holds none of our words
        ref = find_function(tree.index, name) or next((ref for ref in asked if ref is not None), None)
        if ref is None:
            place = display_path(str(home))
            raise UsageError(f"{place}: does not know `{name}`, which the helper asks; name a module that does: --into")
        found[name] = tree.policy.import_module(str(home), name, ref.path) or _relative(home, Path(ref.path))
    return found


def _relative(importer: Path, imported: Path) -> str:
    """The name of a module as another one of its package may write it."""
    folder, module = importer.parent, imported.parent if imported.stem == "__init__" else imported.with_suffix("")
    shared = len(Path(os.path.commonpath([folder, module])).parts)
    return "." * (len(folder.parts) - shared + 1) + ".".join(module.parts[shared:])


def _predicates(helper: Helper) -> set[str]:
    atoms = (part.name for part in _parts(helper.skips) if isinstance(part, Atom))
    return {name for name, bracket, _ in (atom.partition("(") for atom in atoms) if bracket}


def _bound(body: Iterable[ast.stmt]) -> Iterator[str]:
    """The names that a module's own level defines or imports."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Assign):
            yield from (target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.If | ast.Try):
            yield from _bound([*node.body, *node.orelse, *(s for h in getattr(node, "handlers", ()) for s in h.body)])


def _with_helper(text: str, helper: Helper, written: str) -> str:
    """The module with the helper, as ``written``, after the last skip predicate that it defines (else at its end)."""
    newline = "\r\n" if "\r\n" in text else "\n"
    names = _predicates(helper)
    nodes = [n for n in ast.parse(text).body if isinstance(n, ast.FunctionDef) and n.name in names]
    lines = lines_with_ends(text)
    at = max((n.end_lineno or n.lineno for n in nodes), default=len(lines))
    source = written.replace("\n", newline)
    head = "".join(lines[:at])
    if head and not head.endswith("\n"):
        head += newline
    return head + newline + newline + source + "".join(lines[at:])


def helper_source(helper: Helper, profile: Profile, imports: Mapping[str, str] = MappingProxyType({})) -> str:
    """The helper as source text. ``imports``: predicate -> module that its own module lacks."""
    axis = helper.axis_parameter
    parameters = ([f"{axis}: bool"] if axis else []) + [f"{name}: bool = False" for name, _ in helper.flags]
    flags = {flag.name: flag for flag in profile.flags}
    told, conditions, flag_names = [], [], []
    for part in helper.skips.operands if isinstance(helper.skips, Or) else (helper.skips,):
        if isinstance(part, Atom) and part.name in flags:
            flag_names.append(part.name)
            told.append(f"``{part.name}``: {flags[part.name].absorber}.")
        else:
            tp_only = isinstance(part, And)
            predicate = part.operands[-1] if isinstance(part, And) else part
            told.append(f"``{predicate}``{' (TP path only)' if tp_only else ''}: absorbed by what it selects.")
            conditions.append(str(part))
    if flag_names:
        conditions.insert(0, " or ".join(flag_names))
    reasons = "\n".join(
        textwrap.fill(line, 84, initial_indent="  - ", subsequent_indent="    ", break_long_words=False)
        for line in told
    )
    use = f"\n\nPass ``{axis}=True`` for the TP all-reduce, ``False`` for the EP all-reduce." if axis else ""
    docstring = textwrap.indent(
        '"""Whether to skip the post-experts all-reduce because somebody downstream sums.\n\n'
        f'Skip reasons, in order:\n{reasons}{use}\n"""',
        "    ",
        lambda line: bool(line.strip()),
    )
    body = "\n".join(f"    if {condition}:\n        return True" for condition in conditions)
    if imports:  # in the function: that module may import this one
        body = "\n".join([*(f"    from {module} import {name}" for name, module in imports.items()), "", body])
    signature = ",\n    ".join(["*", *parameters])
    return f"def {helper.name}(\n    {signature},\n) -> bool:\n{docstring}\n{body}\n    return False\n"


def _parts(formula: Formula) -> list[Formula]:
    if isinstance(formula, Or | And):
        return [inner for part in formula.operands for inner in _parts(part)]
    return [formula]


def _with_export(text: str, module: str, name: str) -> str:
    """A package's `__init__` with the helper added where it re-exports from ``module``; as it is if it does not."""
    from codemods.edits import apply_edits
    from codemods.imports import import_edits

    imports = [n for n in ast.parse(text).body if isinstance(n, ast.ImportFrom) and n.module]
    host = next((n for n in imports if str(n.module).rpartition(".")[2] == module), None)
    if host is None:
        return text
    everything = host.names[0].name == "*"
    edits = [] if everything else import_edits(text, text, "." * host.level + str(host.module), name)
    return _with_public_name(apply_edits(text, edits), name)


def _with_public_name(text: str, name: str) -> str:
    """A module with a name added to its `__all__`, if it has one that is written out."""
    from codemods.edits import Edit, Source, apply_edits

    source = Source(text)
    edits = []
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.List | ast.Tuple) and node.value.elts:
            listed = {element.value for element in node.value.elts if isinstance(element, ast.Constant)}
            if name not in listed and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
                last = node.value.elts[-1]
                end = source.offset(last.end_lineno or last.lineno, (last.end_col_offset or 0) + 1)
                indent = source.indent_at(source.offset(last.lineno, 1))
                lead = f",{source.newline}{indent}" if node.lineno != last.lineno else ", "
                edits.append(Edit(end, end, f'{lead}"{name}"'))
    return apply_edits(text, edits)
