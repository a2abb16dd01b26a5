"""The law on real releases: verdicts that are known, and a launch configuration behind every claim of wrong numbers."""

from __future__ import annotations

import pytest

from moe_lint.model import Severity
from tests.corpus.releases import judged


def verdicts(version: str) -> dict[tuple[str, str, str], tuple[str, str | None]]:
    return {
        (row.path.rsplit("/", 1)[-1], row.function, row.axis): (row.law.verdict, row.law.configuration)
        for row in judged(version).rows
        if row.law is not None
    }


SCATTERED = "`--tp 2 --dp 2 --ep 2 --enable-dp-attention`"
PADDED = "in a batch padded to the longest rank"


@pytest.mark.parametrize(
    ("version", "site", "configuration"),
    [
        ("0.5.10.post1", ("qwen3_moe.py", "forward_normal", "EP"), f"{SCATTERED} {PADDED}"),
        ("0.5.10.post1", ("minimax_m2.py", "forward_normal", "TP"), f"`--tp 2 --dp 2 --enable-dp-attention` {PADDED}"),
        ("0.5.11", ("gpt_oss.py", "forward_normal", "TP"), SCATTERED),
        ("0.5.11", ("longcat_flash.py", "forward", "TP"), SCATTERED),
        ("0.5.11", ("step3p5.py", "forward", "TP"), SCATTERED),
    ],
)
def test_a_known_bug_is_a_doubled_sum_in_the_configuration_that_showed_it(
    version: str, site: tuple[str, str, str], configuration: str
) -> None:
    assert verdicts(version)[site] == ("doubled", configuration)


def test_a_sum_that_the_helper_skips_on_one_axis_only_is_doubled_where_the_dispatcher_sums() -> None:
    found = verdicts("0.5.11")
    verdict, configuration = found["qwen3_moe.py", "forward_normal", "EP"]
    assert (verdict, str(configuration).count("--quantization modelopt_fp4")) == ("doubled", 1)
    assert found["qwen3_moe.py", "forward_normal", "TP"] == ("once", None)


@pytest.mark.parametrize("version", ["0.5.10.post1", "0.5.11"])
@pytest.mark.parametrize("model", ["mixtral.py", "dbrx.py", "deepseek.py", "ernie4.py", "hunyuan.py", "xverse_moe.py"])
def test_a_model_without_an_absorber_sums_once(version: str, model: str) -> None:
    assert {found for (path, *_), found in verdicts(version).items() if path == model} == {("once", None)}


def test_a_boundary_that_publishes_its_flags_and_the_blocks_in_it_take_turns() -> None:
    rows = [row for row in judged("0.5.21").rows if row.law is not None]
    laws = [row.law.verdict for row in rows if row.law is not None]
    assert (laws.count("once"), laws.count("undecided")) == (41, 10)
    doubled = {row.path.rsplit("/", 1)[-1] for row in rows if row.law is not None and row.law.verdict == "doubled"}
    assert doubled == {
        "modeling.py", "longcat_flash.py", "minimax_m3.py", "step3p5.py",  # MOE001
        "utils.py", "bailing_moe_v3.py", "deepseek_v2.py", "qwen3_moe.py",  # the helper on the EP axis: MOE403
    }  # fmt: skip


def test_a_block_that_every_layer_tells_to_leave_the_sum_is_summed_once() -> None:
    assert {found for (path, *_), found in verdicts("0.5.23").items() if path == "qwen2_moe.py"} == {("once", None)}


def test_a_block_that_a_next_token_head_does_not_tell_is_not_left_to_the_boundary() -> None:
    found = {verdict for (path, *_), (verdict, _) in verdicts("0.5.23").items() if path == "iquest_q1.py"}
    assert found == {"undecided"}


def test_behind_the_stage_boundary_nothing_is_called_doubled_or_lost() -> None:
    assert {verdict for verdict, _ in verdicts("0.5.23").values()} == {"once", "undecided"}


@pytest.mark.parametrize("version", ["0.5.3", "0.5.9", "0.5.10.post1", "0.5.11", "0.5.15", "0.5.20", "0.5.21"])
def test_every_claim_of_wrong_numbers_names_a_launch_configuration(version: str) -> None:
    errors = [f for f in judged(version).findings if f.severity is Severity.ERROR]
    assert errors
    silent = [(f.rule, f.path, f.span.line) for f in errors if "`--" not in f"{f.message} {f.witness}"]
    assert silent == []
