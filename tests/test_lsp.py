"""`moe-lint lsp`: sessions of a real client, over the server's standard input and output."""

from __future__ import annotations

import asyncio
import gc
import re
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from lsprotocol import types as lsp
from pygls.exceptions import JsonRpcException
from pygls.lsp.client import LanguageClient

from tests.runs import moe_lint
from tests.trees import COMPLETE, FORGETFUL, HELPER_NAME, ROUTED, model, write_tree

PAIR = (
    "if self.ep_size > 1 and not use_reduce_scatter:\n    x = moe_expert_parallel_all_reduce(x)\n"
    "if self.tp_size > 1 and not use_reduce_scatter:\n    x = tensor_model_parallel_all_reduce(x)\n"
)


class Client(LanguageClient):
    """A client that keeps what the server publishes, and how it ended."""

    def __init__(self) -> None:
        super().__init__("test", "1")
        self.published: dict[str, list[lsp.Diagnostic]] = {}
        self.messages: list[str] = []
        self.exit_status: int | None = None
        self.news = asyncio.Event()

        @self.feature(lsp.TEXT_DOCUMENT_PUBLISH_DIAGNOSTICS)
        def _(parameters: lsp.PublishDiagnosticsParams) -> None:
            self.published[parameters.uri] = list(parameters.diagnostics)
            self.news.set()

        @self.feature(lsp.WINDOW_SHOW_MESSAGE)
        def _(parameters: lsp.ShowMessageParams) -> None:
            self.messages.append(parameters.message)

    async def server_exit(self, server: asyncio.subprocess.Process) -> None:
        self.exit_status = server.returncode

    async def after(self, act: Callable[[], None], *paths: Path) -> list[list[str]]:
        """The codes published for these files after an action."""
        for path in paths:
            self.published.pop(path.as_uri(), None)
        act()
        while any(path.as_uri() not in self.published for path in paths):
            self.news.clear()
            await asyncio.wait_for(self.news.wait(), 30)
        return [[str(d.code) for d in self.published[path.as_uri()]] for path in paths]

    def open(self, path: Path, text: str | None = None) -> None:
        source = path.read_text() if text is None else text
        document = lsp.TextDocumentItem(path.as_uri(), "python", 1, source)
        self.text_document_did_open(lsp.DidOpenTextDocumentParams(document))

    def type(self, path: Path, text: str) -> None:
        document = lsp.VersionedTextDocumentIdentifier(uri=path.as_uri(), version=2)
        whole = lsp.TextDocumentContentChangeWholeDocument(text)
        self.text_document_did_change(lsp.DidChangeTextDocumentParams(document, [whole]))

    def save(self, path: Path) -> None:
        self.text_document_did_save(lsp.DidSaveTextDocumentParams(lsp.TextDocumentIdentifier(path.as_uri())))

    async def actions(self, path: Path, line: int) -> list[lsp.CodeAction]:
        here = lsp.Range(lsp.Position(line - 1, 20), lsp.Position(line - 1, 20))
        context = lsp.CodeActionContext(self.published[path.as_uri()])
        parameters = lsp.CodeActionParams(lsp.TextDocumentIdentifier(path.as_uri()), here, context)
        found = await self.text_document_code_action_async(parameters)
        return [action for action in found or [] if isinstance(action, lsp.CodeAction)]

    async def hover(self, path: Path, line: int, column: int) -> str | None:
        place = lsp.Position(line - 1, column - 1)
        found = await self.text_document_hover_async(lsp.HoverParams(lsp.TextDocumentIdentifier(path.as_uri()), place))
        if found is None:
            return None
        assert isinstance(found.contents, lsp.MarkupContent)
        return found.contents.value


def session(tree: Path, talk: Callable[[Client], Awaitable[None]], *arguments: str) -> Client:
    """Start the server, talk to it, stop it in good order."""

    async def run() -> Client:
        client = Client()
        await client.start_io(sys.executable, "-m", "moe_lint", "lsp", "--no-cache", *arguments, cwd=str(tree))
        capabilities = lsp.ClientCapabilities(general=lsp.GeneralClientCapabilities(position_encodings=["utf-16"]))
        await client.initialize_async(lsp.InitializeParams(capabilities, root_uri=tree.as_uri()))
        client.initialized(lsp.InitializedParams())
        try:
            await talk(client)
        finally:
            await client.shutdown_async(None)
            client.exit(None)
            await client.stop()
        assert client.exit_status == 0  # after a shutdown, anything else is an error to an editor
        return client

    return asyncio.run(asyncio.wait_for(run(), 120))


