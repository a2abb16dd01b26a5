"""Fixes, proved by running them: a rewritten method differs from the old one by skipped reductions, nothing else.

The methods are generated, fixed, and run as Python in every state. The old one runs with a reduction that leaves its
argument alone wherever the helper skips; the new one with the plain reduction. What they return and everything else
that they do must be the same. Nothing of moe-lint's formulas takes part in the comparison.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from itertools import product
from pathlib import Path
from types import CodeType, SimpleNamespace
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from moe_lint import fixing
from moe_lint.engine import Options, run
from moe_lint.profile import load_profile
from moe_lint.rewritten import write_all
from tests.trees import HELPER_NAME, NAMES, model, write_tree

PROFILE = load_profile("sglang")
FLAGS = ("use_reduce_scatter", "should_allreduce_fusion")
DP, FP4 = "should_use_dp_reduce_scatterv", "should_use_flashinfer_cutlass_moe_fp4_allgather"
STATES = [
    dict(zip((*FLAGS, DP, FP4, "ready", "tp", "ep"), values, strict=True))
    for values in product((False, True), repeat=7)
]

# --- running a model file without its engine


class Tensor:
    """A value that remembers how it came about."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __add__(self, other: Tensor) -> Tensor:
        return Tensor(f"({self.text} + {other.text})")


@lru_cache(maxsize=2)
def _compiled(text: str) -> CodeType:
    return compile(text, "x.py", "exec")


class Run:
    """One call of the block's `forward` in one state: what it returned and what else it did, in order."""

    def __init__(self, text: str, state: Mapping[str, bool], axis_is_skipped: Callable[[bool], bool] | None) -> None:
        self.events: list[str] = []
        self.reduced: list[str] = []

        def skips(*, is_tp_path: bool, use_reduce_scatter: bool = False, should_allreduce_fusion: bool = False) -> bool:
            return use_reduce_scatter or should_allreduce_fusion or state[DP] or (is_tp_path and state[FP4])

        def reduction(axis: str) -> Callable[[Tensor], Tensor]:
            def reduce(x: Tensor) -> Tensor:
                if not state[axis.lower()] or (axis_is_skipped is not None and axis_is_skipped(axis == "TP")):
                    return x
                self.reduced.append(axis)
                return Tensor(f"{axis}({x.text})")

            return reduce

        module = SimpleNamespace(
            **{name: lambda name=name: state.get(name, False) for name in NAMES},
            **{HELPER_NAME: skips},
            get_tp_world_size=lambda: 2 if state["tp"] else 1,
            tensor_model_parallel_all_reduce=reduction("TP"),
            moe_expert_parallel_all_reduce=reduction("EP"),
            LayerCommunicator=object,
            annotations=None,
        )
        builtins = {**vars(__import__("builtins")), "__import__": lambda *_: module}
        names: dict[str, Any] = {"__builtins__": builtins, "__name__": "x"}
        exec(_compiled(text), names)
        block = names["XSparseMoeBlock"](
            lambda x: Tensor(f"experts({x.text})"), SimpleNamespace(ep_size=1 + state["ep"])
        )
        block.ready = state["ready"]
        block.note = self.events.append
        block.plus = lambda x: Tensor(f"plus({x.text})")
        result = block.forward(Tensor("x"), **{flag: state[flag] for flag in FLAGS})
        self.result = result.text if isinstance(result, Tensor) else repr(result)


def skipped(state: Mapping[str, bool], tp_path: bool) -> bool:
    return any(state[flag] for flag in FLAGS) or state[DP] or (tp_path and state[FP4])


def assert_same_but_for_the_reduction(before: str, after: str, fixed_paths: set[bool]) -> None:
    for state in STATES:
        old = Run(before, state, lambda tp, state=state: tp in fixed_paths and skipped(state, tp))  # type: ignore[misc]
        new = Run(after, state, None)
        assert (new.result, new.events) == (old.result, old.events), (state, after)


# --- methods to fix

TP, EP = "tensor_model_parallel_all_reduce", "moe_expert_parallel_all_reduce"
REASONS = (*FLAGS, f"{DP}()", f"{FP4}()")
SIZE = {TP: "self.tp_size > 1", EP: "self.ep_size > 1"}


def reasons_for(collective: str) -> tuple[str, ...]:
    return REASONS if collective == TP else REASONS[:3]


