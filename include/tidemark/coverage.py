"""Whether the policy covers what stands: every column both ways, and no table that it forgot.

The stores say what there is, dbt's contracts what a build is about to make; the policy must know
both. The search also goes the other way: a column that looks like somebody's identifier, in a table
that no class purges, is a fault until the policy says why the table stays.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from tidemark import clickhouse, policy
from tidemark.config import Settings
from tidemark.errors import TidemarkError

#: Databases whose every table is in the policy.
DATABASES = ("raw", "anonymised", "marts")
#: Faults that a message names.
SHOWN = 5

# Folder of dbt's project and the database its models stand in.
_MODELS = {
    "models/marts": "marts",
    "models/intermediate": "intermediate",
    "snapshots": "anonymised",
}
# dbt adds them to every snapshot.
_SNAPSHOT_COLUMNS = ("dbt_scd_id", "dbt_updated_at", "dbt_valid_from", "dbt_valid_to")
_IDENTIFIER = re.compile(
    r"(^|[_.])(id|ids|key|keys|hash|hashes|subject|subjects|email|phone|ip|user_agent)$"
)
# Of tenants, rules, messages and runs, or how many there are: of no person.
_NOT_OF_PEOPLE = frozenset(
    {
        "workspace_id", "load_id", "source_rule_id", "rule_id", "source_id", "plan_id", "step_id",
        "hold_id", "recall_id", "partition_id", "dbt_scd_id", "distinct_ids",
    }
)  # fmt: skip
# They compute or look up, and store nothing of their own.
_WITHOUT_ROWS = ("View", "Dictionary", "Null")
_WORK_TABLE = re.compile(
    r"__(replace_days|snapshot_upsert|dbt_tmp|dbt_backup|dbt_new_data.*)$|^\.(inner|tmp)"
)

#: The database where tables stand while a backup is made or read back.
SCRATCH = "backup_scratch"


@dataclass(frozen=True, slots=True)
class Fault:
    """Something the policy does not know, or knows and is not there."""

    table: str
    #: Empty where it is the whole table.
    column: str
    #: What is wrong and what to add or remove.
    problem: str

    def __str__(self) -> str:
        return f"{self.table}{'.' if self.column else ''}{self.column} {self.problem}"


@dataclass(frozen=True, slots=True)
class Orphan:
    """Rows outside every table: a killed run's work table, or a detached part."""

    name: str
    rows: int


def check(settings: Settings, ladder: policy.Policy) -> None:
    """Refuse to go on with a column or table that the policy does not know.

    Raises:
        TidemarkError: there is one; the message names the file, the table and the column, and
            what to add.
    """
    found = faults(settings, ladder)
    if found:
        more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise TidemarkError(f"{policy.path(settings)}: {'; '.join(map(str, found[:SHOWN]))}{more}")


def faults(settings: Settings, ladder: policy.Policy) -> tuple[Fault, ...]:
    """What differs between the policy and the tables, by table and column."""
    standing = _standing(settings)
    declared = _declared(settings.dbt_project)
    found = set(_unlisted(ladder, standing, declared))
    found |= set(_missing(ladder, standing, declared))
    found |= set(_forgotten(ladder, standing, declared))
    return tuple(sorted(found, key=lambda fault: (fault.table, fault.column)))


def orphans(settings: Settings) -> tuple[Orphan, ...]:
    """Work tables of killed runs and detached parts, by name.

    A build, a load, and for backups a purge, sweep work tables when they begin; while none of them
    runs there should be none.
    """
    topology = clickhouse.topology(settings)
    rows = clickhouse.rows(
        settings,
        "select concat(database, '.', name) as name, ifNull(total_rows, 0) as row_count"
        f" from {topology.each_host('system.tables')}"
        " where database not in ('system', 'information_schema',"
        " 'INFORMATION_SCHEMA') and engine not in ('View', 'Dictionary') order by name",
    )
    found = [
        Orphan(row["name"], int(row["row_count"]))
        for row in rows
        if row["name"].startswith(("load.", f"{SCRATCH}."))
        or _WORK_TABLE.search(row["name"].split(".", 1)[1])
    ]
    found += [
        Orphan(row["name"], 0)
        for row in clickhouse.rows(
            settings,
            "select concat(database, '.', table, ' detached ', name) as name"
            f" from {topology.each_host('system.detached_parts')} order by name",
        )
    ]
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Table:
    columns: frozenset[str]
    has_rows: bool


