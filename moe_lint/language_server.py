"""`moe-lint lsp`: the editor session over the Language Server Protocol. Needs the extra `lsp` (pygls)."""

from __future__ import annotations

import io
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from lsprotocol import types as lsp
from pygls.exceptions import JsonRpcInvalidParams
from pygls.lsp.server import LanguageServer

from moe_lint.editor import Editor, Judged, Repair
from moe_lint.model import Finding, Problem, Replacement, Severity, Span, UsageError

_SEVERITY = {
    Severity.ERROR: lsp.DiagnosticSeverity.Error,
    Severity.WARNING: lsp.DiagnosticSeverity.Warning,
    Severity.INFO: lsp.DiagnosticSeverity.Information,
}
_SOURCE = "moe-lint"


class Server(LanguageServer):
    """Judges every open file when one is opened or saved: a saved helper changes what its users are told."""

    def __init__(self, editor: Editor) -> None:
        super().__init__(_SOURCE, version("moe-lint"), text_document_sync_kind=lsp.TextDocumentSyncKind.Full)
        self.editor = editor
        #: the files that are open, by the address as the client writes it: pygls keeps them by another
        self.open: dict[str, None] = {}
        #: uri -> (version of the text, what was found in it)
        self.judged: dict[str, tuple[int | None, Judged]] = {}
        self._told: set[str] = set()

    def judge_all(self) -> None:
        """Judge the open files and publish what is found."""
        for uri in self.open:
            self.editor.hold(path_of(uri), self.source(uri))
        for uri in self.open:
            document = self.workspace.get_text_document(uri)
            try:
                judged = self.editor.judge(path_of(uri))
            except UsageError as error:
                self.judged.pop(uri, None)
                self._tell(str(error))
                self._publish(uri, document.version, [])
                continue
            self.judged[uri] = (document.version, judged)
            report = judged.report
            own = [
                problem for problem in report.problems if Path(problem.path).resolve() == Path(path_of(uri)).resolve()
            ]
            for problem in report.problems:
                if problem.failed and problem not in own:
                    self._tell(f"{problem.path}:{problem.line}: {problem.message}")
            found = [self._diagnostic(uri, finding) for finding in report.findings]
            self._publish(uri, document.version, found + [self._problem(problem) for problem in own])

    def _tell(self, message: str) -> None:
        """Say once what keeps files from being judged."""
        if message not in self._told:
            self._told.add(message)
            parameters = lsp.ShowMessageParams(lsp.MessageType.Error, f"moe-lint: {message}")
            self.window_show_message(parameters)

    def _publish(self, uri: str, version_: int | None, found: list[lsp.Diagnostic]) -> None:
        parameters = lsp.PublishDiagnosticsParams(uri, found, version_)
        self.text_document_publish_diagnostics(parameters)

    def _diagnostic(self, uri: str, finding: Finding) -> lsp.Diagnostic:
        parts = [finding.message, finding.witness, finding.remedy]
        related = [
            lsp.DiagnosticRelatedInformation(
                lsp.Location(Path(one.path).resolve().as_uri(), _line(one.line)), one.message
            )
            for one in finding.related
        ]
        return lsp.Diagnostic(
            range=self.range(uri, finding.span),
            message="\n".join(part for part in parts if part),
            severity=_SEVERITY[finding.severity],
            code=finding.rule,
            source=_SOURCE,
            tags=[lsp.DiagnosticTag.Unnecessary] if finding.rule == "MOE901" else None,
            related_information=related or None,
        )

    def _problem(self, problem: Problem) -> lsp.Diagnostic:
        level = lsp.DiagnosticSeverity.Error if problem.failed else lsp.DiagnosticSeverity.Information
        return lsp.Diagnostic(_line(problem.line), problem.message, level, problem.reason.value, source=_SOURCE)

    def source(self, uri: str) -> str:
        return str(self.workspace.get_text_document(uri).source)

    def range(self, uri: str, span: Span) -> lsp.Range:
        """A span in the units that the client counts columns in."""
        document = self.workspace.get_text_document(uri)
        start, end = lsp.Position(span.line - 1, span.column - 1), lsp.Position(span.end_line - 1, span.end_column - 1)
        return document.position_codec.range_to_client_units(_lines(document.source), lsp.Range(start, end))

    def current(self, uri: str) -> Judged | None:
        """What was found in a file, if the text is still the one that was judged."""
        known = self.judged.get(uri)
        if known is None or known[1].text != self.source(uri):
            return None
        return known[1]

    def edit(self, uri: str, replacements: tuple[Replacement, ...]) -> lsp.WorkspaceEdit:
        edits = [lsp.TextEdit(self.range(uri, one.span), one.text) for one in replacements]
        return lsp.WorkspaceEdit(changes={uri: edits})


