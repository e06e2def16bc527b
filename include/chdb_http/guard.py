"""What a user's statement may do, read from the engine's own parse of it.

The tree is the engine's (``parseQueryToJSON``); for the few statements it has none of, such as
DESCRIBE, it is read from ``EXPLAIN AST``. What the engine says of its functions, settings and
tables is read once, at start; whatever is not known to be harmless is refused.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chdb_http.config import Config
from chdb_http.engine import Connection, Engine
from chdb_http.errors import ClickHouseError, EngineError
from chdb_http.sql import names, read_statement

# Table functions that read nothing but the warehouse and their own arguments.
READER_TABLE_FUNCTIONS = names(
    """numbers numbers_mt zeros zeros_mt primes generaterandom generateseries generate_series values
    sqlstandardvalues null view viewexplain merge fuzzjson"""
)
# What the owner may call besides: more of the same, and what goes over the network.
_OWNER_TABLE_FUNCTIONS = READER_TABLE_FUNCTIONS | names(
    """format input loop dictionary fuzzquery viewifpermitted
    cluster clusterallreplicas remote remotesecure
    mergetreeanalyzeindexes mergetreeanalyzeindexesuuid mergetreecodecblockcounts mergetreeindex
    mergetreeprojection mergetreetextindex prometheusquery prometheusqueryrange timeseriesdata
    timeseriesmetricfamilies timeseriesmetrics timeseriessamples timeseriesselector timeseriestags
    azureblobstorage azureblobstoragecluster bigquery cosn deltalake deltalakeazure
    deltalakeazurecluster deltalakecluster deltalakes3 deltalakes3cluster gcs hdfs hdfscluster hudi
    hudicluster iceberg icebergazure icebergazurecluster icebergcluster iceberghdfs
    iceberghdfscluster icebergs3 icebergs3cluster mongodb mysql oss paimon paimonazure
    paimonazurecluster paimoncluster paimonhdfs paimonhdfscluster paimons3 paimons3cluster
    postgresql redis s3 s3cluster ytsaurus"""
)
# What takes a path or an address as its first argument, in any place of a statement.
_PATHS = names("file filecluster filesystem")
_ADDRESSES = names("url urlcluster")

# Categories of the engine's functions that compute with their arguments and nothing else.
_PURE_CATEGORIES = frozenset(
    {
        "Aggregate Functions", "Arithmetic", "Arrays", "Bit", "Bitmap", "Comparison", "Conditional",
        "Dates and Times", "Dictionary", "Distance", "Encoding", "Encryption", "Financial", "Geo",
        "Geo Polygon", "Hash", "IP Address", "JSON", "Logical", "Map", "Mathematical", "Null",
        "NumericIndexedVector", "QBit", "Random Number", "Rounding", "String",
        "String Replacement", "String Search", "String Splitting", "Time Series", "Time Window",
        "Tuple", "Type Conversion", "URL", "UUID",
    }
)  # fmt: skip
# Harmless ones of the other categories. Not here: what reads files, configuration, macros,
# certificates or headers, connects, or sees the process.
_PURE_FUNCTIONS = names(
    """_cast __actionname assigncentroid authenticateduser bar blocknumber blockserializedsize
    blocksize buildid bytesize casewithexpression colorsrgbtooklab colorsrgbtooklch colortooklch
    coloroklabtosrgb coloroklchtosrgb connectionid countdigits currentdatabase currentprofiles
    currentqueryid currentroles currentschemas currentuser defaultprofiles defaultroles
    defaultvalueofargumenttype defaultvalueoftypename digits displayname dumpcolumnstructure
    enabledprofiles enabledroles errorcodetoname evalmlmethod finalizeaggregation flipcoordinates
    formatquery formatqueryfromjson formatqueryornull formatquerysingleline
    formatquerysinglelineornull formatreadabledecimalsize formatreadablequantity formatreadablesize
    formatreadabletimedelta fqdn generaterandomstructure getmaxtablenamelengthfordatabase
    getmergetreesetting getsetting getsettingordefault getsizeofenumtype getsubcolumn
    gettypeserializationstreams globalvariable hierarchicalkmeans highlightquery hostname
    icebergbucket icebergtruncate identity ignore indexhint initializeaggregation initialqueryid
    initialquerystarttime isconstant isdecimaloverflow joinget joingetornull lowcardinalityindices
    lowcardinalitykeys macnumtostring macstringtonum macstringtooui materialize
    minsamplesizecontinuous minsamplesizeconversion neighbor nested normalizedqueryhash
    normalizedqueryhashkeepnames normalizequery normalizequerykeepnames obfuscatequery
    obfuscatequerywithseed parseiso8601duration parsequerytojson parsereadablesize
    parsereadablesizeornull parsereadablesizeorzero parsetimedelta partitionid pggetuserbyid
    pgtableisvisible queryid revision rownumberinallblocks rownumberinblock runningaccumulate
    runningconcurrency runningdifference runningdifferencestartingwithfirstvalue servertimezone
    serveruuid shardcount shardnum sleep sleepeachrow stochasticlinearregression
    stochasticlogisticregression structuretocapnprotoschema structuretoprotobufschema throwif
    tocolumntypename tokenizequery totypename transform uptime validatenestedarraysizes
    variantelement varianttype version visiblewidth"""
)

# Settings hold statements, paths, addresses and rights. Those of these types are refused to both
# users unless they stand below; other types hold numbers, switches and names from a list.
_TEXT_TYPES = frozenset({"String", "Map", "URI", "Dialect"})
_TEXT_SETTINGS = names(
    """ai_function_embedding_default_credentials ai_function_text_default_credentials
    bool_false_representation bool_true_representation chdb_client_name
    column_names_for_schema_inference compatibility count_distinct_implementation
    distributed_cache_client_id errors_output_format
    exclude_materialize_skip_indexes_on_insert filesystem_cache_name force_data_skipping_indices
    force_optimize_projection_name format_csv_null_representation format_custom_field_delimiter
    format_custom_result_after_delimiter format_custom_result_before_delimiter
    format_custom_row_after_delimiter format_custom_row_before_delimiter
    format_custom_row_between_delimiter format_json_object_each_row_column_for_object_name
    format_regexp format_schema_message_name format_template_rows_between_delimiter
    format_tsv_null_representation iceberg_metadata_compression_method ignore_data_skipping_indices
    input_format_mysql_dump_table_name input_format_orc_reader_time_zone_name
    insert_deduplication_token log_comment network_compression_method output_format_avro_codec
    output_format_avro_confluent_subject output_format_avro_string_column_pattern
    output_format_image_terminal_mode output_format_orc_writer_time_zone_name
    output_format_pretty_grid_charset output_format_sql_insert_table_name
    preferred_optimize_projection_name query_cache_tag
    query_plan_optimize_join_order_conflict_detector s3_upload_checksum_algorithm
    schema_inference_hints temporary_files_codec"""
)
# Of the remaining ones, what gives a read-only user more than it has.
_READER_DENIED = re.compile(
    r"readonly|allow_ddl|allow_introspection|allow_named_collection|implicit_|^ai_|execute_as"
    r"|impersonate|ast_fuzzer|fault_injection|fault_prob|fail_point|display_secrets|os_thread|priority|workload"
    r"|profiler|trace|perf_events|file_read_method|filesystem_read_method|distributed_ddl|proxy"
    r"|truncate_on_insert|create_new_file|compatibility$",
    re.I,
)
# A read-only user may lower these, and raise what has no bound anyway.
_LIMIT = re.compile(
    r"max_(memory_usage|execution_time|estimated|rows|bytes|result|columns|temporary|subquery|ast"
    r"|expanded|parser|query_size|concurrent|sessions|network|untracked|partitions|streams"
    r"|distributed|http|untracked)|memory_overcommit|timeout"
)

READER_SYSTEM_TABLES = names(
    """aggregate_function_combinators asynchronous_metrics build_options codecs collations columns
    completions constraints contributors current_roles data_skipping_index_types
    data_skipping_indices data_type_families database_engines databases dictionary_layouts
    dictionary_sources documentation enabled_roles events formats functions keywords licenses
    merge_tree_settings metrics numbers numbers_mt one parts parts_columns primes privileges
    projection_parts projection_parts_columns projections settings settings_changes table_engines
    table_functions tables time_zones tokenizers unicode user_defined_functions zeros zeros_mt"""
)
_READER_STATEMENTS = frozenset(
    {
        "SelectWithUnionQuery", "SelectQuery", "SelectIntersectExceptQuery", "ExplainQuery",
        "ShowTablesQuery", "ShowColumnsQuery", "ShowIndexesQuery", "TablesInSelectQuery",
        "SetQuery", "UseQuery",
    }
)  # fmt: skip
# These have no JSON. Their kind in EXPLAIN AST may end in the name they are about.
_READER_TEXTUAL = re.compile(
    r"DescribeQuery$|ShowFunctions$|ShowEngineQuery$|ShowSetting$"
    r"|(ShowCreate|Exists)(Table|View|Dictionary|Database)Query(_|$)"
)

_ENGINES = names(
    """alias buffer dictionary distributed fuzzjson generaterandom join keepermap log loop
    materializedview memory merge null remote remotesecure set stripelog timeseries tinylog view
    azureblobstorage azurequeue bigquery cosn deltalake deltalakeazure deltalakes3 gcs hdfs hudi
    iceberg icebergazure iceberghdfs icebergs3 kafka materializedpostgresql mongodb mysql nats oss
    paimon paimonazure paimonhdfs paimons3 postgresql rabbitmq redis s3 s3queue ytsaurus
    atomic lazy ordinary replicated"""
)

# Rows in the format Values may hold any expression.
VALUES_SETTINGS = names(
    """input_format_values_interpret_expressions
    input_format_values_deduce_templates_of_expressions"""
)

# Secrets of definitions which the engine does not hide from whoever may see the definition.
_SHOWN = re.compile(r"^mongodb(\+srv)?://[^/]*@|[?&]sig=", re.I)

_STREAMS = names("- stdin stdout stderr")

_WORD = re.compile(r"[a-z0-9_]+", re.A)
_SCOPE = re.compile(r": In scope SELECT parseQueryToJSON\(.*\)(?=\. \([A-Z_]+\)\s*$)", re.S)
# A setting's value that comes with the request.
_PARAMETER = re.compile(r"CustomType_\('AST', '\{\w+:\w+\}'\)")
_LINE = re.compile(r"^( *)(\S+)(?: +(.*))?$", re.S)
_SUFFIX = re.compile(r" ?\((?:alias .*|children \d+)\)")

type_ = "type"
Node = dict[str, Any]


# How many statements of readers are known to pass.
_REMEMBERED = 1024


def _nodes(tree: Any) -> Iterator[Node]:
    """Every node of a tree."""
    if isinstance(tree, dict):
        if type_ in tree:
            yield tree
        for value in tree.values():
            yield from _nodes(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _nodes(value)


def _name(node: Node) -> str:
    return str(node.get("name", "")).lower()


def _arguments(node: Node) -> list[Node]:
    arguments = node.get("arguments")
    return arguments.get("children", []) if isinstance(arguments, dict) else []


def _strings(tree: Any) -> Iterator[str]:
    """Every text that stands as a literal below."""
    if isinstance(tree, dict):
        if tree.get("field_type") == "String" and isinstance(tree.get("value"), str):
            yield tree["value"]
        for value in tree.values():
            yield from _strings(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _strings(value)


def _words(text: str) -> set[str]:
    # All runs of ASCII letters, in strings and comments too: more than the names, never fewer.
    return set(_WORD.findall(text.lower()))


def _readonly(what: str) -> ClickHouseError:
    return ClickHouseError(164, "READONLY", f"Cannot execute query in readonly mode: {what}.")


def _denied(what: str) -> ClickHouseError:
    return ClickHouseError(
        291, "DATABASE_ACCESS_DENIED", f"{what} is outside the folders this endpoint may use."
    )


def _shown(what: str) -> ClickHouseError:
    return ClickHouseError(
        291,
        "DATABASE_ACCESS_DENIED",
        f"{what} is shown to every reader of the definition: name the secret in an argument of its"
        " own, which the engine hides.",
    )


@dataclass(frozen=True)
class _Catalogue:
    """What the engine says of itself. Names are in lower case, but for settings."""

    refused: frozenset[str]
    table_functions: frozenset[str]
    system_tables: frozenset[str]
    denied_settings: frozenset[str]
    limits: Mapping[str, float]


def _read_catalogue(connection: Connection) -> _Catalogue:
    functions = [
        line.split("\t")
        for line in connection.text(
            "SELECT lower(f.name), if(f.alias_to = '', f.categories, t.categories),"
            " lower(if(f.alias_to = '', f.name, f.alias_to))"
            " FROM system.functions AS f LEFT JOIN system.functions AS t ON t.name = f.alias_to"
            " WHERE f.origin = 'System'"
        ).splitlines()
    ]
    tables = connection.text("SELECT lower(name) FROM system.table_functions").split()
    system = connection.text("SELECT name FROM system.tables WHERE database = 'system'").split()
    settings = [
        line.split("\t")
        for line in connection.text(
            "SELECT name, type, if(match(value, '^-?[0-9.]+$'), value, '') FROM system.settings"
        ).splitlines()
    ]
    return _Catalogue(
        refused=frozenset(
            name
            for name, category, target in functions
            if category not in _PURE_CATEGORIES and target not in _PURE_FUNCTIONS
        ),
        table_functions=frozenset(tables),
        system_tables=frozenset(system),
        denied_settings=frozenset(
            name for name, kind, _ in settings if kind in _TEXT_TYPES and name not in _TEXT_SETTINGS
        ),
        limits={
            name: float(value)
            for name, _, value in settings
            if value and float(value) > 0 and _LIMIT.search(name)
        },
    )


class Guard:
    """Decides what each user's statements may do, on connections of its own.

    Those know no one's settings and are read-only, so that nothing a session has set and no
    SETTINGS clause changes how a statement is read here.
    """

    def __init__(self, config: Config, engine: Engine) -> None:
        self._engine = engine
        self._base = config.user_files
        self._roots = tuple(path.resolve() for path in config.readable)
        self._backups = tuple(path.resolve() for path in config.backups)
        self._connections = engine.pool({"readonly": "1"})
        self._mutex = threading.Lock()
        self._passed: dict[bytes, bool] = {}
        connection = self._connections.take()
        self._known = _read_catalogue(connection)
        self._connections.give(connection)
        known = self._known
        self._reader_refused = known.refused | (
            # One of these names is also that of a function which only computes.
            known.table_functions - READER_TABLE_FUNCTIONS - frozenset({"format"})
        )
        self._owner_refused = known.table_functions - _OWNER_TABLE_FUNCTIONS - _PATHS - _ADDRESSES
        # A statement without any of these names reaches nothing outside and need not be parsed.
        self._suspects = (
            self._owner_refused
            | _PATHS
            | _ADDRESSES
            | known.denied_settings - names("format select sort order filter database compression")
            | names(
                """catboostevaluate engine attach settings set source disk infile outfile
                collection restore mongodb sig"""
            )
        )

    def close(self) -> None:
        """Close the guard's connections."""
        self._connections.close()

    def _parse(self, sql: str, params: Mapping[str, str]) -> Node:
        """The statement's tree, parameters in names resolved. Raises EngineError."""
        connection = self._connections.take()
        try:
            try:
                tree = _parsed(connection, sql)
            except EngineError as error:
                if error.code != 36:
                    raise EngineError(_SCOPE.sub("", error.message)) from None
                tree = _drawn(connection, sql, params)
            except RecursionError:
                raise ClickHouseError(
                    306, "TOO_DEEP_RECURSION", "The statement is nested too deeply to look through"
                ) from None
            except ValueError:
                raise ClickHouseError(62, "SYNTAX_ERROR", "Syntax error: no parse") from None
        finally:
            self._connections.give(connection)
        for node in _nodes(tree):
            if node[type_] in ("Identifier", "TableIdentifier"):
                _resolve(node, params)
            elif node[type_] == "QueryParameter" and node.get("param_type") == "String":
                value = params.get(node["name"])
                # With an escape in it, it stays a value that is not known.
                if value is not None and "\\" not in value:
                    node |= {type_: "Literal", "value": {"field_type": "String", "value": value}}
        if not isinstance(tree, dict):
            raise ClickHouseError(62, "SYNTAX_ERROR", "Syntax error: no parse")
        return tree

    def check_settings(self, settings: Mapping[str, str | None], read_only: bool) -> None:
        """May a user change these settings? None stands for a value that is not known.

        Raises ClickHouseError 164 for a read-only user's, 291 for the owner's.
        """
        for name, value in settings.items():
            if name == "dialect" and value == "clickhouse":
                continue
            if (
                (name in VALUES_SETTINGS and value not in ("0", "false", "False"))
                or name in self._known.denied_settings
                or (read_only and (_READER_DENIED.search(name) or not self._lowers(name, value)))
            ):
                if read_only:
                    raise ClickHouseError(
                        164, "READONLY", f"Cannot modify '{name}' setting in readonly mode"
                    )
                raise _denied(f"what the setting {name} may name")

    def _lowers(self, name: str, value: str | None) -> bool:
        limit = self._known.limits.get(name)
        if limit is None:
            return True
        try:
            number = float(value or "")
        except ValueError:
            return False
        return 0 < number <= limit

    def _check_changes(self, node: Node, read_only: bool) -> None:
        changes: dict[str, str | None] = {}
        for change in node.get("changes", []):
            value = change.get("value", {})
            text = value.get("value")
            custom = value.get("field_type") == "CustomType"
            if custom and not _PARAMETER.fullmatch(str(text)):
                raise _readonly("disk") if read_only else _denied("a disk of its own")
            unknown = custom or isinstance(text, (dict, list))
            changes[change["name"]] = None if unknown else str(text)
        for name in node.get("default_settings", []):
            limit = self._known.limits.get(name)
            changes[name] = None if limit is None else str(limit)
        self.check_settings(changes, read_only)

    # The reader

    def check_reader(
        self, connection: Connection, sql: str, params: Mapping[str, str], database: str
    ) -> bool:
        """Let a read-only user's statement pass only if all it does is read the warehouse.

        Returns whether it reads: other than SET, it then runs with ``readonly = 1``.
        Raises ClickHouseError 164 for anything else.
        """
        # The parse takes longer than a trivial query, and the same text always parses the same.
        asked = repr((sql, sorted(params.items()), database)).encode("utf-8", "backslashreplace")
        key = hashlib.blake2b(asked).digest()
        with self._mutex:
            reads = self._passed.get(key)
        if reads is None:
            reads = self._check_reader(connection, sql, params, database)
            with self._mutex:
                if len(self._passed) >= _REMEMBERED:
                    self._passed.clear()
                self._passed[key] = reads
        return reads

    def _check_reader(
        self, connection: Connection, sql: str, params: Mapping[str, str], database: str
    ) -> bool:
        kind, count = connection.classify(sql)
        tree = self._parse(sql, params)
        if count != 1 or (kind != "READ_ONLY" and tree[type_] not in ("SetQuery", "UseQuery")):
            raise _readonly("only statements that read are allowed")
        textual = tree.get("textual", False)
        if textual and not _READER_TEXTUAL.match(tree[type_]):
            raise _readonly(f"{tree[type_]} is not allowed")
        for node in _nodes(tree):
            kind = node[type_]
            if kind.endswith("Query") and kind not in _READER_STATEMENTS and not textual:
                raise _readonly(f"{kind} is not allowed")
            if node.get("out_file") or node.get("infile") or node.get("query_parameters"):
                raise _readonly("files and stored parameters are not allowed")
            if node.get("table_override"):
                raise _readonly("EXPLAIN TABLE OVERRIDE is not allowed")
            if kind == "Function":
                self._check_reader_function(node)
            elif kind == "ColumnsApplyTransformer":
                if str(node.get("func_name", "")).lower() in self._reader_refused or textual:
                    raise _readonly(f"APPLY({node.get('func_name', '')}) is not allowed")
            elif kind == "TableExpression":
                self._check_reader_source(node.get("table_function"), database)
            elif textual and kind == "Set":
                raise _readonly("SETTINGS in this statement are not allowed")
            elif kind in ("TableIdentifier", "Identifier"):
                self._check_reader_name(node, database)
            elif kind == "SetQuery":
                self._check_changes(node, read_only=True)
        return bool(tree[type_] != "SetQuery")

    def _check_reader_function(self, node: Node) -> None:
        name = _name(node)
        if name in self._reader_refused:
            raise _readonly(f"function {name} is not allowed")
        if name in self._known.table_functions:
            self._check_structures(node, read_only=True)

    def _check_reader_source(self, node: Node | None, database: str) -> None:
        if node is None:
            return
        name = _name(node)
        if name in self._known.table_functions - READER_TABLE_FUNCTIONS:
            raise _readonly(f"table function {name} is not allowed")
        if name == "merge":
            arguments = _arguments(node)
            first = database if len(arguments) < 2 else _literal(arguments[0])
            if first is None or not re.fullmatch(r"\w+", first) or first.lower() == "system":
                raise _readonly("merge() takes the name of one database that is not system")

    def _check_reader_name(self, node: Node, database: str) -> None:
        # However the engine divides a name, no part of it may lead to such a table.
        parts = [part for part in re.split(r"[.`\"]+", ".".join(node["parts"])) if part]
        if "/" in node["name"] and node[type_] == "TableIdentifier":
            raise _readonly(f"table {node['name']} is not allowed")
        if len(parts) > 1 and parts[0].lower() == "system":
            if parts[1].lower() not in READER_SYSTEM_TABLES:
                raise _readonly(f"{'.'.join(parts[:2])} is not allowed")
        elif parts and database.lower() == "system":
            table = parts[0].lower()
            secret = self._known.system_tables - READER_SYSTEM_TABLES
            if table in secret or table.endswith("_log"):
                raise _readonly(f"system.{table} is not allowed")

    # The owner

    def check_owner(self, sql: str, params: Mapping[str, str]) -> None:
        """Keep the owner's file access inside the configured folders, and programs out.

        Raises ClickHouseError 291 (DATABASE_ACCESS_DENIED) naming what was refused.
        """
        # A quoted name with an escape in it may be any name.
        if not _words(sql) & self._suspects and not re.search(r"[`\"][^`\"]*\\", sql):
            return
        tree = self._parse(sql, params)
        if "NamedCollection" in tree[type_]:
            raise _denied("a named collection")
        self._walk_owner(tree)

    def check_values(self, rows: bytes) -> bool:
        """May the rows of the owner's INSERT … VALUES be evaluated?

        False stands for rows that are no expressions the engine can read here: then they are taken
        as literals only. Raises ClickHouseError 291 for what the owner may not call.
        """
        text = rows.decode("utf-8", "replace").strip().rstrip(";")
        if not _words(text) & self._suspects and "\\" not in text:
            return True
        try:
            tree = self._parse(f"SELECT {text}", {})
        except ClickHouseError:
            return False
        self._walk_owner(tree)
        return True

    def _walk_owner(self, tree: Node) -> None:
        textual = tree.get("textual", False)
        backup = {
            id(inner)
            for node in _nodes(tree)
            if node.get("kind") in ("BACKUP_NAME", "TABLE_ENGINE", "DATABASE_ENGINE")
            for inner in _nodes(node)
            if inner[type_] == "Function"
        }
        if textual and any(node[type_] == "Set" for node in _nodes(tree)):
            raise _denied("SETTINGS in this statement")
        for node in _nodes(tree):
            kind = node[type_]
            if node.get("attach_from_path") or node.get("has_attach_from_path"):
                raise _denied("ATTACH … FROM a path")
            if node.get("infile") or node.get("out_file"):
                raise _denied("a file of the endpoint")
            if kind == "Function":
                place = node.get("kind")
                if place in ("TABLE_ENGINE", "DATABASE_ENGINE"):
                    self._check_engine(node)
                elif id(node) in backup:
                    # Engines hold their own rules; backups stay inside backups.allowed_path.
                    if place is None and _name(node) not in _PATHS:
                        self._check_owner_function(node, textual)
                else:
                    self._check_owner_function(node, textual)
            elif kind == "ColumnsApplyTransformer":
                name = str(node.get("func_name", "")).lower()
                if textual or name in self._owner_refused | _PATHS | _ADDRESSES:
                    raise _denied("APPLY of a file function")
            elif kind == "FunctionWithKeyValueArguments":
                self._check_source(node)
            elif kind == "SetQuery":
                self._check_changes(node, read_only=False)

    def _check_owner_function(self, node: Node, textual: bool) -> None:
        name = _name(node)
        if name in self._owner_refused or name == "catboostevaluate":
            raise _denied(f"{name}()")
        arguments = _arguments(node)
        if name in _PATHS:
            path = _literal(arguments[0]) if arguments else None
            if path is None or not self._inside(path):
                raise _denied(f"{name}({'' if path is None else repr(path)})")
        elif name in _ADDRESSES:
            address = _literal(arguments[0]) if arguments else None
            if address is None:
                raise _denied(f"{name}() of an expression")
            self._check_address(address)
        if name in self._known.table_functions:
            self._check_structures(node, read_only=False)
            if any(map(_SHOWN.search, _strings(arguments))):
                raise _shown(f"a secret in the address of {name}()")
            named = {_name(argument) for argument in arguments if "value" not in argument}
            if "values" in named | {text.lower() for text in _strings(arguments)}:
                raise _denied("the format Values, which holds expressions,")

    def _check_address(self, address: str) -> None:
        path = re.sub(r"^file://", "", address, flags=re.I)
        if not re.match(r"https?://", address, re.I) and not self._inside(path):
            raise _denied(f"'{address}'")

    def _check_structures(self, node: Node, read_only: bool) -> None:
        """A text that gives columns may give them defaults, which are expressions."""
        for argument in _arguments(node):
            for text in _strings(argument):
                if "(" not in text or not re.search(
                    r"default|materialized|alias|ephemeral", text, re.I
                ):
                    continue
                try:
                    tree = self._parse(f"CREATE TABLE t (\n{text}\n) ENGINE = Null", {})
                except ClickHouseError:
                    continue
                if read_only:
                    raise _readonly("a structure with defaults is not allowed")
                self._walk_owner(tree)

    def _check_engine(self, node: Node) -> None:
        name, arguments = _name(node), _arguments(node)
        literals = [_literal(argument) for argument in arguments]
        if name.endswith("mergetree") or name in _ENGINES:
            for text in literals:
                # The lakes take an address, which may be one of this machine's files.
                if text and text.lower().startswith("file:"):
                    self._check_address(text)
            self._check_structures(node, read_only=False)
        elif name in ("file", "filelog", "url") and "values" in {
            text.lower() for text in [*_strings(arguments), *map(_name, arguments)]
        }:
            raise _denied("the format Values, which holds expressions,")
        elif name == "file":
            if len(arguments) > 1 and (literals[1] is None or not self._inside(literals[1])):
                raise _denied(f"'{literals[1]}'")
            if not arguments or arguments[0][type_] not in ("Identifier", "Literal"):
                raise _denied("a File table of an expression")
        elif name == "filelog":
            if not literals or literals[0] is None or not self._inside(literals[0]):
                raise _denied(f"'{literals[0] if literals else ''}'")
        elif name == "url":
            if not literals or literals[0] is None:
                raise _denied("a URL table of an expression")
            self._check_address(literals[0])
        elif name == "embeddedrocksdb":
            if len(arguments) > 1:
                raise _denied("EmbeddedRocksDB of a path")
        elif name == "filesystem":
            if not literals or literals[0] is None or not self._inside(literals[0]):
                raise _denied(f"'{literals[0] if literals else ''}'")
        elif name == "backup":
            for text in list(_strings(node))[1:]:
                if not self._inside(text) and not _within(Path(text), self._backups):
                    raise _denied(f"'{text}'")
        else:
            raise _denied(f"the engine {node.get('name')}")

    def _check_source(self, node: Node) -> None:
        """A dictionary's source: where its rows come from, and statements in texts."""
        name = _name(node)
        if name.startswith("executable"):
            raise _denied(f"dictionary source {name}")
        found = False
        for pair in _nodes(node):
            if pair[type_] != "Pair":
                continue
            key, value = str(pair.get("first", "")).lower(), pair.get("second")
            if key == "headers":
                raise _shown("a dictionary's header")
            text = _literal(value) if isinstance(value, dict) else None
            if name in ("file", "http") and key in ("path", "url"):
                found = True
                if text is None:
                    raise _denied(f"a dictionary's {key}")
                if name == "http":
                    self._check_address(text)
                elif not text.startswith("/") or not self._inside(text):
                    raise _denied(f"'{text}'")
            elif key in ("query", "invalidate_query") and text is not None:
                self.check_owner(text, {})
            elif key == "where" and text is not None:
                self.check_owner(f"SELECT 1 WHERE\n{text}\n", {})
        if name in ("file", "http") and not found:
            raise _denied(f"a dictionary's {name}")

    def _inside(self, path: str) -> bool:
        candidate = Path(path)
        if not candidate.is_absolute():
            if self._base is None:
                return False
            candidate = self._base / candidate
        # Dots in a pattern's alternatives may climb, those of a range of numbers do not. What
        # follows `::` is a path inside an archive; the named ones are the process's own streams.
        if re.search(r"(?<!\d)\.\.|\.\.(?!\d)|::|\0", path) or path.lower() in _STREAMS:
            return False
        # A pattern's fixed part decides; what a pattern may match lies below it.
        fixed = re.split(r"[*?{\[]", str(candidate))[0]
        if fixed != str(candidate):
            candidate = Path(fixed.rpartition("/")[0])
        if not _within(candidate, self._roots):
            return False
        # A folder stands for all its files. By a link below, it or a pattern could lead out.
        return not candidate.is_dir() or all(
            _within(item, self._roots) for item in candidate.rglob("*") if item.is_symlink()
        )


