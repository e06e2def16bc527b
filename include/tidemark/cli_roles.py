"""`tidemark roles`: the SQL that gives roles their rights, for an administrator to run."""

from enum import StrEnum
from typing import Annotated

import typer

from tidemark.cli_options import JsonOption
from tidemark.config import Settings
from tidemark.errors import UsageError
from tidemark.output import emit


class Store(StrEnum):
    """The stores that have roles."""

    clickhouse = "clickhouse"
    postgres = "postgres"


def roles(
    store: Annotated[Store, typer.Option(help="Whose SQL to print.")] = Store.clickhouse,
    cluster: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="ClickHouse's cluster; by default one server."),
    ] = None,
    workspace: Annotated[
        str | None,
        typer.Option(metavar="W", help="Make --login an analyst of this workspace instead."),
    ] = None,
    login: Annotated[
        str | None, typer.Option(metavar="NAME", help="A login of that store, made before.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print the SQL of the roles in include/roles.yml; it changes nothing."""
    from tidemark import roles as declared

    if (workspace is None) != (login is None):
        raise UsageError("--workspace and --login go together")
    if cluster is not None and store is Store.postgres:
        raise UsageError("--cluster is ClickHouse's")
    declaration = declared.read(Settings.from_env())
    if store is Store.clickhouse:
        statements = list(
            declared.clickhouse_analyst(login, workspace, cluster)
            if login is not None and workspace is not None
            else declared.clickhouse(declaration, cluster)
        )
    else:
        composed = (
            declared.postgres_analyst(login, workspace)
            if login is not None and workspace is not None
            else [*declared.postgres_roles(declaration), *declared.postgres(declaration)]
        )
        statements = [statement.as_string(None) for statement in composed]

    def human() -> None:
        for statement in statements:
            print(f"{statement};")

    emit(statements, human, as_json=as_json)