def path_of(uri: str) -> str:
    """The absolute path of a file's address."""
    return str(Path(url2pathname(urlsplit(uri).path)).resolve())


def _lines(source: str) -> list[str]:
    """The lines as the protocol counts them: a form feed ends none, though it does for ``str.splitlines``."""
    return list(io.StringIO(source, newline=""))


def _line(line: int) -> lsp.Range:
    return lsp.Range(lsp.Position(max(line - 1, 0), 0), lsp.Position(max(line, 1), 0))


def serve(editor: Editor) -> Server:
    """A server with all its features; start it with ``start_io()``."""
    server = Server(editor)

    @server.feature(lsp.TEXT_DOCUMENT_DID_OPEN)
    def _(ls: Server, parameters: lsp.DidOpenTextDocumentParams) -> None:
        uri = parameters.text_document.uri
        if urlsplit(uri).scheme == "file":  # not another revision of a file (`git:`), nor one without a name
            ls.open[uri] = None
            ls.judge_all()

    @server.feature(lsp.TEXT_DOCUMENT_DID_SAVE)
    def _(ls: Server, parameters: lsp.DidSaveTextDocumentParams) -> None:
        ls.judge_all()

    @server.feature(lsp.TEXT_DOCUMENT_DID_CLOSE)
    def _(ls: Server, parameters: lsp.DidCloseTextDocumentParams) -> None:
        uri = parameters.text_document.uri
        if uri not in ls.open:
            return
        del ls.open[uri]
        ls.editor.forget(path_of(uri))
        ls.judged.pop(uri, None)
        ls.text_document_publish_diagnostics(lsp.PublishDiagnosticsParams(uri, []))

    options = lsp.CodeActionOptions([lsp.CodeActionKind.QuickFix], resolve_provider=True)

    @server.feature(lsp.TEXT_DOCUMENT_CODE_ACTION, options)
    def _(ls: Server, parameters: lsp.CodeActionParams) -> list[lsp.CodeAction]:
        uri, only = parameters.text_document.uri, parameters.context.only
        judged = ls.current(uri)
        if judged is None or (only and not any(lsp.CodeActionKind.QuickFix.startswith(kind) for kind in only)):
            return []
        first, last = parameters.range.start.line + 1, parameters.range.end.line + 1
        return [
            _offer(ls, uri, repair, (first, last, number))
            for number, repair in enumerate(ls.editor.repairs(judged, first, last))
        ]

    @server.feature(lsp.CODE_ACTION_RESOLVE)
    def _(ls: Server, action: lsp.CodeAction) -> lsp.CodeAction:
        data: Any = action.data
        uri, first, last, number = data["uri"], data["first"], data["last"], data["number"]
        judged = ls.current(uri)
        if judged is None:
            raise JsonRpcInvalidParams("the text has changed since: save it and ask again")
        repairs = list(ls.editor.repairs(judged, first, last))
        if number >= len(repairs) or repairs[number].title != action.title:  # another file was saved since
            raise JsonRpcInvalidParams("what was found here has changed since: ask again")
        repair = repairs[number]
        try:
            action.edit = ls.edit(uri, ls.editor.edits(judged, repair))
        except UsageError as error:
            raise JsonRpcInvalidParams(str(error)) from None
        return action

    @server.feature(lsp.TEXT_DOCUMENT_HOVER)
    def _(ls: Server, parameters: lsp.HoverParams) -> lsp.Hover | None:
        uri = parameters.text_document.uri
        judged = ls.current(uri)
        if judged is None:
            return None
        document = ls.workspace.get_text_document(uri)
        place = document.position_codec.position_from_client_units(_lines(document.source), parameters.position)
        text = ls.editor.hover(judged, path_of(uri), place.line + 1, place.character + 1)
        return lsp.Hover(lsp.MarkupContent(lsp.MarkupKind.Markdown, text)) if text is not None else None

    return server


def _offer(ls: Server, uri: str, repair: Repair, place: tuple[int, int, int]) -> lsp.CodeAction:
    first, last, number = place
    return lsp.CodeAction(
        title=repair.title,
        kind=lsp.CodeActionKind.QuickFix,
        diagnostics=[ls._diagnostic(uri, finding) for finding in repair.findings],
        is_preferred=repair.preferred or None,
        data={"uri": uri, "first": first, "last": last, "number": number},
    )
