"""What a user's statement may do, read from the engine's own parse of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from chdb_http.engine import Connection
from chdb_http.errors import ClickHouseError
from chdb_http.sql import tokens

# Table functions that read nothing but the warehouse and their own arguments.
READER_TABLE_FUNCTIONS = frozenset(
    ["numbers", "numbers_mt", "zeros", "zeros_mt", "generaterandom", "generateseries", "generate_series", "values", "null", "view", "merge", "primes", "viewifpermitted", "fuzzjson"]
)
# Functions that reach files, networks, or this process.
OUTSIDE_FUNCTIONS = frozenset(
    ["file", "catboostevaluate", "getserversetting", "getmacro", "showcertificate", "addresstoline", "addresstolinewithinlines", "addresstosymbol", "demangle", "naivebayesclassifier", "naivebayesclassifierwithprob", "naivebayesclassifierwithallprobs", "aiclassify", "aiembed", "aiextract", "aifilter", "aigenerate", "airedact", "aisimilarity", "aitranslate", "getclienthttpheader", "eval", "python"]
)
# Settings whose value is a statement, another grammar, or a right.
READER_SETTINGS_DENIED = frozenset(
    ["readonly", "allow_ddl", "allow_introspection_functions", "additional_table_filters", "additional_result_filter", "parallel_replicas_custom_key", "dialect", "implicit_select", "polyglot_dialect", "promql_database", "promql_table", "promql_evaluation_time", "storage_file_read_method", "format_schema_source", "format_schema"]
)
SECRET_TABLES = frozenset(
    ["named_collections", "processes", "query_log", "query_thread_log", "query_views_log", "text_log", "session_log", "trace_log", "server_settings", "users", "roles", "certificates", "stack_trace", "asynchronous_inserts", "user_processes", "crash_log", "processors_profile_log", "opentelemetry_span_log", "query_cache", "part_log", "dictionaries", "backup_log", "backups", "s3queue", "azure_queue", "kafka_consumers"]
)
READER_REFUSED_NODES = frozenset({"ShowProcesslistQuery", "ParallelWithQuery", "ExecuteAsQuery"})

# What names a path or runs a program, for the owner.
FILE_FUNCTIONS = frozenset({"file", "filecluster", "filesystem"})
OWNER_REFUSED = frozenset(
    ["executable", "executablepool", "python", "catboostevaluate", "sqlite", "deltalakelocal", "iceberglocal", "iceberglocalcluster", "paimonlocal"]
)
_OWNER_SUSPECTS = FILE_FUNCTIONS | OWNER_REFUSED | {"disk", "apply", "dictionary"}

_NODE = re.compile(r"^( *)(\S+)(?: +(.*))?$")


def _nodes(tree: str) -> Iterator[tuple[int, str, str]]:
    for line in tree.split("\n"):
        if match := _NODE.match(line):
            yield len(match[1]), match[2], (match[3] or "").strip()


def _name(rest: str) -> str:
    return re.sub(r" \((?:alias [^)]*|children \d+)\)", "", rest).strip().lower()


def _tree(connection: Connection, sql: str, params: Mapping[str, str]) -> str:
    return connection.text(f"EXPLAIN AST {sql}", params)


def _refuse(what: str) -> ClickHouseError:
    return ClickHouseError(164, "READONLY", f"Cannot execute query in readonly mode: {what}.")


def _words(sql: str) -> set[str]:
    """Every name in the text, unquoted and in lower case."""
    found = set()
    for token in tokens(sql):
        if token.kind in ("word", "quoted"):
            found.add(token.text.strip('`"').lower())
    return found


def check_reader(
    connection: Connection, sql: str, params: Mapping[str, str], database: str
) -> None:
    """Let a read-only user's statement pass only if all it does is read the warehouse.

    Raises ClickHouseError 164 for anything else.
    """
    kind, count = connection.classify(sql)
    if kind == "UNKNOWN":
        # The engine's own message about the syntax.
        _tree(connection, sql, params)
        raise _refuse("it does not parse")
    if count != 1 or kind != "READ_ONLY":
        raise _refuse("only statements that read are allowed")
    parent: dict[int, str] = {}
    for depth, node, rest in _nodes(_tree(connection, sql, params)):
        parent[depth] = node
        if node in READER_REFUSED_NODES:
            raise _refuse(f"{node} is not allowed")
        if node == "Function":
            name = _name(rest)
            if parent.get(depth - 1) == "TableExpression":
                if name not in READER_TABLE_FUNCTIONS:
                    raise _refuse(f"table function {name} is not allowed")
            elif name in OUTSIDE_FUNCTIONS:
                raise _refuse(f"function {name} is not allowed")
        elif node == "TableIdentifier":
            name = _name(rest).replace("`", "")
            scope, _, table = name.rpartition(".")
            if table in SECRET_TABLES and (scope or database.lower()) == "system":
                raise _refuse(f"system.{table} is not allowed")
        elif node == "ColumnsApplyTransformer":
            # The tree does not name the function, so no such name may stand in the text.
            words = _words(sql)
            if words & OUTSIDE_FUNCTIONS or any("\\" in word for word in words):
                raise _refuse("APPLY of this function is not allowed")


def check_reader_settings(names: Mapping[str, object] | set[str]) -> None:
    """Raises ClickHouseError 164 for a setting a read-only user must not change."""
    for name in names:
        if name.lower() in READER_SETTINGS_DENIED:
            raise ClickHouseError(
                164, "READONLY", f"Cannot modify '{name}' setting in readonly mode"
            )


def _inside(path: str, base: Path | None, allowed: tuple[Path, ...]) -> bool:
    candidate = Path(path)
    if not candidate.is_absolute():
        if base is None:
            return False
        candidate = base / candidate
    # A pattern's fixed part decides; what a pattern may match lies below it.
    fixed = re.split(r"[*?{\[]", str(candidate))[0]
    if fixed != str(candidate):
        fixed = fixed.rpartition("/")[0]
        if ".." in Path(str(candidate)).parts:
            return False
    resolved = Path(fixed).resolve()
    return any(resolved == root or root in resolved.parents for root in allowed)


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
    if not words & _OWNER_SUSPECTS and not any("\\" in word for word in words):
        return
    roots = tuple(path.resolve() for path in allowed)

    def refuse(what: str) -> ClickHouseError:
        return ClickHouseError(
            291, "DATABASE_ACCESS_DENIED", f"{what} is outside the folders this endpoint may use."
        )

    kind, _ = connection.classify(sql)
    if kind == "UNKNOWN":
        return
    parent: dict[int, str] = {}
    pending: tuple[int, str] | None = None
    backup = False
    for depth, node, rest in _nodes(_tree(connection, sql, params)):
        if pending is not None:
            at, name = pending
            if depth <= at:
                raise refuse(f"{name}()")
            if node == "ExpressionList" or (name == "dictionary source file" and node == "pair"):
                parent[depth] = node
                continue
            if node != "Literal" or not rest.startswith("'"):
                raise refuse(f"{name}() of an expression")
            path = rest.strip().removeprefix("'").removesuffix("'")
            if not _inside(path, base, roots):
                raise refuse(f"{name}('{path}')")
            pending = None
        parent[depth] = node
        if node == "BackupQuery":
            backup = True
        elif node == "Function":
            name = _name(rest)
            if name in OWNER_REFUSED:
                raise refuse(f"{name}()")
            if name in FILE_FUNCTIONS and not backup:
                if parent.get(depth - 1) == "Storage":
                    # ENGINE = File(format) keeps its data in the data folder; a path is an argument
                    # the engine takes on ATTACH only.
                    continue
                pending = (depth, name)
        elif node == "FunctionWithKeyValueArguments":
            name = _name(rest)
            if name in ("executable", "executable_pool"):
                raise refuse(f"dictionary source {name}")
            if name == "file":
                pending = (depth, "dictionary source file")
        elif node == "ColumnsApplyTransformer" and words & (FILE_FUNCTIONS | OWNER_REFUSED):
            raise refuse("APPLY of a file function")
    if pending is not None:
        raise refuse(f"{pending[1]}()")
