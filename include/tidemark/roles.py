"""Roles of both stores, from the declaration in `include/roles.yml`, as SQL.

Names come from the declaration and are quoted; the SQL grants rights to roles and makes no login.
"""

from collections.abc import Iterable, Iterator
from typing import Annotated, Literal

import yaml
from psycopg import sql
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tidemark import workspaces
from tidemark.clickhouse import identifier, literal
from tidemark.config import Settings
from tidemark.errors import TidemarkError, UsageError
from tidemark.postgres import connect
from tidemark.topology import Topology

#: The role whose members see the rows of their own workspaces alone.
WORKSPACE_ANALYST = "workspace_analyst"

_Relation = Annotated[str, Field(pattern=r"^(\*|[a-z_]+)\.(\*|[a-z_]+)$")]
_Privilege = Annotated[str, Field(pattern=r"^[a-zA-Z ]+$")]
_PRIVILEGES = {
    "read": "select",
    "append": "insert",
    "change": "alter update",
    "remove": "alter delete, truncate",
    # Not `alter table`, which includes changes of rows.
    "define": "create table, create view, create dictionary, drop table, drop view, alter column,"
    " alter index, alter modify comment",
}
_COMMANDS = {"read": "select", "append": "insert", "change": "update", "remove": "delete"}
_LOCKS = ("pg_advisory_lock", "pg_try_advisory_lock", "pg_advisory_xact_lock")
# ClickHouse takes custom settings with this prefix by default.
_WORKSPACE_SETTING = "SQL_workspace"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ClickHouseRights(_Strict):
    """What a role may do in ClickHouse."""

    read: tuple[_Relation, ...] = ()
    append: tuple[_Relation, ...] = ()
    change: tuple[_Relation, ...] = ()
    remove: tuple[_Relation, ...] = ()
    define: tuple[_Relation, ...] = ()
    use: tuple[_Privilege, ...] = ()
    #: The same where there is a cluster, whose hosts ask each other.
    use_on_cluster: tuple[_Privilege, ...] = ()
    own_rows: tuple[_Relation, ...] = ()
    #: Views among them, which read for their reader what it may not read itself.
    definer_views: tuple[_Relation, ...] = ()
    profile: str


class PostgresRights(_Strict):
    """What a role may do in PostgreSQL."""

    read: tuple[_Relation, ...] = ()
    append: tuple[_Relation, ...] = ()
    change: tuple[_Relation, ...] = ()
    remove: tuple[_Relation, ...] = ()
    own_rows: tuple[_Relation, ...] = ()
    #: Schemas in which it makes its own views, as dbt does.
    define: tuple[str, ...] = ()
    #: It takes the warehouse's lock.
    locks: bool = False


class Role(_Strict):
    """A role of both stores."""

    does: str
    clickhouse: ClickHouseRights
    postgres: PostgresRights


class Profile(_Strict):
    """Settings and limits of a role's members in ClickHouse."""

    settings: dict[Annotated[str, Field(pattern=r"^[a-z_]+$")], int]
    #: An hour's.
    quota: dict[Literal["queries", "execution_time"], int] = {}


class Declaration(_Strict):
    """Everything `include/roles.yml` says."""

    roles: dict[Annotated[str, Field(pattern=r"^[a-z_]{1,63}$")], Role]
    profiles: dict[Annotated[str, Field(pattern=r"^[a-z_]+$")], Profile]

    @model_validator(mode="after")
    def _is_whole(self) -> "Declaration":
        if WORKSPACE_ANALYST not in self.roles:
            raise ValueError(f"there is no role {WORKSPACE_ANALYST}")
        for name, role in self.roles.items():
            if role.clickhouse.profile not in self.profiles:
                raise ValueError(f"role {name} names profile {role.clickhouse.profile}")
            for rights in (role.clickhouse, role.postgres):
                if not set(rights.own_rows) <= set(rights.read):
                    raise ValueError(f"role {name} has own_rows that it may not read")
        return self