@st.composite
def skip_operands(draw: st.DrawFn, collective: str) -> str:
    atoms = draw(st.lists(st.sampled_from(reasons_for(collective)), min_size=1, max_size=3, unique=True))
    shape = draw(st.sampled_from(["not any", "chain", "not", "walrus", "mixed"]))
    if shape == "not" or len(atoms) == 1:
        return f"not {atoms[0]}"
    if shape == "chain":
        return " and ".join(f"not {atom}" for atom in atoms)
    if shape == "walrus":
        return f"not (w := {' or '.join(atoms)})"
    if shape == "mixed":
        return f"not ({' or '.join(atoms)} or self.ready)"
    return f"not ({' or '.join(atoms)})"


@st.composite
def conditions(draw: st.DrawFn, collective: str, skip: bool) -> str:
    """A condition that must hold for the reduction; ``skip``: it names skip reasons."""
    operands = [SIZE[collective]] * draw(st.booleans()) + ["self.ready"] * draw(st.booleans())
    if skip:
        operands += draw(st.lists(skip_operands(collective), min_size=1, max_size=2))
    if not operands:
        operands = [SIZE[collective]]
    return " and ".join(draw(st.permutations(operands)))


def block(lines: list[str]) -> list[str]:
    return [f"    {line}" for line in lines]


@st.composite
def reductions(draw: st.DrawFn, collective: str) -> list[str]:
    call = f"{collective}(x)"
    skip = draw(conditions(collective, True))
    return draw(
        st.sampled_from(
            [
                [f"x = {call}"],
                [f"x = {call}"],
                [f"x = {call}"],
                [f"x = {call}"],
                [f"return {call}"],
                [f"y = {call}", "x = y"],
                [f"x = {call} + self.plus(x)"],
                [f"x = {call} if {skip} else x"],
                [f"x = {call} if {skip} else self.plus(x)"],
                [f"x = (x if not ({skip}) else {call})"],
            ]
        )
    )


@st.composite
def guarded(draw: st.DrawFn, collective: str, depth: int) -> list[str]:
    """Statements around one reduction."""
    if depth == 0:
        return draw(reductions(collective))
    inner = draw(guarded(collective, depth - 1))
    kind = draw(
        st.sampled_from(
            ["if", "if", "if", "if-else", "else", "early", "early-other", "local", "before", "after", "with", "bound"]
        )
    )
    condition = draw(conditions(collective, draw(st.booleans())))
    if kind == "if":
        return [f"if {condition}:", *block(inner)]
    if kind == "if-else":
        other = draw(st.sampled_from(["self.note('else')", "pass", "x = self.plus(x)", "return x"]))
        return [f"if {condition}:", *block(inner), "else:", f"    {other}"]
    if kind == "else":
        other = draw(st.sampled_from(["self.note('then')", "pass", "return x"]))
        return [f"if not ({condition}):", f"    {other}", "else:", *block(inner)]
    if kind == "early":
        return [f"if not ({condition}):", "    return x", *inner]
    if kind == "early-other":
        return [f"if not ({condition}):", "    return self.plus(x)", *inner]
    if kind == "local":
        name = f"skip{depth}"
        used = [f"self.note(str({name}))"] * draw(st.booleans())
        return [f"{name} = not ({condition})", *used, f"if {SIZE[collective]} and not {name}:", *block(inner)]
    if kind == "bound":
        name = f"reduce{depth}"
        return [f"{name} = {condition}", f"if {name}:", *block(inner)]
    if kind == "before":
        return [draw(st.sampled_from(["self.note('before')", "x = self.plus(x)"])), *inner]
    if kind == "after":
        return [
            *inner,
            draw(st.sampled_from(["self.note('after')", "x = self.plus(x)", "return x", "return self.plus(x)"])),
        ]
    return ["with open('/dev/null'):", *block(inner)]


@st.composite
def bodies(draw: st.DrawFn) -> str:
    lines: list[str] = []
    for collective in draw(st.sampled_from([[TP], [TP], [EP, TP], [TP, EP]])):
        lines += draw(guarded(collective, draw(st.integers(1, 3))))
    return "\n".join(lines) + "\n"