def applied(text: str, edit: lsp.WorkspaceEdit | None, path: Path) -> str:
    assert edit is not None
    assert edit.changes is not None
    lines = text.splitlines(keepends=True)
    for one in sorted(edit.changes[path.as_uri()], key=lambda e: e.range.start.line, reverse=True):
        assert (one.range.start.character, one.range.end.character) == (0, 0)
        lines[one.range.start.line : one.range.end.line] = [one.new_text]
    return "".join(lines)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    write_tree(tmp_path, FORGETFUL)
    return tmp_path


def test_what_is_wrong_is_shown_on_open_and_gone_on_close(tree: Path) -> None:
    path = tree / "engine/models/x.py"

    async def talk(client: Client) -> None:
        assert await client.after(lambda: client.open(path), path) == [["MOE001"]]
        (found,) = client.published[path.as_uri()]
        assert (found.source, found.severity) == ("moe-lint", lsp.DiagnosticSeverity.Error)
        assert (found.range.start, found.range.end) == (lsp.Position(24, 16), lsp.Position(24, 51))
        assert "with `should_use_dp_reduce_scatterv()` true" in found.message
        assert found.related_information is not None
        assert found.related_information[0].location.uri == (tree / "engine/layers/moe/utils.py").as_uri()
        closed = lsp.DidCloseTextDocumentParams(lsp.TextDocumentIdentifier(path.as_uri()))
        assert await client.after(lambda: client.text_document_did_close(closed), path) == [[]]

    session(tree, talk)


def test_a_saved_helper_is_what_all_open_files_are_judged_by(tree: Path) -> None:
    path, helper = tree / "engine/models/x.py", tree / "engine/layers/moe/utils.py"

    async def talk(client: Client) -> None:
        await client.after(lambda: client.open(path), path)
        await client.after(lambda: client.open(helper), helper)
        path.write_text(model(COMPLETE))
        client.type(path, model(COMPLETE))
        assert await client.after(lambda: client.save(path), path) == [["MOE001"]]
        (found,) = client.published[path.as_uri()]
        assert found.severity == lsp.DiagnosticSeverity.Warning
        text = helper.read_text().replace("    if should_use_dp_reduce_scatterv():\n        return True\n", "")
        helper.write_text(text)
        client.type(helper, text)
        await client.after(lambda: client.save(helper), path, helper)
        (found,) = client.published[path.as_uri()]
        assert found.severity == lsp.DiagnosticSeverity.Error

    session(tree, talk)


def test_unsaved_text_is_what_counts(tree: Path) -> None:
    path = tree / "engine/models/x.py"

    async def talk(client: Client) -> None:
        assert await client.after(lambda: client.open(path, model(ROUTED)), path) == [[]]

    session(tree, talk)


@pytest.mark.parametrize(("guard", "line"), [(FORGETFUL, 25), (PAIR, 25), (PAIR, 27)])
def test_a_quick_fix_repairs_the_file(tree: Path, guard: str, line: int) -> None:
    path = tree / "engine/models/x.py"
    path.write_text(model(guard))

    async def talk(client: Client) -> None:
        await client.after(lambda: client.open(path), path)
        fix, *silence = await client.actions(path, line)
        assert (fix.kind, fix.is_preferred, fix.edit) == (lsp.CodeActionKind.QuickFix, True, None)
        assert fix.title.startswith(f"moe-lint: use `{HELPER_NAME}` (stops reducing for ")
        assert all("with a comment" in action.title for action in silence)
        resolved = await client.code_action_resolve_async(fix)
        after = applied(path.read_text(), resolved.edit, path)
        assert after.count(f"not {HELPER_NAME}(") == guard.count("if ")
        path.write_text(after)
        client.type(path, after)
        assert await client.after(lambda: client.save(path), path) == [[]]
        assert await client.actions(path, line) == []

    session(tree, talk)