def read(settings: Settings) -> Declaration:
    """Read and check the declaration.

    Raises:
        TidemarkError: it cannot be read, or says something it must not; the message names the file.
    """
    file = settings.root / "include" / "roles.yml"
    try:
        return Declaration.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError) as error:
        raise TidemarkError(f"{file} cannot be read: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        entry = ".".join(str(part) for part in first["loc"]) or "roles"
        raise TidemarkError(f"{file}: {entry}: {first['msg']}") from error


def clickhouse(declaration: Declaration, cluster: str | None = None) -> Iterator[str]:
    """The statements that give ClickHouse's roles their rights; each may run again.

    Args:
        cluster: its name, where the roles have to be on every host.
    """
    everywhere = f" on cluster {identifier(cluster)}" if cluster else ""
    for name, profile in declaration.profiles.items():
        constant = " const" if "readonly" in profile.settings else ""
        values = ", ".join(
            f"{setting} = {value}{constant}" for setting, value in profile.settings.items()
        )
        yield (
            f"create settings profile or replace {identifier(f'tidemark_{name}')}{everywhere}"
            f" settings {values}"
        )
    for name, role in declaration.roles.items():
        rights = role.clickhouse
        yield f"create role if not exists {identifier(name)}{everywhere}"
        # What the declaration no longer says goes.
        yield f"revoke{everywhere} all on *.* from {identifier(name)}"
        yield (
            f"alter role {identifier(name)}{everywhere}"
            f" settings profile {literal(f'tidemark_{rights.profile}')}"
        )
        for right, privileges in _PRIVILEGES.items():
            for relation in _everywhere(getattr(rights, right), cluster):
                yield f"grant{everywhere} {privileges} on {_place(relation)} to {identifier(name)}"
        for right in (*rights.use, *(rights.use_on_cluster if cluster else ())):
            yield f"grant{everywhere} {right} on *.* to {identifier(name)}"
        for view in rights.definer_views:
            yield (
                f"alter table {_place(view)}{everywhere}"
                " modify sql security definer definer = current_user"
            )
        quota = declaration.profiles[rights.profile].quota
        if quota:
            limits = ", ".join(f"{limit} = {value}" for limit, value in quota.items())
            yield (
                f"create quota or replace {identifier(name)}{everywhere}"
                f" keyed by user_name for interval 1 hour max {limits} to {identifier(name)}"
            )
        for relation in _everywhere(rights.own_rows, cluster):
            place = _place(relation)
            yield (
                f"create row policy or replace {identifier('own_workspace')}{everywhere} on {place}"
                f" using workspace_id = getSetting({literal(_WORKSPACE_SETTING)})"
                f" to {identifier(name)}"
            )
            # Where a policy stands for one, all others see nothing but for a policy of theirs.
            yield (
                f"create row policy or replace {identifier('every_workspace')}{everywhere}"
                f" on {place} using true to all except {identifier(name)}"
            )


def _everywhere(relations: Iterable[str], cluster: str | None) -> Iterator[str]:
    """Relations, and beside a table that is cut what each host has of it: a reader reads both."""
    topology = Topology(cluster or "")
    for relation in relations:
        yield relation
        own = topology.local(relation)
        if own != relation and not relation.endswith("*"):
            yield own


def clickhouse_analyst(login: str, workspace_id: str, cluster: str | None = None) -> Iterator[str]:
    """The statements that make a user of ClickHouse an analyst of one workspace.

    The workspace is a setting of the user, not of a role: a role can be put off, and the setting
    changed meanwhile.

    Raises:
        UsageError: it is no id of a workspace.
    """
    _check(workspace_id)
    everywhere = f" on cluster {identifier(cluster)}" if cluster else ""
    yield (
        f"alter user {identifier(login)}{everywhere} settings profile 'tidemark_reader',"
        f" {_WORKSPACE_SETTING} = {literal(workspace_id)} const"
    )
    yield f"grant{everywhere} {identifier(WORKSPACE_ANALYST)} to {identifier(login)}"
    yield f"alter user {identifier(login)}{everywhere} default role {identifier(WORKSPACE_ANALYST)}"


def make_postgres(settings: Settings) -> None:
    """Make the roles of a laptop's PostgreSQL; safe to run again."""
    with connect(settings, "superuser", database="tidemark") as connection:
        for statement in postgres_roles(read(settings)):
            connection.execute(statement)


def apply_postgres(settings: Settings) -> None:
    """Give PostgreSQL's roles their rights, as far as the roles exist; safe to run again."""
    declaration = read(settings)
    with connect(settings) as connection:
        known = {
            row["rolname"]
            for row in connection.execute("select rolname from pg_catalog.pg_roles").fetchall()
        }
        for statement in postgres(declaration, known):
            connection.execute(statement)


def postgres(declaration: Declaration, known: set[str] | None = None) -> Iterator[sql.Composed]:
    """The statements that give PostgreSQL's roles their rights; each may run again.

    The tables' owner runs them; the roles themselves are made by `postgres_roles`.

    Args:
        known: the roles that exist; by default all of them.
    """
    own_rows: dict[str, list[sql.Identifier]] = {}
    for name, role in declaration.roles.items():
        if known is not None and name not in known:
            continue
        to = sql.Identifier(name)
        for schema in ("app", "control", "analytics"):
            yield sql.SQL("revoke all on all tables in schema {} from {}").format(
                sql.Identifier(schema), to
            )
        for schema in sorted({relation.split(".")[0] for relation in role.postgres.read}):
            yield sql.SQL("grant usage on schema {} to {}").format(sql.Identifier(schema), to)
        for schema in role.postgres.define:
            yield sql.SQL("grant usage, create on schema {} to {}").format(
                sql.Identifier(schema), to
            )
        for right, command in _COMMANDS.items():
            for relation in getattr(role.postgres, right):
                schema, table = relation.split(".")
                place = (
                    sql.SQL("all tables in schema {}").format(sql.Identifier(schema))
                    if table == "*"
                    else sql.Composed([sql.Identifier(schema, table)])
                )
                yield sql.SQL("grant {} on {} to {}").format(sql.SQL(command), place, to)
        for relation in role.postgres.own_rows:
            own_rows.setdefault(relation, []).append(to)
    for relation, members in own_rows.items():
        table_name = sql.Identifier(*relation.split("."))
        yield sql.SQL("alter table {} enable row level security").format(table_name)
        # Everybody's rows are there, but for members, to whom the second applies as well.
        for named, kind, applies_to, condition in (
            ("every_workspace", "permissive", sql.Composed([sql.SQL("public")]), "true"),
            (
                "own_workspace",
                "restrictive",
                sql.SQL(", ").join(members),
                "workspace_id = (select control.own_workspace())",
            ),
        ):
            yield sql.SQL("drop policy if exists {} on {}").format(
                sql.Identifier(named), table_name
            )
            yield sql.SQL("create policy {} on {} as {} for all to {} using ({})").format(
                sql.Identifier(named), table_name, sql.SQL(kind), applies_to, sql.SQL(condition)
            )


def postgres_roles(declaration: Declaration) -> Iterator[sql.Composed]:
    """The statements that make PostgreSQL's roles, for who may create roles and grant functions."""
    for name, role in declaration.roles.items():
        yield sql.SQL(
            "do $$ begin create role {} nologin; exception when duplicate_object then end $$"
        ).format(sql.Identifier(name))
        if role.postgres.locks:
            for function in _LOCKS:
                yield sql.SQL("grant execute on function pg_catalog.{}(bigint) to {}").format(
                    sql.Identifier(function), sql.Identifier(name)
                )


def postgres_analyst(login: str, workspace_id: str) -> Iterator[sql.Composed]:
    """The statements that make a login of PostgreSQL an analyst of one workspace.

    Raises:
        UsageError: it is no id of a workspace.
    """
    _check(workspace_id)
    yield sql.SQL("grant {} to {}").format(sql.Identifier(WORKSPACE_ANALYST), sql.Identifier(login))
    yield sql.SQL("alter role {} set default_transaction_read_only = on").format(
        sql.Identifier(login)
    )
    yield sql.SQL(
        "insert into control.workspace_logins (login, workspace_id) values ({}, {})"
        " on conflict (login) do update set workspace_id = excluded.workspace_id"
    ).format(sql.Literal(login), sql.Literal(workspace_id))


def _check(workspace_id: str) -> None:
    if not workspaces.ID.fullmatch(workspace_id):
        raise UsageError(f"{workspace_id!r} is no id of a workspace")


def _place(relation: str) -> str:
    return ".".join(part if part == "*" else identifier(part) for part in relation.split("."))
