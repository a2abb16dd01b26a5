"""Which drift of central predicates is reported by default, and which only when asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from moe_lint.engine import Options, run
from moe_lint.model import Finding, SkipReason
from moe_lint.profile import load_profile
from moe_lint.rules.base import Case
from moe_lint.rules.moe402_copied_predicate import CopiedPredicate
from tests.trees import HELPER_NAME, ROUTED, write_tree

BASE = """\
class Steps:
    pass


class LayerCommunicator:
    def should_use_reduce_scatter(self, batch):
        return self.allowed and self.step is Steps.scatter and (should_use_dp_reduce_scatterv() or batch.padded)
"""
OVERRIDE = """\
from engine.layers.communicator import LayerCommunicator, Steps


class OwnSteps:
    pass


class OwnCommunicator(LayerCommunicator):
    def should_use_reduce_scatter(self, batch):
        return self.allowed and self.step is {steps}.scatter and {rest}
"""


def findings(tree: Path, *select: str) -> list[Finding]:
    report = run(Options((str(tree),), load_profile("sglang"), select=select))
    return [finding for finding in report.findings if finding.rule == "MOE402"]


def with_override(folder: Path, steps: str, rest: str) -> Path:
    tree = write_tree(folder, ROUTED)
    (tree / "layers" / "communicator.py").write_text(BASE)
    (tree / "models" / "own.py").write_text(OVERRIDE.format(steps=steps, rest=rest))
    return tree


def test_an_override_of_the_same_step_that_lost_a_skip_reason_is_reported(tmp_path: Path) -> None:
    (finding,) = findings(with_override(tmp_path, "Steps", "batch.padded"))
    assert finding.message == (
        "this override of `should_use_reduce_scatter` has lost `should_use_dp_reduce_scatterv()`, "
        "which the other definition asks"
    )


@pytest.mark.parametrize(
    ("steps", "rest"),
    [("OwnSteps", "batch.padded"), ("Steps", "should_use_dp_reduce_scatterv()")],
    ids=["steps-of-its-own", "another-condition"],
)
def test_an_override_that_may_be_meant_is_reported_when_asked_for(steps: str, rest: str, tmp_path: Path) -> None:
    tree = with_override(tmp_path, steps, rest)
    assert findings(tree) == []
    (finding,) = findings(tree, "MOE402")
    assert (finding.severity.value, finding.confidence.value) == ("warning", "low")


def test_a_copy_that_lost_a_group_size_is_reported_with_a_configuration(tmp_path: Path) -> None:
    tree = write_tree(tmp_path, ROUTED)
    utils = tree / "layers" / "moe" / "utils.py"
    text = utils.read_text()
    asked = "_DP_SCATTER and get_moe_a2a_backend().is_none()"
    whole = "get_attention_dp_size() > 1 and get_tp_world_size() == get_attention_dp_size()"
    utils.write_text(text.replace(asked, whole))
    (tree / "plugin.py").write_text(
        f"def should_use_dp_reduce_scatterv():\n    return get_attention_dp_size() > 1\n\n\n# beside {HELPER_NAME}\n"
    )
    (finding,) = findings(tree)
    assert Path(finding.path).name == "plugin.py"
    assert str(finding.witness).startswith("with `get_attention_dp_size() > 1` true (for example `--tp 4 --dp 2 ")


def test_two_whole_definitions_are_no_drift(tmp_path: Path) -> None:
    case = next(case for case in CopiedPredicate.VALID if case.name == "a-whole-copy")
    assert isinstance(case, Case)
    for name, text in case.files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert findings(tmp_path, "MOE402") == []


PROMISE = """\
class LayerCommunicator:
    def should_use_reduce_scatter(self, batch):
        for row in batch:
            if row.padded:
                return True
        return False
"""


def not_boolean(tree: Path, *select: str) -> list[str]:
    report = run(Options((str(tree),), load_profile("sglang"), select=select))
    problems = [p for p in report.problems if p.reason is SkipReason.PREDICATE_NOT_BOOLEAN]
    assert not any(problem.failed for problem in problems)
    return [f"{Path(p.path).name}:{p.line}: {p.message.partition(':')[0]}" for p in problems]


@pytest.mark.parametrize(
    ("select", "told"),
    [
        (("MOE401",), ["communicator.py:3: `should_use_reduce_scatter` is not a boolean function"]),
        (("MOE402",), ["communicator.py:3: `should_use_reduce_scatter` is not a boolean function"]),
        (("MOE401", "MOE402"), ["communicator.py:3: `should_use_reduce_scatter` is not a boolean function"]),
        (("MOE403",), []),
    ],
)
def test_a_promise_that_is_no_boolean_function_is_said_to_be_unjudged(
    select: tuple[str, ...], told: list[str], tmp_path: Path
) -> None:
    tree = write_tree(tmp_path, ROUTED)
    (tree / "layers" / "communicator.py").write_text(PROMISE)
    assert not_boolean(tree, *select) == told


@pytest.mark.parametrize(("rule", "told"), [("MOE401", 0), ("MOE402", 1), ("MOE403", 1)])
def test_a_predicate_of_the_helper_that_is_no_boolean_function_is_said_to_be_unjudged(
    rule: str, told: int, tmp_path: Path
) -> None:
    tree = write_tree(tmp_path, ROUTED)
    utils = tree / "layers" / "moe" / "utils.py"
    body = "    return _DP_SCATTER and get_moe_a2a_backend().is_none()\n"
    assert body in utils.read_text()
    utils.write_text(utils.read_text().replace(body, f"    log(_DP_SCATTER)\n{body}"))
    messages = not_boolean(tree, rule)
    assert len(messages) == told
    assert all(message.endswith("`should_use_dp_reduce_scatterv` is not a boolean function") for message in messages)


def test_nothing_is_said_of_predicates_that_could_be_read(tmp_path: Path) -> None:
    assert not_boolean(write_tree(tmp_path, ROUTED), "MOE401", "MOE402", "MOE403") == []