def test_a_finding_can_be_silenced(tree: Path) -> None:
    path = tree / "engine/models/x.py"

    async def talk(client: Client) -> None:
        await client.after(lambda: client.open(path), path)
        silence = (await client.actions(path, 25))[-1]
        resolved = await client.code_action_resolve_async(silence)
        after = applied(path.read_text(), resolved.edit, path)
        assert "            # moe-lint: ignore[MOE001] not looked at yet\n" in after
        client.type(path, after)
        assert await client.after(lambda: client.save(path), path) == [[]]

    session(tree, talk)


def test_columns_are_counted_as_the_client_counts_them(tree: Path) -> None:
    path = tree / "engine/models/x.py"
    path.write_text(model("y = '𝔘𝔘'; x = tensor_model_parallel_all_reduce(x)\n"))

    async def talk(client: Client) -> None:
        await client.after(lambda: client.open(path), path)
        start = path.read_text().splitlines()[23].index("tensor")
        (found,) = client.published[path.as_uri()]
        assert found.range.start == lsp.Position(23, start + 2)  # each of the two letters is two units of UTF-16
        assert await client.hover(path, 24, start + 2) is None
        assert await client.hover(path, 24, start + 3) is not None

    session(tree, talk)


def test_a_form_feed_ends_no_line(tree: Path) -> None:
    path = tree / "engine/models/x.py"
    text = model("y = '𝔘'; x = tensor_model_parallel_all_reduce(x)\n")
    path.write_text(text.replace("import annotations\n", "import annotations\n\x0c\n# a\u2028b\n"))

    async def talk(client: Client) -> None:
        await client.after(lambda: client.open(path), path)
        (found,) = client.published[path.as_uri()]
        start = path.read_text().split("\n")[25].index("tensor") + 1
        end = start + len("tensor_model_parallel_all_reduce(x)")
        assert found.range == lsp.Range(lsp.Position(25, start), lsp.Position(25, end))
        assert await client.hover(path, 26, start + 2) is not None

    session(tree, talk)


def test_a_path_with_odd_characters_is_told_as_the_client_writes_it(tmp_path: Path) -> None:
    tree = tmp_path / "a b#ü%41"
    tree.mkdir()
    write_tree(tree, FORGETFUL)
    path = tree / "engine/models/x.py"

    async def talk(client: Client) -> None:
        assert await client.after(lambda: client.open(path), path) == [["MOE001"]]
        assert await client.hover(path, 25, 30) is not None
        action, _ = await client.actions(path, 25)
        resolved = await client.code_action_resolve_async(action)
        assert HELPER_NAME in applied(path.read_text(), resolved.edit, path)

    session(tree, talk)


def test_another_revision_of_a_file_is_not_taken_for_it(tree: Path) -> None:
    path = tree / "engine/models/x.py"

    async def talk(client: Client) -> None:
        await client.after(lambda: client.open(path), path)
        for address in (path.as_uri().replace("file://", "git:"), "untitled:Untitled-1"):
            document = lsp.TextDocumentItem(address, "python", 1, model(ROUTED))
            client.text_document_did_open(lsp.DidOpenTextDocumentParams(document))
        assert await client.after(lambda: client.save(path), path) == [["MOE001"]]
        closed = lsp.TextDocumentIdentifier("untitled:Untitled-1")
        client.text_document_did_close(lsp.DidCloseTextDocumentParams(closed))
        assert await client.after(lambda: client.save(path), path) == [["MOE001"]]

    assert session(tree, talk).messages == []


def test_hovering_over_a_reduction_shows_witness_and_truth_table(tree: Path) -> None:
    path = tree / "engine/models/x.py"

    async def talk(client: Client) -> None:
        await client.after(lambda: client.open(path), path)
        text = await client.hover(path, 25, 30)
        assert text is not None
        assert (
            "(TP) sums the experts' output. It decides by hand when to run; compared with the helper it is **weaker**"
            in text
        )
        assert "Wrong: with `should_use_dp_reduce_scatterv()` true" in text
        rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in text.splitlines() if row.startswith("|")]
        head = [cell.strip("`") for cell in rows[0]]
        assert head[:4] == sorted(head[:4])
        states = {
            tuple(name for name, cell in zip(head, row, strict=False) if cell == "true"): row[4:] for row in rows[2:]
        }
        assert len(states) == 16
        assert states[()] == ["reduces", "reduces", ""]
        assert states["should_use_dp_reduce_scatterv()",] == ["skips", "reduces", "summed twice"]
        assert states["use_reduce_scatter",] == ["skips", "skips", ""]
        assert await client.hover(path, 1, 1) is None

    session(tree, talk)


