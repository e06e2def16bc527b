"""The command line: every verb is thin, and what it does lives in a module of its own."""

import gc
import os
import sys
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

import typer
from typer.exceptions import TyperException

from tidemark import cli_purge
from tidemark.cli_audit import audit
from tidemark.cli_backfill import backfill
from tidemark.cli_backup import backup, restore
from tidemark.cli_cold import recall
from tidemark.cli_options import AsOfOption, JsonOption, as_of_date
from tidemark.cli_requests import erase, export, request_app
from tidemark.cli_retention import hold_app, override_app
from tidemark.cli_roles import roles
from tidemark.config import Settings
from tidemark.errors import TidemarkError
from tidemark.output import emit, load_table, note, print_rows, progress_bar, to_json

app = typer.Typer(
    name="tidemark",
    help="A batch warehouse for commerce and marketing analytics that forgets on purpose.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
workspace_app = typer.Typer(help="Make and list tenants.")
app.add_typer(workspace_app, name="workspace")
app.add_typer(override_app, name="override")
app.add_typer(hold_app, name="hold")
app.add_typer(request_app, name="request")
app.command()(audit)
app.command()(roles)
app.command()(recall)
app.command()(backfill)
app.command()(backup)
app.command()(restore)
app.command()(export)
app.command()(erase)

NoAirflowOption = Annotated[bool, typer.Option("--no-airflow", help="Leave Airflow alone.")]


class Store(StrEnum):
    """The stores that `sql` can ask."""

    clickhouse = "clickhouse"
    postgres = "postgres"


class Plan(StrEnum):
    """The plans a workspace can be on."""

    starter = "starter"
    growth = "growth"
    pro = "pro"
    scale = "scale"
    enterprise = "enterprise"
    platform = "platform"


class RevenueSource(StrEnum):
    """What a workspace's revenue is counted from."""

    orders = "orders"
    payments = "payments"


@app.command()
def up(as_json: JsonOption = False, no_airflow: NoAirflowOption = False) -> None:
    """Start the engines and Airflow, wait until they answer, and bring their schemas up to date."""
    from tidemark import airflow_engine, engines

    settings = Settings.from_env()
    states = engines.up(settings, note=note)
    if not no_airflow:
        states += airflow_engine.up(settings, note=note)

    def human() -> None:
        _print_states(states)
        if not no_airflow and settings.profile == "laptop":
            user, _ = airflow_engine.credentials(settings)
            print(
                f"http://127.0.0.1:{settings.airflow_port}: sign in as {user};"
                " `tidemark env` prints the password"
            )

    emit([state.as_dict() for state in states], human, as_json=as_json)


@app.command()
def down(as_json: JsonOption = False, no_airflow: NoAirflowOption = False) -> None:
    """Stop Airflow and the engines and wait until they are gone."""
    from tidemark import airflow_engine, engines

    settings = Settings.from_env()
    stopped = [] if no_airflow else airflow_engine.down(settings, note=note)
    states = engines.down(settings, note=note) + stopped
    emit([state.as_dict() for state in states], lambda: _print_states(states), as_json=as_json)


@app.command()
def status(as_json: JsonOption = False, no_airflow: NoAirflowOption = False) -> None:
    """Show which engines run and answer, and name the gaps that soon can't be filled any more."""
    from tidemark import airflow_engine, engines, freshness

    settings = Settings.from_env()
    states = engines.status(settings)
    if all(state.answering for state in states):
        for alarm in freshness.alarms(settings, datetime.now(UTC).date()):
            note(f"tidemark: {alarm}")
    if not no_airflow:
        states += airflow_engine.status(settings)
    emit([state.as_dict() for state in states], lambda: _print_states(states), as_json=as_json)


@app.command()
def env(as_json: JsonOption = False) -> None:
    """Print shell exports for other clients, passwords included: eval "$(tidemark env)"."""
    from tidemark import airflow_engine, clickhouse, postgres

    settings = Settings.from_env()
    exports = {
        "TIDEMARK_CLICKHOUSE_URL": clickhouse.endpoint(settings, "owner").url,
        "TIDEMARK_CLICKHOUSE_ANALYST_URL": clickhouse.endpoint(settings, "analyst").url,
        "TIDEMARK_POSTGRES_URL": postgres.url(settings, "tidemark"),
        "TIDEMARK_POSTGRES_ANALYST_URL": postgres.url(settings, "analyst"),
    }
    if settings.profile == "laptop":
        user, password = airflow_engine.credentials(settings)
        exports |= {"TIDEMARK_AIRFLOW_USER": user, "TIDEMARK_AIRFLOW_PASSWORD": password}
        # With these `airflow` works in this home, for its backfills.
        exports |= airflow_engine.environment(settings)

    def human() -> None:
        for name, value in exports.items():
            # shlex.quote leaves plain values bare; one form is easier to read and to parse.
            quoted = value.replace("'", "'\\''")
            print(f"export {name}='{quoted}'")

    emit(exports, human, as_json=as_json)


@app.command()
def sql(
    query: Annotated[
        str, typer.Argument(metavar="QUERY", help="One query; - reads it from stdin.")
    ],
    store: Annotated[Store, typer.Option(help="Which store to ask.")] = Store.clickhouse,
    write: Annotated[
        bool, typer.Option("--write", help="Run as the owner; goes on record.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Run a query read-only, as the analyst; --json gives a list of row objects."""
    from tidemark import query as queries

    text = sys.stdin.read() if query == "-" else query
    result = queries.run(Settings.from_env(), text, store.value, write=write)

    def human() -> None:
        if result.raw is not None:
            sys.stdout.flush()
            sys.stdout.buffer.write(result.raw)
        elif result.columns:
            print_rows(result.columns, result.rows)

    emit(result.as_objects() if as_json else None, human, as_json=as_json)


@app.command()
def load(
    sources: Annotated[
        list[str] | None, typer.Argument(metavar="[SOURCE]...", help="By default all of them.")
    ] = None,
    workspace: Annotated[
        str | None, typer.Option(metavar="W", help="This workspace's files alone.")
    ] = None,
    landing: Annotated[
        str | None, typer.Option(metavar="DIR", help="By default TIDEMARK_LANDING.")
    ] = None,
    retry: Annotated[
        bool,
        typer.Option("--retry", help="Read again what was quarantined for its time or workspace."),
    ] = False,
    as_of: AsOfOption = None,
    as_json: JsonOption = False,
) -> int:
    """Load every landing file that is not loaded yet."""
    from tidemark import flows

    with progress_bar("loading") as track:
        report = flows.load(
            Settings.from_env(),
            as_of=as_of_date(as_of),
            now=datetime.now(UTC),
            sources=sources or (),
            workspace=workspace,
            landing=landing,
            retry=retry,
            note=note,
            track=track,
        )
    for line in report.notes:
        note(f"tidemark: {line}")
    for file in report.files:
        if file.error:
            note(f"tidemark: {file.file}: {file.error}")

    def human() -> None:
        print_rows(*load_table(report))

    emit(report.as_dict(), human, as_json=as_json)
    return 1 if report.failed else 0


@app.command()
def build(
    from_date: Annotated[
        datetime | None,
        typer.Option("--from", formats=["%Y-%m-%d"], metavar="D", help="Rebuild from this day."),
    ] = None,
    to_date: Annotated[
        datetime | None,
        typer.Option("--to", formats=["%Y-%m-%d"], metavar="D", help="Rebuild to this day."),
    ] = None,
    as_of: AsOfOption = None,
    as_json: JsonOption = False,
) -> int:
    """Run dbt for the days touched since the last build, then tie load, raw and marts out."""
    from tidemark import flows, gate

    try:
        report = flows.build(
            Settings.from_env(),
            as_of=as_of_date(as_of),
            clock=lambda: datetime.now(UTC),
            gate=gate.tie_out,
            from_date=from_date.date() if from_date else None,
            to_date=to_date.date() if to_date else None,
            note=note,
        )
    except (flows.GateFailed, flows.RangeClosed) as error:
        if not as_json:
            raise
        # What was found is the answer that a program asked for.
        note(f"tidemark: {error}")
        print(to_json(error.report.as_dict()))
        return error.exit_code

    def human() -> None:
        print_rows(
            ("model", "status", "seconds"),
            [(model.name, model.status, round(model.seconds, 2)) for model in report.models],
        )
        for own in report.recalled:
            print(own)
        if report.verdict is None:
            print("no day to build")
            return
        verdict = report.verdict.as_dict()
        print(
            f"{report.days} workspace days rebuilt; ledger, raw and marts tie out in"
            f" {verdict['checked']} figures: {verdict['data_docs']}"
        )

    emit(report.as_dict(), human, as_json=as_json)
    return 0


app.command()(cli_purge.plan)
app.command()(cli_purge.purge)


@app.command()
def demo(as_of: AsOfOption = None, as_json: JsonOption = False) -> None:
    """Start the engines, invent 14 months of three shops, load, build, purge, and show it."""
    from tidemark import engines, gate, showcase

    settings = Settings.from_env()
    engines.up(settings, note=note)
    with progress_bar("loading") as track:
        report = showcase.run(
            settings,
            as_of=as_of_date(as_of),
            clock=lambda: datetime.now(UTC),
            gate=gate,
            note=note,
            track=track,
        )
    emit(report.as_dict(), lambda: showcase.show(settings, report), as_json=as_json)


@app.command()
def docs(as_json: JsonOption = False) -> None:
    """Write the dbt docs site, lineage included, as one page, and say where the Data Docs are."""
    from tidemark import airflow_engine, flows

    settings = Settings.from_env()
    page = flows.docs(settings)
    proofs = settings.expectations / "data_docs" / "index.html"
    served = f"http://127.0.0.1:{settings.airflow_port}/retention"
    is_up = any(state.answering for state in airflow_engine.status(settings))
    pages = [("dbt docs", page, f"{served}/lineage")]
    if proofs.is_file():
        pages.append(("Data Docs", proofs, f"{served}/proofs/index.html"))

    def human() -> None:
        for name, file, address in pages:
            print(f"{name}: {file}{f', and {address}' if is_up else ''}")

    emit(
        {"page": str(page), "data_docs": str(proofs) if proofs.is_file() else None},
        human,
        as_json=as_json,
    )


@workspace_app.command("add")
def workspace_add(
    workspace_id: Annotated[str, typer.Argument(metavar="ID", help="Letters, digits, _ and -.")],
    timezone: Annotated[str, typer.Option(help="IANA name, like Europe/Berlin.")],
    currency: Annotated[str, typer.Option(help="ISO 4217 code, like EUR.")],
    plan: Annotated[Plan, typer.Option(help="The plan it is on.")],
    revenue_source: Annotated[
        RevenueSource, typer.Option(help="What its revenue is counted from.")
    ] = RevenueSource.orders,
    as_json: JsonOption = False,
) -> None:
    """Make a workspace; its timezone and currency never change."""
    from tidemark import ledger, postgres, workspaces

    settings = Settings.from_env()
    workspace = workspaces.Workspace(
        workspace_id, timezone, currency.upper(), plan.value, revenue_source.value
    )
    workspaces.check(workspace, settings)
    ledger.refuse_half_restored(settings)
    with postgres.connect(settings) as connection:
        created = workspaces.add(connection, settings, workspace, datetime.now(UTC))

    def human() -> None:
        print(f"workspace {workspace_id} {'made' if created else 'exists already, unchanged'}")

    emit({**workspace.as_dict(), "created": created}, human, as_json=as_json)


@workspace_app.command("list")
def workspace_list(as_json: JsonOption = False) -> None:
    """List the workspaces."""
    from tidemark import postgres, workspaces

    with postgres.connect(Settings.from_env()) as connection:
        rows = workspaces.list_all(connection)
    columns = (
        "workspace_id", "timezone", "currency", "plan", "revenue_source", "created_at",
        "cancelled_at", "deleted_at",
    )  # fmt: skip

    def human() -> None:
        print_rows(columns, [[row[column] for column in columns] for row in rows])

    emit(rows, human, as_json=as_json)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run the command line in this process.

    Returns:
        0 done, 1 failed, 2 wrong usage, 3 refused by a guard, 130 interrupted.
    """
    as_json = "--json" in arguments
    # dbt and Great Expectations make a million objects that stay: looking through them for garbage
    # at the usual pace is a sixth of a build's time, for 20 MiB.
    gc.set_threshold(50_000, 20, 20)
    try:
        code = app(list(arguments) or ["--help"], prog_name="tidemark", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except typer.Exit as error:
        return error.exit_code
    except TyperException as error:
        return _fail(error.format_message(), error.exit_code, as_json)
    except TidemarkError as error:
        if _debugging():
            traceback.print_exc()
        return _fail(str(error), error.exit_code, as_json)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", 130, as_json)
    except BrokenPipeError:
        # The reader has seen enough; without this Python complains once more on exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if _debugging():
            traceback.print_exc()
        # The message of an unforeseen error may quote a value, so only its kind is shown.
        message = f"internal error: {type(error).__name__} (TIDEMARK_DEBUG=1 shows where)"
        return _fail(message, TidemarkError.exit_code, as_json)


def _fail(message: str, code: int, as_json: bool) -> int:
    line = " ".join(message.split()) or "failed without a message"
    print(f"tidemark: {line}", file=sys.stderr)
    if as_json:
        print(to_json({"error": line, "exit_code": code}))
    return code


def _debugging() -> bool:
    return os.environ.get("TIDEMARK_DEBUG", "") not in ("", "0", "false")


def _print_states(states: Sequence[Any]) -> None:
    print_rows(
        ("engine", "state", "port", "pid"),
        [
            (
                state.name,
                "answers" if state.answering else "runs" if state.running else "down",
                state.port,
                state.pid,
            )
            for state in states
        ],
    )
