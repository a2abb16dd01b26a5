"""`--add-ignores`: every finding gets a comment with a reason, once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.runs import moe_lint
from tests.trees import FORGETFUL, model

SUM = "    x = tensor_model_parallel_all_reduce(x)\n"
PAIR = f"if self.ep_size > 1 and not use_reduce_scatter:\n    x = moe_expert_parallel_all_reduce(x)\n{FORGETFUL}"


def put(forgetful: Path, guard: str, newline: str = "\n") -> Path:
    path = forgetful / "engine/models/x.py"
    path.write_bytes(model(guard).replace("\n", newline).encode())
    return path


def comments(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text().splitlines() if "moe-lint" in line]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize(
    "guard",
    [
        FORGETFUL,
        PAIR,
        "if not use_reduce_scatter: x = tensor_model_parallel_all_reduce(x)\n",
        "x = x if use_reduce_scatter else tensor_model_parallel_all_reduce(\n    x\n)\n",
        "if (\n    self.tp_size > 1  # why\n    and not use_reduce_scatter\n):\n" + SUM,
        "if self.tp_size > 1 \\\n  and not use_reduce_scatter:\n" + SUM,
        "if not use_reduce_scatter:\n    x = \\\n        tensor_model_parallel_all_reduce(x)\n",
        "if not use_reduce_scatter:\n    y = '''\n''', tensor_model_parallel_all_reduce(x)\n",
        "if not use_reduce_scatter:\n    # moe-lint: ignore[MOE006] known\n" + SUM,
        "if not use_reduce_scatter:\n" + SUM.replace("\n", "  # noqa  # moe-lint: ignore[MOE006] known\n"),
    ],
)
def test_every_finding_is_silenced_once_and_the_code_stays(forgetful: Path, guard: str, newline: str) -> None:
    path = put(forgetful, guard, newline)
    before = path.read_text()
    assert [f["rule"] for f in json.loads(moe_lint("--format", "json", "engine").stdout)["findings"]]
    result = moe_lint("--add-ignores", "--reason", "known since #12", "--ignore", "MOE901", "engine")
    assert (result.exit_code, result.stderr) == (0, "")
    assert moe_lint("--ignore", "MOE901", "engine").exit_code == 0
    assert compile(path.read_text(), "x", "exec").co_consts is not None
    strip = [line.split("#")[0].rstrip() for line in path.read_text().splitlines()]
    assert [line for line in strip if line] == [
        line for line in (line.split("#")[0].rstrip() for line in before.splitlines()) if line
    ]
    assert (b"\r\n" in path.read_bytes()) == (newline == "\r\n")
    assert path.read_bytes().count(b"\n") == path.read_bytes().count(newline.encode())
    once = path.read_bytes()
    assert moe_lint("--add-ignores", "--reason", "another", "--ignore", "MOE901", "engine").exit_code == 0
    assert path.read_bytes() == once


def test_the_comment_stands_above_the_reduction_with_the_reason(forgetful: Path) -> None:
    path = put(forgetful, FORGETFUL)
    told = moe_lint("--add-ignores", "--reason", "known since #12", "engine").stdout
    assert "silenced 1 finding in 1 file" in told
    assert "            # moe-lint: ignore[MOE001] known since #12\n            x = tensor" in path.read_text()


def test_without_a_reason_the_comment_says_that_nobody_looked(forgetful: Path) -> None:
    path = put(forgetful, FORGETFUL)
    assert moe_lint("--add-ignores", "engine").exit_code == 0
    assert comments(path) == ["# moe-lint: ignore[MOE001] not looked at yet"]


def test_findings_at_one_place_share_a_comment(forgetful: Path) -> None:
    path = put(forgetful, PAIR)
    moe_lint("--add-ignores", "engine")
    assert comments(path)[0] == "# moe-lint: ignore[MOE001, MOE101] not looked at yet"


def test_a_comment_that_is_there_gets_the_code_and_keeps_its_reason(forgetful: Path) -> None:
    path = put(
        forgetful,
        PAIR.replace("parallel_all_reduce(x)\n", "parallel_all_reduce(x)  # moe-lint: ignore[MOE101] ours\n", 1),
    )
    moe_lint("--add-ignores", "--reason", "other", "engine")
    assert comments(path)[0].endswith("# moe-lint: ignore[MOE101, MOE001] ours")


def test_findings_about_comments_are_left(forgetful: Path) -> None:
    path = put(forgetful, FORGETFUL.replace("if self", "# moe-lint: nonsense\nif self"))
    assert moe_lint("--add-ignores", "engine").exit_code == 1
    assert "# moe-lint: nonsense" in comments(path)


def test_only_what_is_reported_is_silenced(forgetful: Path) -> None:
    put(forgetful, FORGETFUL)
    moe_lint("--baseline", "known.json", "--write-baseline", "engine")
    new = forgetful / "engine/models/y.py"
    new.write_text(model(FORGETFUL))
    assert moe_lint("--baseline", "known.json", "--add-ignores", "engine").exit_code == 0
    assert (len(comments(new)), comments(forgetful / "engine/models/x.py")) == (1, [])


def test_a_diff_of_it_changes_nothing(forgetful: Path) -> None:
    path = put(forgetful, FORGETFUL)
    before = path.read_bytes()
    result = moe_lint("--add-ignores", "--diff", "engine")
    assert (result.exit_code, path.read_bytes()) == (1, before)
    assert "+            # moe-lint: ignore[MOE001] not looked at yet\n" in result.stdout


def test_where_no_comment_fits_the_finding_is_named_and_left(forgetful: Path) -> None:
    guard = 'if not use_reduce_scatter: y = """\n""", tensor_model_parallel_all_reduce(x), """\n"""\n'
    path = put(forgetful, guard)
    before = path.read_bytes()
    result = moe_lint("--add-ignores", "engine")
    if path.read_bytes() == before:
        assert (result.exit_code, "there is no room for a comment" in result.stderr) == (1, True)
    else:
        assert result.exit_code == 0


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--add-ignores", "--reason", ""], "--reason: '' cannot stand in a comment"),
        (["--add-ignores", "--reason", "a\nb"], "--reason: 'a\\nb' cannot stand in a comment"),
        (["--add-ignores", "--reason", "why # noqa: E501"], "cannot stand in a comment"),
        (["--reason", "why"], "--reason is what --add-ignores writes: give that too"),
        (["--add-ignores", "--fix"], "--add-ignores and --fix do not go together"),
        (["--add-ignores", "--write-baseline"], "--write-baseline and --add-ignores do not go together"),
    ],
)
def test_a_wrong_request_is_one_line_and_exit_two(forgetful: Path, args: list[str], told: str) -> None:
    path = put(forgetful, FORGETFUL)
    before = path.read_bytes()
    result = moe_lint(*args, "engine")
    assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)
    assert told in result.stderr
    assert path.read_bytes() == before


def test_nothing_is_written_when_something_could_not_be_judged(forgetful: Path) -> None:
    path = put(forgetful, FORGETFUL)
    (forgetful / "engine/models/y.py").write_text("def f(: tensor_model_parallel_all_reduce(experts)")
    assert moe_lint("--add-ignores", "engine").exit_code == 2
    assert comments(path) == []