def test_the_option_that_editors_add_to_a_servers_command_is_taken(tree: Path) -> None:
    path = tree / "engine/models/x.py"

    async def talk(client: Client) -> None:
        assert await client.after(lambda: client.open(path), path) == [["MOE001"]]

    session(tree, talk, "--stdio")


def test_a_broken_file_is_told_where_it_breaks_and_a_new_one_that_it_must_be_saved(tree: Path) -> None:
    path, new = tree / "engine/models/x.py", tree / "engine/models/new.py"

    async def talk(client: Client) -> None:
        broken = "def f(: tensor_model_parallel_all_reduce(experts)\n"
        assert await client.after(lambda: client.open(path, broken), path) == [["syntax-error"]]
        assert client.published[path.as_uri()][0].range.start.line == 0
        assert await client.after(lambda: client.open(new, broken), new) == [[]]

    client = session(tree, talk)
    assert [m for m in client.messages if "not on the disk yet; save it first" in m] != []


def test_the_configuration_is_read_and_a_bad_one_told(tree: Path) -> None:
    path = tree / "engine/models/x.py"
    (tree / "moe-lint.toml").write_text('ignore = ["MOE001"]\n')

    async def talk(client: Client) -> None:
        assert await client.after(lambda: client.open(path), path) == [[]]
        (tree / "moe-lint.toml").write_text("ignored = []\n")
        assert await client.after(lambda: client.save(path), path) == [[]]

    client = session(tree, talk)
    assert "moe-lint: moe-lint.toml: unknown key 'ignored'; did you mean 'ignore'?" in client.messages

    async def isolated(client: Client) -> None:
        assert await client.after(lambda: client.open(path), path) == [["MOE001"]]

    session(tree, isolated, "--isolated")


def test_an_offer_for_a_text_that_has_changed_is_refused(tree: Path) -> None:
    path = tree / "engine/models/x.py"

    async def talk(client: Client) -> None:
        await client.after(lambda: client.open(path), path)
        fix, *_ = await client.actions(path, 25)
        client.type(path, f"# new\n{path.read_text()}")
        with pytest.raises(JsonRpcException, match="the text has changed since"):
            await client.code_action_resolve_async(fix)
        assert await client.actions(path, 25) == []

    session(tree, talk)


def test_an_offer_for_what_is_no_longer_found_is_refused(tree: Path) -> None:
    path, utils = tree / "engine/models/x.py", tree / "engine/layers/moe/utils.py"

    async def talk(client: Client) -> None:
        await client.after(lambda: client.open(path), path)
        fix, _ = await client.actions(path, 25)
        reasons = re.compile(r"    if should_use_dp_reduce_scatterv.*?    return False\n", re.DOTALL)
        utils.write_text(reasons.sub("", utils.read_text()))
        await client.after(lambda: client.save(path), path)
        with pytest.raises(JsonRpcException, match="what was found here has changed since: ask again"):
            await client.code_action_resolve_async(fix)

    session(tree, talk)


def test_a_bad_request_is_one_line_and_exit_two() -> None:
    result = moe_lint("lsp", "--config", "nowhere.toml")
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert "nowhere.toml: cannot be read" in result.stderr


def test_without_the_extra_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['pygls'] = None; from moe_lint.cli import main; main(['lsp'])"
    done: Any = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        2,
        "moe-lint: error: the language server needs pygls: install moe-lint[lsp]\n",
    )


def test_a_session_gives_back_what_its_judgements_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """A single run never collects garbage; a session that did not either grew by megabytes with every save."""
    collected: list[bool] = []

    class Server:
        def start_io(self) -> None:
            collected.append(gc.isenabled())

    monkeypatch.setattr("moe_lint.language_server.serve", lambda editor: Server())
    gc.disable()
    try:
        assert moe_lint("lsp", "--isolated").exit_code == 0
    finally:
        gc.enable()
    assert collected == [True]
