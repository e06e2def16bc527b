"""Just enough of ClickHouse's grammar to find where a statement's data, format and pipe go.

Nothing here decides what a user may do: that is read from the engine's own parse (see guard).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from chdb_http.errors import ClickHouseError

_TOKEN = re.compile(
    r"""(?P<space>\s+|--[^\n]*|\#[!\ ][^\n]*|/\*.*?\*/)
    |(?P<string>'(?:[^'\\]|\\.|'')*')
    |(?P<quoted>`(?:[^`\\]|\\.|``)*`|"(?:[^"\\]|\\.|"")*")
    |(?P<heredoc>\$(?P<tag>\w*)\$.*?\$(?P=tag)\$)
    |(?P<word>[A-Za-z_\x80-\xff][\w$\x80-\xff]*)
    |(?P<number>\d[\w.]*)
    |(?P<punct>.)""",
    re.S | re.X | re.A,
)


def names(text: str) -> frozenset[str]:
    """A set of names from a text with spaces between them."""
    return frozenset(text.split())


# After one of these an identifier is expected, so the word FORMAT is a name and no clause.
_EXPECTS_NAME = names(
    """SELECT BY AS ON FROM WHERE PREWHERE HAVING QUALIFY AND OR NOT IN LIKE ILIKE BETWEEN WHEN
    THEN ELSE CASE USING JOIN TABLE DISTINCT LIMIT OFFSET INTERVAL IS SETTINGS COLUMN DATABASE
    VIEW DICTIONARY EXISTS DESCRIBE DESC WITH"""
)
_PRODUCES_ROWS = names("""SELECT WITH FROM SHOW DESCRIBE DESC EXISTS EXPLAIN CHECK""")
# Their SETTINGS belong to the output, behind its file and format; a SELECT's are its own.
_SETTINGS_LAST = names("SHOW DESCRIBE DESC EXISTS CHECK")


@dataclass(frozen=True, slots=True)
class Token:
    """One lexeme and where it stands."""

    kind: str
    text: str
    start: int
    end: int

    @property
    def word(self) -> str:
        """The upper-case text of a bare word, else nothing."""
        return self.text.upper() if self.kind == "word" else ""


@dataclass(frozen=True)
class Insert:
    """An INSERT whose rows come with the request, split at the places that matter (characters)."""

    format: str
    clause: int
    keyword: int
    data: int
    source: tuple[int, int] | None
    structure: str | None


def tokens(text: str) -> Iterator[Token]:
    """The statement's lexemes, without spaces and comments."""
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup or "punct"
        if kind == "tag":
            kind = "heredoc"
        if kind != "space":
            yield Token(kind, match[0], match.start(), match.end())


def split(items: Iterable[Token]) -> Iterator[list[Token]]:
    """The parts of a list between its commas; those in parentheses and brackets are not its own."""
    depth = 0
    part: list[Token] = []
    for token in items:
        if token.kind == "punct":
            depth += (token.text in "([{") - (token.text in ")]}")
        if token.text == "," and not depth:
            yield part
            part = []
        else:
            part.append(token)
    yield part


def _close(items: Iterator[Token]) -> list[Token]:
    """The tokens up to the parenthesis that closes the one just read, without it."""
    depth = 1
    inner: list[Token] = []
    for token in items:
        if token.text == "(":
            depth += 1
        elif token.text == ")":
            depth -= 1
            if not depth:
                return inner
        inner.append(token)
    raise ClickHouseError(62, "SYNTAX_ERROR", "Syntax error: unmatched parentheses")


def _after_format(text: str, at: int) -> int:
    """Where data begins behind a format's name: spaces and at most one line end are skipped."""
    while at < len(text) and text[at] in " \t\f":
        at += 1
    if text[at : at + 2] == "\r\n":
        return at + 2
    return at + 1 if text[at : at + 1] == "\n" else at


def find_insert(text: str) -> Insert | None:
    """Split an INSERT that takes rows from the request; None for any other statement.

    Reads no further than the format's name, so the text may end in binary data or in the middle of
    it. Raises ClickHouseError for FROM INFILE, for an ``input()`` without FORMAT, and as the server
    for a semicolon right behind the format's name.
    """
    stream = tokens(text)
    token = next(stream, None)
    depth = 0
    if token and token.word == "WITH":
        for token in stream:
            depth += (token.text == "(") - (token.text == ")")
            if not depth and token.word in ("INSERT", "SELECT", "FORMAT"):
                break
    if token is None or token.word != "INSERT":
        return None
    previous, depth, selects = token, 0, False
    settings: int | None = None
    source: tuple[int, int] | None = None
    structure: str | None = None
    token = next(stream, None)
    while token and token.word in ("INTO", "TABLE"):
        token = next(stream, None)
    if token and token.word == "FUNCTION":
        token = next(stream, None)
    # The target's name is stepped over, so that a table may be called like a clause.
    while token:
        if token.text == "{":
            while token and token.text != "}":
                token = next(stream, None)
        token = next(stream, None)
        if token is None or token.text != ".":
            break
        token = next(stream, None)
    while token:
        word = token.word
        if token.text == "(":
            if previous.word == "INPUT" and selects and source is None:
                inner = _close(stream)
                end = next(stream, None)
                last = inner[-1].end if inner else token.end
                source = (previous.start, text.index(")", last) + 1)
                structure = text[token.end : last]
                previous, token = Token("punct", ")", source[1] - 1, source[1]), end
                continue
            depth += 1
        elif token.text == ")":
            depth -= 1
        elif word == "SELECT" or (depth == 0 and word == "WITH"):
            selects = True
        elif depth == 0 and word == "FROM" and not selects:
            following = next(stream, None)
            if following and following.word == "INFILE":
                raise ClickHouseError(
                    48, "NOT_IMPLEMENTED", "FROM INFILE is not available over HTTP: send the data"
                )
            selects, previous, token = True, token, following
            continue
        elif depth == 0 and word == "SETTINGS" and not selects:
            settings = token.start
        elif depth == 0 and word == "VALUES" and not selects:
            clause = token.start if settings is None else settings
            return Insert("Values", clause, token.start, token.end, None, None)
        elif depth == 0 and word == "FORMAT" and not _expects_name(previous):
            name = next(stream, None)
            if name and name.kind == "word":
                if selects and source is None:
                    return None
                if text[name.end : name.end + 1] == ";":
                    raise ClickHouseError(
                        62, "SYNTAX_ERROR", "You have excessive ';' symbol before data for INSERT"
                    )
                clause = token.start if settings is None else settings
                data = _after_format(text, name.end)
                return Insert(name.text, clause, token.start, data, source, structure)
            previous, token = token, name
            continue
        previous, token = token, next(stream, None)
    if source is not None:
        raise ClickHouseError(36, "BAD_ARGUMENTS", "FORMAT must be specified for function input()")
    return None


def _expects_name(previous: Token) -> bool:
    if previous.kind == "punct":
        return previous.text not in ")]}*"
    return previous.word in _EXPECTS_NAME


def ends_early(rows: str) -> bool:
    """Does something stand behind the semicolon that ends the rows of INSERT … VALUES?"""
    if ";" not in rows.rstrip("; \t\r\n"):
        return False
    items = tokens(rows)
    return any(item.text == ";" for item in items) and any(item.text != ";" for item in items)


@dataclass(frozen=True)
class Statement:
    """A statement without data: where its output's clauses stand and whether it gives rows."""

    text: str
    word: str
    format: str | None
    rows: bool
    body: str
    settings: str

    @property
    def piped(self) -> bool:
        """Does its result go through a pipe? EXPLAIN's is short, and a clause added behind the
        explained statement may become part of that one."""
        return self.rows and self.word != "EXPLAIN"

    def into(self, path: str, default_format: str) -> str:
        """The statement, writing its result to a path of this process."""
        clause = f"INTO OUTFILE {quote(path)} TRUNCATE FORMAT {self.format or default_format}"
        return f"{self.body}\n{clause} {self.settings}".rstrip()


def read_statement(text: str) -> Statement:
    """Split a statement at its FORMAT clause.

    Raises ClickHouseError for an empty one, an open quote, several statements at once and INTO
    OUTFILE.
    """
    items = list(tokens(text))
    while items and items[-1].text == ";":
        items.pop()
    if not items:
        raise ClickHouseError(62, "SYNTAX_ERROR", "Syntax error: Empty query")
    text = text[: items[-1].end]
    for item in items:
        # What is put behind the statement would stand inside its string.
        if item.kind == "punct" and item.text in "'\"`":
            raise ClickHouseError(
                62, "SYNTAX_ERROR", f"Syntax error: a quote is not closed at position {item.end}"
            )
    if any(item.text == ";" for item in items if item.kind == "punct"):
        raise ClickHouseError(62, "SYNTAX_ERROR", "Syntax error (Multi-statements are not allowed)")
    word = next((item.word for item in items if item.text != "("), "")
    name, after, depth = None, "", 0
    clause = settings = len(text)
    for at, item in enumerate(items):
        if item.kind == "punct":
            depth += (item.text in "([{") - (item.text in ")]}")
        if depth or not item.word or at == 0:
            continue
        if item.word == "INTO" and at + 1 < len(items) and items[at + 1].word == "OUTFILE":
            raise ClickHouseError(
                48, "NOT_IMPLEMENTED", "INTO OUTFILE is not allowed over HTTP: read the answer"
            )
        if item.word == "SETTINGS" and word in _SETTINGS_LAST and at + 2 < len(items):
            settings = item.start if items[at + 2].text == "=" else settings
        if item.word != "FORMAT" or _expects_name(items[at - 1]) or at + 1 >= len(items):
            continue
        following = items[at + 2] if at + 2 < len(items) else None
        if items[at + 1].kind == "word" and (following is None or following.word == "SETTINGS"):
            name, clause, after = items[at + 1].text, item.start, text[items[at + 1].end :]
    rows = word in _PRODUCES_ROWS
    if word == "WITH" and any(item.word == "INSERT" for item in items):
        rows = False
    # Either may stand first.
    before = text[min(settings, clause) : clause]
    return Statement(
        text, word, name, rows, text[: min(settings, clause)].rstrip(), (before + after).strip()
    )


def quote(value: str) -> str:
    """A string literal."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def identifier(name: str) -> str:
    """A name in quotes."""
    return "`" + name.replace("\\", "\\\\").replace("`", "``") + "`"


def unquote(text: str) -> str:
    """What a literal or a name in quotes stands for; other text is itself."""
    if not text or text[0] not in "'`\"":
        return text
    return re.sub(r"\\(.)", r"\1", text[1:-1].replace(text[0] * 2, text[0]), flags=re.S)