def _standing(settings: Settings) -> dict[str, _Table]:
    rows = clickhouse.rows(
        settings,
        "select concat(tables.database, '.', tables.name) as name, any(tables.engine) as engine,"
        " groupArray(columns.name) as columns"
        " from system.tables as tables inner join system.columns as columns"
        " on tables.database = columns.database and tables.name = columns.table"
        " where tables.database not in ('system', 'information_schema', 'INFORMATION_SCHEMA',"
        f" 'load', '{SCRATCH}') and not tables.is_temporary group by name",
    )
    topology = clickhouse.topology(settings)
    return {
        topology.logical(row["name"]): _Table(
            frozenset(row["columns"]), row["engine"] not in _WITHOUT_ROWS
        )
        for row in rows
        if not _WORK_TABLE.search(row["name"].split(".", 1)[1])
    }


def _declared(project: Path) -> dict[str, _Table]:
    """What dbt's contracts say its models will be."""
    found: dict[str, _Table] = {}
    for folder, database in _MODELS.items():
        for file in sorted((project / folder).glob("*.yml")):
            document = yaml.load(file.read_bytes(), Loader=yaml.CSafeLoader) or {}
            extra = _SNAPSHOT_COLUMNS if folder == "snapshots" else ()
            for model in (*document.get("models", ()), *document.get("snapshots", ())):
                columns = [column["name"] for column in model.get("columns", ())]
                sql = file.with_name(f"{model['name']}.sql")
                is_view = sql.is_file() and "materialized='view'" in sql.read_text(encoding="utf-8")
                found[f"{database}.{model['name']}"] = _Table(
                    frozenset((*columns, *extra)), not is_view
                )
    return found


def _unlisted(
    ladder: policy.Policy, standing: dict[str, _Table], declared: dict[str, _Table]
) -> Iterator[Fault]:
    for name, table in (*standing.items(), *declared.items()):
        known = ladder.columns.get(name)
        if known is None:
            if name.split(".")[0] in DATABASES:
                yield Fault(
                    name,
                    "",
                    "is in no list: name its columns under columns as personal, pseudonym, measure"
                    " or dimension, or drop the table",
                )
            continue
        for column in table.columns - known.keys():
            yield Fault(
                name,
                column,
                f"is in no list: add it under columns, {name} as personal, pseudonym, measure or"
                " dimension",
            )


def _missing(
    ladder: policy.Policy, standing: dict[str, _Table], declared: dict[str, _Table]
) -> Iterator[Fault]:
    for name, known in ladder.columns.items():
        tables = [side[name] for side in (standing, declared) if name in side]
        if not tables:
            yield Fault(name, "", "is under columns, but there is no such table: remove it")
            continue
        for column in known.keys() - frozenset().union(*(table.columns for table in tables)):
            yield Fault(name, column, "is under columns, but the table has none such: remove it")
    named = {
        **dict.fromkeys(ladder.kept, "kept"),
        **{
            table: f"classes, {class_name}"
            for class_name, own in ladder.classes.items()
            for table in (*own.tables, *own.derived)
        },
    }
    for name, where in named.items():
        if name not in standing and name not in declared:
            yield Fault(name, "", f"is under {where}, but there is no such table: remove it")


def _forgotten(
    ladder: policy.Policy, standing: dict[str, _Table], declared: dict[str, _Table]
) -> Iterator[Fault]:
    targets = {
        table for own in ladder.classes.values() for table in (*own.tables, *own.derived)
    } | set(ladder.kept)
    for name, table in {**declared, **standing}.items():
        database, _, own_name = name.partition(".")
        # Recalled rows are those of a class, and expire by themselves.
        is_recalled = database == "recalled" and any(
            f"{source}.{own_name}" in ladder.columns for source in ("raw", "marts")
        )
        # What dbt keeps of purged rows has no limit; its columns are in the policy.
        if name in targets or not table.has_rows or is_recalled or database in DATABASES[1:]:
            continue
        for column in sorted(table.columns - _NOT_OF_PEOPLE):
            if _IDENTIFIER.search(column):
                yield Fault(
                    name,
                    column,
                    "may tell people or visits apart, and no class purges the table: name it under"
                    " derived of a class, or under kept with the reason",
                )