def escape(text: str) -> str:
    """A text as the value of a query parameter, which the engine reads as a tab separated field."""
    return text.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n")


def _within(path: Path, roots: tuple[Path, ...]) -> bool:
    resolved = path.resolve()
    return any(resolved == root or root in resolved.parents for root in roots)


def _literal(node: Node) -> str | None:
    value = node.get("value")
    if node.get(type_) == "Literal" and isinstance(value, dict):
        return value["value"] if value.get("field_type") == "String" else None
    return None


def _resolve(node: Node, params: Mapping[str, str]) -> None:
    """Put parameters' values into a name."""
    parts = list(node.get("name_parts") or [node.get("name", "")])
    values = [
        params.get(child["name"], "")
        for child in node.get("children", [])
        if child.get(type_) == "QueryParameter"
    ]
    for at, part in enumerate(parts):
        if not part and values:
            parts[at] = values.pop(0)
    node["parts"] = parts
    node["name"] = ".".join(parts)


def _parsed(connection: Connection, sql: str) -> Any:
    """The engine's tree of a statement. Raises EngineError 36 where it has none."""
    text = connection.text("SELECT parseQueryToJSON({q:String})", {"q": escape(sql)})
    return json.loads(text, strict=False)


def _drawn(connection: Connection, sql: str, params: Mapping[str, str]) -> Node:
    """The tree that EXPLAIN AST draws; of SETTINGS it shows nothing, so they are read apart.

    What runs is put together from the same two parts.
    """
    statement = read_statement(sql)
    if not statement.settings or not statement.piped:
        return _textual(connection.text(f"EXPLAIN AST {sql}", params))
    tree = _textual(connection.text(f"EXPLAIN AST {statement.body}", params))
    tree["children"].append(_parsed(connection, f"SELECT 1\n{statement.settings}"))
    return tree


def _textual(text: str) -> Node:
    """The tree that EXPLAIN AST draws, in the shape of the other, as far as it tells."""
    stack: list[tuple[int, Node]] = [(-1, {"children": []})]
    root = stack[0][1]
    for line in text.split("\n"):
        if not (match := _LINE.match(line)):
            continue
        depth, rest = len(match[1]), _SUFFIX.sub("", match[3] or "").strip()
        while stack[-1][0] >= depth:
            stack.pop()
        parent = stack[-1][1]
        node: Node = {type_: match[2], "name": rest.replace("`", ""), "children": []}
        if node[type_] == "Literal" and len(rest) > 1 and rest[0] == rest[-1] == "'":
            if "\\" not in rest:
                node["value"] = {"field_type": "String", "value": rest[1:-1]}
        elif parent.get(type_) == "Function" and node[type_] == "ExpressionList":
            parent["arguments"] = node
        elif parent.get(type_) == "TableExpression" and node[type_] == "Function":
            parent["table_function"] = node
        parent["children"].append(node)
        stack.append((depth, node))
    first: Node = root["children"][0] if root["children"] else {type_: "", "children": []}
    return {**first, "textual": True, "children": root["children"]}