def fixed(folder: str, text: str, level: str = "default") -> tuple[str, fixing.FixResult]:
    """The model file after its fix, and what came of fixing; the file is written."""
    root = write_tree(Path(folder))
    path = root / "models" / "x.py"
    path.write_bytes(text.encode())
    options = Options((str(root),), PROFILE)
    result = fixing.fix(options, run(options), fixing.ALLOWED[level])
    write_all(result.fixed)
    after = path.read_bytes().decode()
    compile(after, "x.py", "exec")
    report = run(options)
    again = fixing.fix(options, report, fixing.ALLOWED[level])
    assert again.fixed == ()
    return after, result


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(bodies())
def test_a_fix_leaves_out_reductions_that_the_helper_skips_and_changes_nothing_else(body: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        text = model(body)
        after, result = fixed(folder, text)
        assert result.not_proven == (), after
        paths = {("is_tp_path", "True") in plan.arguments for one in result.fixed for plan in one.plans}
        assert_same_but_for_the_reduction(text, after, paths)
        for finding in result.report.findings:
            assert finding.unfixable is not None or finding.fix is not None or finding.rule == "MOE307"


# --- the same in files that are laid out in any way


@st.composite
def laid_out(draw: st.DrawFn, body: str) -> str:
    """A method with comments, conditions over several lines, semicolons and names beyond ASCII."""
    lines: list[str] = []
    comments = (f"  # {word} {number}" for number, word in enumerate(draw(st.permutations(["é", "why", "日本"])) * 99))
    for line in body.splitlines():
        code = line.lstrip()
        space = line[: len(line) - len(code)]
        note = next(comments) if draw(st.booleans()) else ""
        match = re.fullmatch(r"if (.* and .*):", code)
        if match and draw(st.booleans()):
            lines.append(f"{space}if ({note}")
            for position, part in enumerate(_conjuncts(match[1])):
                tail = next(comments) if draw(st.booleans()) else ""
                lines.append(f"{space}    {'and ' if position else ''}{part}{tail}")
            lines.append(f"{space}):{next(comments) if draw(st.booleans()) else ''}")
        elif code.startswith(("x = ", "self.note")) and draw(st.integers(0, 5)) == 0:
            lines.append(f"{space}é = 'ü'; {code}{note}")
        else:
            if draw(st.integers(0, 5)) == 0 and code.rstrip(":") != "else":
                lines.append(f"{space}{next(comments).strip()}")
            lines.append(f"{line}{note}")
    return "\n".join(lines) + "\n"


def _conjuncts(condition: str) -> Iterator[str]:
    """The operands of a written `and`, those inside parentheses left together."""
    depth, part = 0, ""
    for word in re.split(r"(\band\b)", condition):
        if word == "and" and depth == 0:
            yield part.strip()
            part = ""
        else:
            part += word
            depth += word.count("(") - word.count(")")
    yield part.strip()


def comments_in(text: str) -> list[str]:
    return sorted(re.findall(r"# \S+ \d+", text))


def statements_in(text: str) -> list[str]:
    """Lines that no rewrite has a reason to touch, without their indentation."""
    # a condition that shrinks is laid out anew: the operands that stay may move to another line
    touched = (
        *FLAGS,
        "self.ready",
        "_size",
        DP,
        FP4,
        "all_reduce",
        "import",
        "if",
        "and",
        "(",
        ")",
        "skip",
        "reduce",
        "from",
        '"',
    )
    lines = (re.sub(r"\s+#.*", "", line).strip() for line in text.split("\n"))
    return [line for line in lines if line and not any(word in line for word in touched)]


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(bodies().flatmap(laid_out), st.sampled_from(["\n", "\r\n"]), st.booleans(), st.booleans())
@example(f"if (\n    self.ready\n    and not use_reduce_scatter\n):\n    x = {TP}(x)\n", "\n", False, False)
def test_comments_line_ends_and_other_lines_stay(body: str, newline: str, tabs: bool, fed: bool) -> None:
    text = model(body)
    if tabs:
        text = text.replace("    ", "\t")
    if fed:
        text = text.replace("\n\nclass", "\n\f\nclass").replace("    def forward", "\f    def forward")
    text = text.replace("\n", newline)
    with tempfile.TemporaryDirectory() as folder:
        after, result = fixed(folder, text)
    assert {why for _, _, why in result.not_proven} <= {"the reduction shares its line with another statement"}
    assert comments_in(after) == comments_in(text)
    assert after.count("\f") == text.count("\f")
    assert ("\r" in after) == ("\r" in text)
    assert newline == "\n" or "\n" not in after.replace("\r\n", "")
    left = iter(statements_in(after))
    assert [line for line in statements_in(text) if line not in left] == []
    paths = {("is_tp_path", "True") in plan.arguments for one in result.fixed for plan in one.plans}
    assert_same_but_for_the_reduction(text, after, paths)
