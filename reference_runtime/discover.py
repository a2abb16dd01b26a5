"""Find the MoE blocks and decoder layers of model files by reading them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from reference_runtime.verdicts import Reduction

#: Attributes that hold a block's experts, and the callees that make them.
_EXPERT_ATTRIBUTES = ("experts", "text_experts", "routed_experts", "switch_mlp")
_EXPERT_MAKERS = ("FusedMoE", "EPMoE", "DeepEPMoE", "get_moe_impl_class", "build_experts")
#: Who sums a partial output after the block: names of the layer's communicator and of the stage boundary.
_COMMUNICATOR, _BOUNDARY = "communicator", "boundary"
#: What models ask before they use a second stream, or another kernel.
_CAPTURE = "get_is_capture_mode"


@dataclass(frozen=True, slots=True)
class Block:
    """A MoE block of a model file.

    Attributes:
        module: model module, relative to the engine's `models`.
        name: the class.
        decoder: the class in the same file that builds the block, if one does.
        communicator: the decoder has a layer communicator or a layer boundary, itself or from a model that it extends.
        owner: who else may sum the block's output: the layer "boundary", the "decoder" itself, or nobody.
        captures: the block, or the decoder, does something else while a graph is being captured.
    """

    module: str
    name: str
    decoder: str | None
    communicator: bool
    file: Path
    owner: str = ""
    captures: bool = False

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


def blocks(module: str, file: Path) -> list[Block]:
    """The blocks of one model file, in the order of their definition.

    Raises:
        SyntaxError: the file does not parse.
    """
    data = file.read_bytes()
    if not any(word.encode() in data for word in _EXPERT_MAKERS):
        return []
    tree = ast.parse(data, str(file))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    found = []
    for name, node in classes.items():
        if _makes_experts(node) and any(isinstance(n, ast.FunctionDef) and n.name == "forward" for n in node.body):
            decoder = _decoder(name, classes)
            words = _words(file, classes.get(decoder or ""))
            owner = "decoder" if decoder is not None and _reduces(classes[decoder]) else ""
            owner = "boundary" if _BOUNDARY in words else owner
            captures = any(_asks(part, _CAPTURE) for part in (node, classes.get(decoder or "")) if part is not None)
            found.append(Block(module, name, decoder, bool(words), file, owner, captures))
    return found


def reductions(file: Path, path: str, names: Sequence[str]) -> list[Reduction]:
    """The calls of all-reduces in some classes of a model file, in order. ``path`` is what they say of the file."""
    classes = [n for n in ast.parse(file.read_bytes()).body if isinstance(n, ast.ClassDef) and n.name in names]
    functions = [(c.name, f) for c in classes for f in c.body if isinstance(f, ast.FunctionDef)]
    found = [
        Reduction(path, inner.lineno, inner.end_lineno or inner.lineno, f"{owner}.{function.name}")
        for owner, function in functions
        for inner in ast.walk(function)
        if isinstance(inner, ast.Call) and _sums(_name(inner.func))
    ]
    return sorted(found, key=lambda one: one.line)


def _sums(name: str) -> bool:
    """Whether a function of that name sums over ranks; a predicate about that does not."""
    return name.endswith("all_reduce") and not re.search(r"should|skip|(^|_)(is|use|can)_", name)


def _words(file: Path, decoder: ast.ClassDef | None, seen: frozenset[Path] = frozenset()) -> set[str]:
    """Which of a layer communicator and a layer boundary a decoder works with; the file, if there is no decoder.

    A decoder that extends one of another model works with what that model does.
    """
    text = file.read_text(encoding="utf-8-sig", errors="replace")
    own = ast.get_source_segment(text, decoder) or "" if decoder is not None else text
    # as a part of a name; in prose the words mean other things
    found = {word for word in (_COMMUNICATOR, _BOUNDARY) if re.search(rf"\w_{word}\b|\w{word.title()}\b", own)}
    if found:
        return found
    bases = {_name(base) for base in decoder.bases} if decoder is not None else None
    for name, imported in re.findall(r"^from [\w.]*models\.(\w+) import (\([^)]*\)|.*)", text, re.M):
        other = file.with_name(f"{name}.py")
        if other in seen | {file} or not other.is_file():
            continue
        if bases is None or any(re.search(rf"\b{re.escape(base)}\b", imported) for base in bases if base):
            found |= _words(other, None, seen | {file})
    return found


def _asks(node: ast.ClassDef, question: str) -> bool:
    """Whether a class calls a function of that name."""
    return any(_name(n.func) == question for n in ast.walk(node) if isinstance(n, ast.Call))


def _reduces(node: ast.ClassDef) -> bool:
    """Whether a class calls an all-reduce itself."""
    return any("all_reduce" in _name(n.func) for n in ast.walk(node) if isinstance(n, ast.Call))


def _makes_experts(node: ast.ClassDef) -> bool:
    """Whether `__init__` assigns the result of an expert maker to an attribute of self."""
    for statement in _assignments(node):
        if not any(_root(target) for target in statement.targets):
            continue
        calls = {_name(n.func) for n in ast.walk(statement.value) if isinstance(n, ast.Call)}
        local = {n.id for n in ast.walk(statement.value) if isinstance(n, ast.Name)}
        attribute = {_root(target) for target in statement.targets}
        if calls & set(_EXPERT_MAKERS) or (
            attribute & set(_EXPERT_ATTRIBUTES) and (local & _makers_in(node)) and isinstance(statement.value, ast.Call)
        ):
            return True
    return False


def _makers_in(node: ast.ClassDef) -> set[str]:
    """Locals of `__init__` that hold an expert class, as in `cls = get_moe_impl_class(...)`."""
    found = set()
    for statement in _assignments(node):
        names = {n.id for n in ast.walk(statement.value) if isinstance(n, ast.Name)}
        if names & set(_EXPERT_MAKERS):
            found |= {target.id for target in statement.targets if isinstance(target, ast.Name)}
    return found


def _assignments(node: ast.ClassDef) -> Iterator[ast.Assign]:
    for function in node.body:
        if isinstance(function, ast.FunctionDef) and function.name == "__init__":
            yield from (n for n in ast.walk(function) if isinstance(n, ast.Assign))


def _root(target: ast.expr) -> str | None:
    """`x` of a target `self.x`."""
    if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self":
        return target.attr
    return None


def _name(func: ast.expr) -> str:
    if isinstance(func, ast.Call):  # get_moe_impl_class(quant_config)(...)
        return _name(func.func)
    return func.attr if isinstance(func, ast.Attribute) else func.id if isinstance(func, ast.Name) else ""


def _decoder(block: str, classes: dict[str, ast.ClassDef]) -> str | None:
    """The class that builds the block and runs it after an attention."""
    for name, node in classes.items():
        if name == block:
            continue
        built = {_name(n.func) for s in _assignments(node) for n in ast.walk(s.value) if isinstance(n, ast.Call)}
        attributes = {_root(target) for s in _assignments(node) for target in s.targets}
        if block in built and any(a and ("attn" in a or "attention" in a) for a in attributes):
            return name
    return None
