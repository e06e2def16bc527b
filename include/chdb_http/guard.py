"""What a user's statement may do, read from the engine's own parse of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from chdb_http.engine import Connection
from chdb_http.errors import ClickHouseError
from chdb_http.sql import names, tokens

# Table functions that read nothing but the warehouse and their own arguments.
READER_TABLE_FUNCTIONS = names(
    """numbers numbers_mt zeros zeros_mt generaterandom generateseries generate_series values null
    view merge primes fuzzjson"""
)
# Functions that reach files, networks, secrets or this process.
OUTSIDE_FUNCTIONS = names(
    """file catboostevaluate getserversetting getmacro showcertificate addresstoline
    addresstolinewithinlines addresstosymbol demangle naivebayesclassifier
    naivebayesclassifierwithprob naivebayesclassifierwithallprobs aiclassify aiembed aiextract
    aifilter aigenerate airedact aisimilarity aitranslate getclienthttpheader eval python"""
)
# Settings whose value is a statement, a grammar, a path, an address or a right.
_DENIED_SETTING = re.compile(
    r"readonly|allow_ddl|allow_introspection|additional_|custom_key|dialect|implicit_select|promql"
    r"|schema|template|path|file|url|proxy|storage_|distributed_ddl|ast_fuzzer|execute_as|^ai_"
    r"|impersonate|named_collection",
    re.I,
)
_HARMLESS_SETTING = re.compile(
    r"use_hive_partitioning|schema_inference|use_.*cache|engine_file_", re.I
)
SECRET_TABLES = names(
    """named_collections processes query_log query_thread_log query_views_log text_log session_log
    trace_log server_settings users roles certificates stack_trace asynchronous_inserts
    user_processes crash_log processors_profile_log opentelemetry_span_log query_cache part_log
    dictionaries backup_log backups s3queue azure_queue kafka_consumers handlers macros"""
)
_SYSTEM = frozenset({"system"})
READER_REFUSED_NODES = frozenset({"ShowProcesslistQuery", "ParallelWithQuery", "ExecuteAsQuery"})

# For the owner: what takes a path as its first argument, what takes an address, what runs programs.
_PATHS = names("file filecluster filesystem filelog")
_ADDRESSES = frozenset({"url", "urlcluster"})
_PROGRAMS = names(
    """executable executablepool python catboostevaluate sqlite deltalakelocal iceberglocal
    iceberglocalcluster paimonlocal eval"""
)
_OWNER_SUSPECTS = _PATHS | _ADDRESSES | _PROGRAMS | names("apply dictionary engine attach")
PATH_SETTINGS = names(
    "format_schema output_format_schema format_template_row format_template_resultset"
)

_NODE = re.compile(r"^( *)(\S+)(?: +(.*))?$", re.S)
_SUFFIX = re.compile(r" ?\((?:alias .*|children \d+)\)")


@dataclass
class _Node:
    kind: str
    rest: str
    children: list[_Node] = field(default_factory=list)
    parent: _Node | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        return _SUFFIX.sub("", self.rest).strip().lower()

    def walk(self) -> Iterator[_Node]:
        yield self
        for child in self.children:
            yield from child.walk()

    @property
    def arguments(self) -> list[_Node]:
        return self.children[0].children if self.children else []

    @property
    def literal(self) -> str | None:
        """The text of a string literal, else None."""
        text = _SUFFIX.sub("", self.rest).strip()
        if self.kind == "Literal" and len(text) > 1 and text[0] == text[-1] == "'":
            return re.sub(r"\\(.)", r"\1", text[1:-1])
        return None


def _tree(connection: Connection, sql: str, params: Mapping[str, str]) -> _Node:
    root = _Node("", "")
    stack = [(-1, root)]
    for line in connection.text(f"EXPLAIN AST {sql}", params).split("\n"):
        if not (match := _NODE.match(line)):
            continue
        depth = len(match[1])
        while stack[-1][0] >= depth:
            stack.pop()
        node = _Node(match[2], match[3] or "", parent=stack[-1][1])
        stack[-1][1].children.append(node)
        stack.append((depth, node))
    return root


def _words(sql: str) -> set[str]:
    """Every name in the text, unquoted and in lower case."""
    return {
        token.text.strip('`"').lower() for token in tokens(sql) if token.kind in ("word", "quoted")
    }


def _readonly(what: str) -> ClickHouseError:
    return ClickHouseError(164, "READONLY", f"Cannot execute query in readonly mode: {what}.")


def check_reader(
    connection: Connection,
    sql: str,
    params: Mapping[str, str],
    database: str,
    outside: frozenset[str],
) -> None:
    """Let a read-only user's statement pass only if all it does is read the warehouse.

    ``outside`` are the engine's table functions, in lower case, that are no scalar functions.
    Raises ClickHouseError 164 for anything else.
    """
    kind, count = connection.classify(sql)
    tree = _tree(connection, sql, params)
    if count != 1 or kind != "READ_ONLY":
        raise _readonly("only statements that read are allowed")
    refused = OUTSIDE_FUNCTIONS | (outside - READER_TABLE_FUNCTIONS)
    for node in tree.walk():
        if node.kind in READER_REFUSED_NODES:
            raise _readonly(f"{node.kind} is not allowed")
        if node.kind == "Function":
            table = node.parent is not None and node.parent.kind == "TableExpression"
            if node.name in refused or (table and node.name not in READER_TABLE_FUNCTIONS):
                raise _readonly(f"function {node.name} is not allowed")
            if table and node.name == "merge":
                first = node.arguments[0].literal if len(node.arguments) > 1 else database
                if first is None or not re.fullmatch(r"\w+", first) or first.lower() in _SYSTEM:
                    raise _readonly("merge() takes the name of one database that is not system")
        elif node.kind in ("TableIdentifier", "Identifier"):
            _check_reader_name(node, database)
        elif node.kind == "ColumnsApplyTransformer":
            # The tree does not name the function, so no such name may stand in the text.
            words = _words(sql)
            if words & refused or any("\\" in word for word in words):
                raise _readonly("APPLY of this function is not allowed")


def _check_reader_name(node: _Node, database: str) -> None:
    name = node.name.replace("`", "")
    scope, _, table = name.rpartition(".")
    if "/" in name and node.kind == "TableIdentifier":
        raise _readonly(f"table {name} is not allowed")
    qualified = scope in _SYSTEM
    bare = node.kind == "TableIdentifier" and not scope and database.lower() in _SYSTEM
    if table in SECRET_TABLES and (qualified or bare):
        raise _readonly(f"system.{table} is not allowed")


def check_reader_settings(settings: Iterable[str]) -> None:
    """Raises ClickHouseError 164 for a setting a read-only user must not change."""
    for name in settings:
        if (_DENIED_SETTING.search(name) and not _HARMLESS_SETTING.search(name)) or "\\" in name:
            raise ClickHouseError(
                164, "READONLY", f"Cannot modify '{name}' setting in readonly mode"
            )


def _inside(path: str, base: Path | None, roots: tuple[Path, ...]) -> bool:
    candidate = Path(path.removeprefix("file://"))
    if not candidate.is_absolute():
        if base is None:
            return False
        candidate = base / candidate
    if ".." in candidate.parts:
        return False
    # A pattern's fixed part decides; what a pattern may match lies below it.
    fixed = re.split(r"[*?{\[]", str(candidate))[0]
    if fixed != str(candidate):
        fixed = fixed.rpartition("/")[0]
    resolved = Path(fixed).resolve()
    return any(resolved == root or root in resolved.parents for root in roots)


def check_owner(
    connection: Connection,
    sql: str,
    params: Mapping[str, str],
    base: Path | None,
    allowed: tuple[Path, ...],
) -> None:
    """Keep the owner's file access inside the configured folders, and programs out.

    Raises ClickHouseError 291 (DATABASE_ACCESS_DENIED) naming what was refused.
    """
    words = _words(sql)
    if words & PATH_SETTINGS:
        raise _denied("a setting that names a file")
    if not words & _OWNER_SUSPECTS and not any("\\" in word for word in words):
        return
    kind, _ = connection.classify(sql)
    if kind == "UNKNOWN":
        # It will not run either; the engine says why.
        return
    roots = tuple(path.resolve() for path in allowed)
    for node in _tree(connection, sql, params).walk():
        if node.kind == "Function":
            _check_function(node, base, roots)
        elif node.kind == "FunctionWithKeyValueArguments":
            if node.name.startswith("executable"):
                raise _denied(f"dictionary source {node.name}")
            if node.name in ("file", "http"):
                literals = [item.literal for item in node.walk() if item.literal]
                paths = [text for text in literals if text[0] in "/." or text.startswith("file:")]
                if node.name == "file" and not paths:
                    raise _denied("a dictionary's file")
                for path in paths:
                    if not _inside(path, None, roots):
                        raise _denied(f"'{path}'")
        elif node.kind == "ColumnsApplyTransformer" and words & (_PATHS | _PROGRAMS):
            raise _denied("APPLY of a file function")


def _check_function(node: _Node, base: Path | None, roots: tuple[Path, ...]) -> None:
    name = node.name
    parent = node.parent.kind if node.parent else ""
    if parent == "BackupQuery":
        # The engine holds these inside backups.allowed_path.
        return
    if name in _PROGRAMS:
        raise _denied(f"{name}()")
    if parent == "Storage":
        if name.startswith(("replicated", "shared")):
            return
        for item in node.walk():
            text = item.literal
            if text and (text[0] in "/." or text.startswith("file:")):
                if not _inside(text, None, roots):
                    raise _denied(f"'{text}'")
            elif text and name in _PATHS and item is not node.arguments[0]:
                raise _denied(f"'{text}'")
        if name == "filesystem" and not node.arguments:
            raise _denied("a Filesystem database")
        return
    if name in _PATHS:
        path = node.arguments[0].literal if node.arguments else None
        if path is None or not _inside(path, base, roots):
            raise _denied(f"{name}({'' if path is None else repr(path)})")
    elif name in _ADDRESSES:
        address = node.arguments[0].literal if node.arguments else None
        if address is None:
            raise _denied(f"{name}() of an expression")
        if not re.match(r"https?://", address, re.I) and not _inside(address, None, roots):
            raise _denied(f"{name}('{address}')")


def _denied(what: str) -> ClickHouseError:
    return ClickHouseError(
        291, "DATABASE_ACCESS_DENIED", f"{what} is outside the folders this endpoint may use."
    )
