"""A person's erasure (GDPR, Art. 17): their rows go, and what has to stay names them no more.

Their keyed hashes go on the erasure list before anything else: from then on no load stores a line
of theirs, so rows can only go. Then, under the warehouse's lock:

1. what their rows are found by is put into `retention.erasing_values`, under the request's code:
   permits, the ledger and logs have the code alone;
2. the days whose raw rows go are made due for the next build, unless they are purged;
3. class by class the rows go, those of the tables behind the marts first, through the purge's door;
4. what outlives raw (`anonymised.*`) gets random keys in the place of theirs: months that are
   closed keep their cohorts to the cent, and nobody can say of whom a row is;
5. every table is searched, and exports that were written before end early.

What a hold keeps stays, and so does the request, as held. Killed anywhere, a rerun finishes it:
what rows were found by is kept until then. Cold files are left as they are: no recall brings a row
of the person back, and the files end by themselves.
"""

import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import Any

from psycopg.types.json import Jsonb

from tidemark import (
    backup,
    clickhouse,
    coverage,
    frozen,
    ledger,
    policy,
    postgres,
    replicas,
    requests,
)
from tidemark import plan as planning
from tidemark import purge as purging
from tidemark.clickhouse import identifier, identifiers, literal
from tidemark.cold import recalled
from tidemark.config import Settings
from tidemark.errors import TidemarkError, UsageError
from tidemark.flows import Note, warehouse
from tidemark.keys import Keyring
from tidemark.plan import Removal, Target
from tidemark.policy import Policy
from tidemark.postgres import Connection
from tidemark.requests import Request
from tidemark.retention import publish_holds
from tidemark.topology import WORK

#: Rows that stay got new keys.
REKEYED = "erasure_rekeyed"

_VALUES = "retention.erasing_values"
_LISTED = (
    "insert into control.erasure_list (workspace_id, subject_hash, added_at) values (%s, %s, %s)"
    " on conflict do nothing"
)
#: Where a row stands alone as its key's: a day with one of these.
_DAY_AND = "concat(toString({day}), '|', {column})"


@dataclass(frozen=True, slots=True)
class _Derived:
    """How rows of a table behind the marts are found that were made of a person's raw rows."""

    #: Of `retention.erasing_values`.
    kind: str
    #: SQL over the table of the value.
    value: str


_VISIT = _Derived("visit", "concat(toString(date_day), '|', anonymous_id)")
_EMAIL_EVENT = _Derived("email event", "concat(toString(date_day), '|', event_id)")
_SALE = _Derived("order_key", "order_key")
#: Every table that a class with subjects has as derived.
_DERIVED = {
    "intermediate.int_session_days": _VISIT,
    "intermediate.int_sessions": _VISIT,
    "intermediate.int_purchase_links": _Derived(
        "purchase", "concat(toString(date_day), '|', order_id, '|', anonymous_id)"
    ),
    "intermediate.int_orders": _SALE,
    "intermediate.int_refunds": _SALE,
    "intermediate.int_email_orders": _EMAIL_EVENT,
    "intermediate.int_email_refunds": _EMAIL_EVENT,
}
#: Of the tables that no class purges, those with rows of a person: columns by the kind of value.
_KEPT = {
    "intermediate.int_customers": {"customer_key": "customer"},
    "intermediate.int_customer_changes": {
        "customer_key": "customer",
        "first_order_key": "order_key",
    },
    "intermediate.int_scope_sales": {"customer_key": "customer", "order_key": "order_key"},
    "intermediate.int_dirty_sales": {"customer_key": "customer", "order_key": "order_key"},
}
#: Keys in rows that stay, of others too: table, column, kind.
_MENTIONS = (
    # Where an order came from is a stored fact once its visitor's pixel rows are purged.
    ("intermediate.int_orders", "visitor_id", "subject"),
    # Somebody else's first order, which the next build looks for anew.
    ("intermediate.int_customers", "first_order_key", "order_key"),
)
#: What outlives orders and payments, with the classes whose holds keep a row and when.
_ANONYMISED = {
    "anonymised.orders": {"orders": "true"},
    "anonymised.payments": {"payments": "true"},
    "anonymised.order_refunds": {
        "orders": "source != 'payments'",
        "payments": "source = 'payments'",
    },
}
_SEARCHED = ("raw", "staging", "intermediate", "marts", "anonymised", "recalled", "load")


def receive(
    settings: Settings, workspace_id: str, subject: str, now: datetime
) -> tuple[Request, bool]:
    """Put a person's erasure on record; see `requests.receive`.

    Raises:
        UsageError: there is no such workspace, or the subject is none.
        TidemarkError: a store does not answer, or the backups' location; the request is on record
            then.
    """
    request, is_new = requests.receive(
        settings, workspace_id=workspace_id, kind="erase", subject=subject, now=now
    )
    with postgres.connect(settings) as connection:
        # It is not forgotten with what a restore of an older backup takes away.
        hashes = requests.subject_hashes(connection, request.code)
        backup.keep_erasure(settings, connection, request.code, workspace_id, hashes)
    return request, is_new


def carry_out(
    settings: Settings,
    code: str,
    *,
    as_of: date,
    clock: Callable[[], datetime],
    note: Note = lambda _: None,
) -> Request:
    """Carry a person's erasure out as far as no hold speaks against it. Safe to run again.

    Args:
        code: of the request; one that is done is left as it is.
        as_of: must not lie in the future.
        note: called at each boundary.

    Returns:
        The request, done or held; its outcome has the rows by table.

    Raises:
        UsageError: there is no such request, or it is not one of a person's erasure.
        Refused: as_of lies in the future.
        TidemarkError: something could not be erased, or a store does not answer; the request is
            failed, and the next run goes on.
    """
    policy.refuse_future(as_of, clock())
    with (
        warehouse(settings, note) as connection,
        ledger.kept_outside(settings, connection, clock),
    ):
        return carry_out_within(settings, connection, code, clock=clock, note=note)


def carry_out_within(
    settings: Settings,
    connection: Connection,
    code: str,
    *,
    clock: Callable[[], datetime],
    note: Note = lambda _: None,
) -> Request:
    """The same for a caller that holds the warehouse's lock and keeps the ledger's head outside."""
    request = requests.find(connection, code)
    if request.kind != "erase" or not request.is_of_subject:
        raise UsageError(f"request {code} does not ask for a person's erasure")
    if request.status == "done":
        return request
    own = _Erasure(settings, connection, policy.read(settings), request, clock, note)
    try:
        return own.run()
    except TidemarkError as error:
        own.advance("failed", reason=_shown(error))
        raise


def _shown(error: TidemarkError) -> str:
    try:
        return ledger.checked_reason(str(error)[: ledger.REASON_CHARACTERS])
    except TidemarkError:
        return type(error).__name__


class _Erasure:
    """One run of one request."""

    def __init__(
        self,
        settings: Settings,
        connection: Connection,
        ladder: Policy,
        request: Request,
        clock: Callable[[], datetime],
        note: Note,
    ) -> None:
        self.settings = settings
        self.connection = connection
        self.ladder = ladder
        self.code = request.code
        self.workspace_id = request.workspace_id
        self.clock = clock
        self.note = note
        self.keyring = Keyring.from_settings(settings)
        self.topology = clickhouse.topology(settings)
        self.door = purging.Door(settings, connection, ladder, self.keyring, clock, (), note)
        self.classes = {name: own for name, own in ladder.classes.items() if own.subjects}
        self.own = f"workspace_id = {literal(self.workspace_id)}"
        #: In force on the workspace.
        self.holds: tuple[policy.Hold, ...] = ()
        self.tables: dict[str, dict[str, bool]] = {}
        self._check_policy()

    # -- the run -----------------------------------------------------------------------------------

    def run(self) -> Request:
        """See `carry_out`."""
        hashes = self._begin()
        self.note("the person is on the erasure list")
        self._sweep()
        self._read_holds()
        self._end_purges()
        self.tables = self._columns()
        self._collect(hashes)
        self._list_links()
        self.note("what the rows are found by is collected")
        self._make_due()
        self.note("the days are due for the next build")
        waiting = self._finish_begun()
        for name in (*self.classes, "kept", "recalled"):
            if name == "kept":
                self._rekey()
                self._collect_customers()
            if name not in waiting:
                self._remove(name)
        self._replace_mentions()
        self.note("what stays names them no more")
        held = self._held()
        if not held and not waiting:
            self._search()
            self.note("no table has them any more")
            self._end_exports()
            self._forget()
            self.note("what the rows were found by is forgotten")
            return self.advance("done", outcome=self._outcome())
        if not waiting:
            self._forget()
        return self.advance("held", reason=self._reason(held, hashes), outcome=self._outcome())

    def advance(
        self,
        status: requests.Status,
        *,
        reason: str | None = None,
        outcome: Mapping[str, Any] | None = None,
    ) -> Request:
        """Say on record what became of it."""
        with self.connection.transaction():
            return requests.advance(
                self.connection,
                self.keyring,
                self.code,
                status,
                self.clock(),
                reason=reason,
                outcome=outcome,
            )

    def _begin(self) -> tuple[str, ...]:
        with self.connection.transaction():
            hashes = requests.subject_hashes(self.connection, self.code)
            if not hashes:
                raise TidemarkError(
                    f"request {self.code} does not say whom it is of: ask for a new one"
                )
            # A restore of an older backup does not bring them back either.
            backup.keep_erasure(
                self.settings, self.connection, self.code, self.workspace_id, hashes
            )
            with self.connection.cursor() as cursor:
                cursor.executemany(
                    _LISTED, [(self.workspace_id, value, self.clock()) for value in hashes]
                )
            requests.advance(self.connection, self.keyring, self.code, "running", self.clock())
        return hashes

    def _sweep(self) -> None:
        """Drop what killed runs left: such rows would come back, or stand where nobody looks."""
        prepared = self.connection.execute(
            "select from control.load_batches where status = 'prepared'"
        ).fetchone()
        if prepared is not None:
            raise TidemarkError(
                "a load was killed and would bring erased rows back: run `tidemark load`, then"
                f" carry request {self.code} out again"
            )
        for orphan in coverage.orphans(self.settings):
            if " detached " in orphan.name:
                raise TidemarkError(f"{orphan.name} may hold rows of the person: drop it first")
            for table in dict.fromkeys((orphan.name, self.topology.local(orphan.name))):
                name = ".".join(map(identifier, table.split(".", 1)))
                self._run(f"drop table if exists {name}{self.topology.on_cluster} sync")

    def _read_holds(self) -> None:
        """Take note of the holds: one may come at any time."""
        publish_holds(self.settings, self.connection)
        self.holds = tuple(
            hold for hold in policy.holds(self.connection) if hold.workspace_id == self.workspace_id
        )

    def _end_purges(self) -> None:
        """Let a purge that was killed come to its end: it has counted rows that still stand."""
        for report in self.door.resume():
            if report.status == "held" and self.workspace_id in report.workspaces:
                raise TidemarkError(
                    f"a purge of {report.data_class} {report.month:%Y-%m} was begun and is held:"
                    " what it counted would be counted twice"
                )

    # -- what rows are found by --------------------------------------------------------------------

    @property
    def _of_code(self) -> str:
        return f"code = {literal(self.code)}"

    def _values(self, kind: str) -> str:
        return f"(select value from {_VALUES} where {self._of_code} and kind = {literal(kind)})"

    def _collect(self, hashes: Sequence[str]) -> None:
        """Put down what rows are found by; what an earlier run put down stays."""
        known = {
            row["value"]
            for row in self._rows(
                f"select value from {_VALUES} where {self._of_code} and kind = 'subject'"
            )
        }
        clickhouse.insert_rows(
            self.settings,
            _VALUES,
            [
                {"code": self.code, "kind": "subject", "value": value,
                 "pseudonym": secrets.token_hex(16)}
                for value in hashes
                if value not in known
            ],
        )  # fmt: skip
        for name, own in self.classes.items():
            for link in own.subject_links.values():
                [column] = link.columns
                for table in (*link.tables, *map(recalled, link.tables[:1])):
                    if column in self.tables.get(table, ()):
                        self._put_down(
                            column,
                            f"select {identifier(column)} as value from {table}"
                            f" where {self._doomed(name, table)}",
                        )
        for table in _ANONYMISED:
            self._put_down(
                "order_key",
                f"select order_key as value from {table}"
                f" where customer_key in {self._values('subject')} and {self._rekeyed(table)}",
            )
        pixel = self._doomed("pixel_events", "raw.pixel_events")
        self._put_down(
            "visit",
            f"select {_DAY_AND.format(day='local_date', column='anonymous_id')} as value"
            f" from raw.pixel_events where {self.own} and anonymous_id != ''"
            " and (local_date, anonymous_id) in (select local_date, anonymous_id"
            f" from raw.pixel_events where {pixel})"
            # Of a visitor who has other rows on that day, the next build keeps what those give.
            f" group by local_date, anonymous_id having countIf(not ({pixel})) = 0",
        )
        self._put_down(
            "purchase",
            "select concat(toString(local_date), '|', order_id, '|', anonymous_id) as value"
            f" from raw.pixel_events where {pixel} and order_id != ''",
        )
        self._put_down(
            "email event",
            f"select {_DAY_AND.format(day='local_date', column='event_id')} as value"
            f" from raw.email_events where {self._doomed('email_events', 'raw.email_events')}"
            " and event_id != ''",
        )

    def _list_links(self) -> None:
        """Put keys on the erasure list by which alone a recall could know rows of the person.

        A refund's cold file may outlive that of its payment, and the facts get new keys.
        """
        columns = {
            column
            for own in self.classes.values()
            if "cold" in own.expiry
            for link in own.subject_links.values()
            for column in link.columns
        }
        kinds = ", ".join(map(literal, sorted(columns))) or "''"
        values = [
            (self.workspace_id, row["value"], self.clock())
            for row in self._rows(
                f"select value from {_VALUES} where {self._of_code} and kind in ({kinds})"
            )
        ]
        with self.connection.transaction(), self.connection.cursor() as cursor:
            cursor.executemany(_LISTED, values)

    def _collect_customers(self) -> None:
        """The hashes of the person by which no sale stands any more, purged or not."""
        standing = " union all ".join(
            f"select customer_key from {table} where {self.own}"
            for table in ("raw.orders", "raw.payments", "anonymised.orders", "anonymised.payments")
        )
        self._put_down(
            "customer",
            f"select value from {_VALUES} where {self._of_code} and kind = 'subject'"
            f" and value not in (select customer_key from ({standing})"
            f" where customer_key in {self._values('subject')})",
        )

    def _put_down(self, kind: str, query: str) -> None:
        self._run(
            f"insert into {_VALUES} (code, kind, value, pseudonym)"
            f" select {literal(self.code)}, {literal(kind)}, value,"
            " lower(hex(randomString(16, value)))"
            # An empty one would stand for everybody without it.
            f" from (select distinct value from ({query}) where value != ''"
            f" and value not in {self._values(kind)})",
            params=self.topology.written(_VALUES),
        )

    def _matches(self, name: str, table: str) -> str:
        """SQL that holds for rows of a class's table that name the person, held or not."""
        own = self.classes[name]
        known = self.tables.get(table, ())
        conditions = [
            f"{identifier(column)} in {self._values('subject')}"
            for column in own.subjects
            if column in known
        ]
        linked = [
            link for other, link in own.subject_links.items() if _named(other) == _named(table)
        ]
        conditions += [
            f"{identifier(column)} in {self._values(column)}"
            for link in linked
            for column in link.columns
            if column in known
        ]
        return f"{self.own} and ({' or '.join(conditions) or 'false'})"

    def _doomed(self, name: str, table: str) -> str:
        """SQL that holds for the rows of a class's table that go now."""
        return f"({self._matches(name, table)} and not {self._held_rows(name, table)})"

    def _held_rows(self, name: str, table: str) -> str:
        """SQL that holds for rows of a class's table that a hold keeps."""
        if not table.startswith("recalled."):
            return planning.held_condition(self.ladder, name, table, self.holds, self.topology)
        covering = [hold for hold in self.holds if hold.data_class in (None, name)]
        if any(not hold.is_of_subject for hold in covering):
            return self.own
        held = (
            "(select subject from retention.held_subjects"
            f" where {self.own} and class in ({literal(name)}, ''))"
        )
        # A cold file has left columns behind.
        conditions = [
            f"{identifier(column)} in {held}"
            for column in self.classes[name].subjects
            if covering and column in self.tables.get(table, ())
        ]
        return f"({' or '.join(conditions) or 'false'})"

    # -- what the next build does ------------------------------------------------------------------

    def _make_due(self) -> None:
        """Make the days due that the next build has to make again, as a load's are.

        The build finds what hangs on a day by rows that will be gone then, so it is found here.
        """
        days = {
            (measure, date.fromisoformat(row["day"]))
            for measure, query in self._touched()
            for row in self._rows(f"select distinct toString(day) as day from ({query})")
        }
        # A build may have taken days of a run that was killed while their rows still went.
        days |= {
            (row["measure"], row["local_date"])
            for row in self.connection.execute(
                "select distinct measure, local_date from control.touched_days"
                " inner join control.load_batches using (batch_id)"
                " where source = 'erasure' and results ->> 'code' = %s",
                [self.code],
            )
        }
        pairs = ((self.workspace_id, day) for _, day in days)
        closed = frozen.groups(self.connection, self.ladder, pairs)
        due = [
            (measure, day)
            for measure, day in sorted(days)
            if (self.workspace_id, self.ladder.measure_group(measure), day) not in closed
        ]
        if not due:
            return
        with self.connection.transaction():
            row = self.connection.execute(
                "insert into control.load_batches"
                " (source, status, tables, results, prepared_at, done_at)"
                " values ('erasure', 'done', '{}', %s, %s, %s) returning batch_id",
                [Jsonb({"code": self.code}), self.clock(), self.clock()],
            ).fetchone()
            assert row is not None
            with self.connection.cursor() as cursor:
                cursor.executemany(
                    "insert into control.touched_days (batch_id, workspace_id, measure, local_date)"
                    " values (%s, %s, %s, %s)",
                    [(row["batch_id"], self.workspace_id, measure, day) for measure, day in due],
                )

    def _touched(self) -> Iterator[tuple[str, str]]:
        """Queries of days by measure."""
        for name, own in self.classes.items():
            for table in own.tables:
                measure = table.removeprefix("raw.")
                yield (
                    measure,
                    f"select local_date as day from {table} where {self._doomed(name, table)}",
                )
            for table in own.derived:
                if table in self.tables:
                    # What no longer stands in raw, before a build has noticed.
                    measure = name
                    if table == "intermediate.int_refunds":
                        measure = "order_refunds" if name == "orders" else "payment_refunds"
                    yield (
                        measure,
                        f"select date_day as day from {table} where {self._derived(name, table)}",
                    )
        pixel = self._doomed("pixel_events", "raw.pixel_events")
        # Sessions live on for days.
        yield (
            "pixel_events",
            f"select local_date as day from raw.pixel_events where {self.own} and anonymous_id in"
            f" (select anonymous_id from raw.pixel_events where {pixel} and anonymous_id != '')",
        )
        # Orders by whose purchase events their visitors were known.
        yield (
            "orders",
            f"select local_date as day from raw.orders where {self.own} and order_id in"
            f" (select order_id from raw.pixel_events where {pixel} and order_id != '')",
        )
        # Another customer's first order may be a later one then.
        others = " union all ".join(
            f"select customer_key from {table} where {self.own} and customer_key != ''"
            f" and order_key in {self._values('order_key')}"
            for table in ("raw.orders", "raw.payments")
        )
        for measure in ("orders", "payments"):
            yield (
                measure,
                f"select local_date as day from raw.{measure} where {self.own}"
                f" and customer_key in (select customer_key from ({others}))",
            )
        email = self._doomed("email_events", "raw.email_events")
        # Orders after a click, later events of an order, and its refunds.
        for column in ("profile_key", "order_id"):
            yield (
                "email_events",
                f"select local_date as day from raw.email_events where {self.own} and {column} in"
                f" (select {column} from raw.email_events where {email} and {column} != '')",
            )
        if "intermediate.int_email_orders" in self.tables:
            # Orders take the name of their source from messages up to 31 days before.
            yield (
                "email_events",
                f"select date_day as day from intermediate.int_email_orders where {self.own}"
                " and (source_id, date_day) in (select if(flow_id != '', flow_id, message_id),"
                " local_date + arrayJoin(range(32)) from raw.email_events"
                f" where {email} and (flow_id, message_id) != ('', ''))",
            )

    # -- rows that go ------------------------------------------------------------------------------

    def _finish_begun(self) -> set[str]:
        """Finish what an earlier run began; the classes for which a hold came in between."""
        waiting = set()
        for begun in self.door.begun_removals(self.code):
            name = begun["class"]
            came = {
                hold.hold_id
                for hold in self.holds
                # What is of no class was made of several.
                if hold.data_class in (None, name) or name not in self.classes
            } - set(begun["holds"])
            if came:
                waiting.add(name)
            else:
                self.door.finish_removal(begun)
        return waiting

    def _remove(self, name: str) -> None:
        self._read_holds()
        targets = [
            own
            for table, condition in self._conditions(name)
            if table in self.tables and (own := self._target(table, condition)).rows
        ]
        if not targets:
            return
        begun = self.connection.execute(
            "select count(*) as entries from control.ledger where kind = %s"
            " and document ->> 'code' = %s and document ->> 'class' = %s",
            [purging.ERASURE_BEGUN, self.code, name],
        ).fetchone()
        assert begun is not None
        removal = Removal(f"erase-{self.code}-{name}-{begun['entries'] + 1}", name, tuple(targets))
        self.door.remove(self.code, removal, [hold.hold_id for hold in self.holds])

    def _conditions(self, name: str) -> Iterator[tuple[str, str]]:
        """Tables of a class with SQL of their rows to go, in the order they go in."""
        if name == "kept":
            for table, columns in _KEPT.items():
                conditions = " or ".join(
                    f"{identifier(column)} in {self._values(kind)}"
                    for column, kind in columns.items()
                )
                yield table, f"{self.own} and ({conditions})"
        elif name == "recalled":
            for class_name, own in self.classes.items():
                for table in map(recalled, own.tables):
                    yield table, self._doomed(class_name, table)
        else:
            # Raw last: as long as its rows stand a rerun finds what was made of them.
            for table in self.classes[name].derived:
                yield table, self._derived(name, table)
            for table in self.classes[name].tables:
                yield table, self._doomed(name, table)

    def _derived(self, name: str, table: str) -> str:
        own = _DERIVED[table]
        conditions = f"{own.value} in {self._values(own.kind)}"
        if "customer_key" in self.tables.get(table, ()):
            conditions = f"({conditions} or customer_key in {self._values('subject')})"
            # The anonymised facts have the columns by which a hold keeps rows.
            conditions += f" and not {self._held_rows(name, f'anonymised.{name}')}"
        elif any(not hold.is_of_subject and hold.data_class in (None, name) for hold in self.holds):
            return "false"
        own_rows = planning.own_condition(self.ladder, name, table)
        return f"{self.own} and {conditions} and {own_rows}"

    def _target(self, table: str, condition: str) -> Target:
        known = self.tables[table]
        columns = tuple(column for column, is_hashed in known.items() if is_hashed)
        target = Target(table, "all", condition, False, 0, {}, columns or tuple(known), "0")
        replicas.settle(self.hosts, self.topology, table, purging.PATIENCE)
        found = replicas.standing(self.hosts, self.topology, target)
        return replace(target, rows=found.rows, fingerprint=found.fingerprint)

    @property
    def hosts(self) -> replicas.Hosts:
        """Where rows stand."""
        return clickhouse.hosts(self.settings)

    # -- rows that stay ----------------------------------------------------------------------------

    def _rekey(self) -> None:
        """Give anonymised facts new keys: a copy of each month takes the month's place at once."""
        self._read_holds()
        for table in _ANONYMISED:
            matches = self._rekeyed(table)
            for row in self._rows(
                f"select _partition_id as id, count() as rows from {table} where {matches}"
                " group by id order by id"
            ):
                self._enter_rekeyed(table, row["id"], int(row["rows"]))
                self._rekey_partition(table, row["id"], matches)
                self.note(f"{table} {row['id']}: has new keys")
            self._swept(table)

    def _rekeyed(self, table: str) -> str:
        held = " or ".join(
            f"({when} and {self._held_rows(name, table)})"
            for name, when in _ANONYMISED[table].items()
        )
        return (
            f"{self.own} and (customer_key in {self._values('subject')}"
            f" or order_key in {self._values('order_key')}) and not ({held})"
        )

    def _rekey_partition(self, table: str, partition_id: str, matches: str) -> None:
        # Under a name that the next build sweeps after a kill.
        work = f"{table}{WORK}"
        drop = f"drop table if exists {work}{self.topology.on_cluster} sync"
        names = list(self.tables[table])
        new = {
            column: f"if({{0}} and {side}.pseudonym != '', {side}.pseudonym, facts.{column})"
            for column, side in (("customer_key", "people"), ("order_key", "sales"))
        }
        # It is a hash of the key.
        new["dbt_scd_id"] = "if({0}, rand64(facts.line), facts.dbt_scd_id)"
        chosen = ", ".join(
            f"{new[name].format('facts.is_theirs')} as {identifier(name)}"
            if name in new
            else f"facts.{identifier(name)} as {identifier(name)}"
            for name in names
        )
        mapped = f"select value, pseudonym from {_VALUES} where {self._of_code} and kind ="
        in_partition = f"_partition_id = {literal(partition_id)}"
        self._run(drop)
        for statement in self.topology.made_like(work, table):
            self._run(statement)
        try:
            self._run(
                f"insert into {work} ({identifiers(names)}) select {chosen} from"
                f" (select *, {matches} as is_theirs, rowNumberInAllBlocks() as line from {table}"
                f" where {in_partition}) as facts"
                f" left join ({mapped} 'subject') as people on facts.customer_key = people.value"
                f" left join ({mapped} 'order_key') as sales on facts.order_key = sales.value"
                " settings join_use_nulls = 0",
                params=self.topology.written(work),
            )
            # Everything but the keys of the person is as it was, row by row.
            kept = [name for name in names if name not in new]
            whole = f"reinterpretAsUInt128(sipHash128({identifiers(names)}))"
            facts = f"reinterpretAsUInt128(sipHash128({identifiers(kept)}))"
            given = f"(select pseudonym from {_VALUES} where {self._of_code})"
            done = f"{self.own} and (order_key in {given} or customer_key in {given})"
            before, after = (
                self._rows(
                    f"select count() as rows, toString(sum({facts})) as facts,"
                    f" countIf(not ({theirs})) as others,"
                    f" toString(sumIf({whole}, not ({theirs}))) as whole"
                    f" from {relation}"
                )[0]
                for relation, theirs in (
                    (f"{table} where {in_partition}", f"({matches}) or ({done})"),
                    (work, done),
                )
            )
            if before != after:
                raise TidemarkError(
                    f"{table} {partition_id} did not come out as it went in: it was left alone"
                )
            self.note(f"{table} {partition_id}: is copied")
            self._run(
                f"alter table {table} replace partition id {literal(partition_id)} from {work}"
            )
        finally:
            self._run(drop)

    def _enter_rekeyed(self, table: str, partition_id: str, rows: int) -> None:
        document = {"code": self.code, "table": table, "partition": partition_id, "rows": rows}
        with self.connection.transaction():
            known = self.connection.execute(
                "select from control.ledger where kind = %s and document @> %s",
                [REKEYED, Jsonb(document)],
            ).fetchone()
            if known is None:
                ledger.append(self.connection, self.keyring, REKEYED, document, self.clock())

    def _swept(self, table: str) -> None:
        """See that what was replaced no longer lies on a disk."""
        target = Target(table, "all", "false", False, 0, {}, (), "0")
        deadline = time.monotonic() + purging.PATIENCE
        while True:
            replicas.sweep(self.hosts, self.topology, table)
            if not list(replicas.dead(self.hosts, self.topology, target)):
                return
            if time.monotonic() > deadline:
                raise TidemarkError(f"old parts of {table} still lie on the disk: run it again")
            time.sleep(0.2)

    def _replace_mentions(self) -> None:
        """Put random keys in the place of theirs in rows that are of others."""
        for table, column, kind in _MENTIONS:
            if column not in self.tables.get(table, ()):
                continue
            condition = f"{self._mentions(column, kind)} and not {self._held_mentions(column)}"
            if not self._count(table, condition):
                continue
            pairs = (
                f"(select (groupArray(value), groupArray(pseudonym)) from {_VALUES}"
                f" where {self._of_code} and kind = {literal(kind)})"
            )
            own = f"{self.topology.local(table)}"
            on_cluster = self.topology.on_cluster if own != table else ""
            self._run(
                f"alter table {own}{on_cluster} update {column} ="
                f" transform({column}, {pairs}.1, {pairs}.2, '') where {condition}"
                " settings mutations_sync = 2, allow_nondeterministic_mutations = 1"
            )
            if self._count(table, condition):
                raise TidemarkError(f"{table} still has keys of the person: run it again")
            self._swept(table)

    def _mentions(self, column: str, kind: str) -> str:
        return f"{self.own} and {column} in {self._values(kind)}"

    def _held_mentions(self, column: str) -> str:
        """SQL that holds for rows that name a visitor whose pixel rows a hold keeps."""
        if column != "visitor_id":
            return "false"
        return self._held_rows("payments", "raw.payments") if self.holds else "false"

    # -- the end -----------------------------------------------------------------------------------

    def _held(self) -> dict[str, int]:
        """Rows that a hold keeps, by class."""
        held: Counter[str] = Counter()
        for name, own in self.classes.items():
            for table in (*own.tables, *map(recalled, own.tables)):
                if table in self.tables:
                    held[name] += self._count(
                        table, f"{self._matches(name, table)} and {self._held_rows(name, table)}"
                    )
        for table, classes in _ANONYMISED.items():
            theirs = (
                f"{self.own} and (customer_key in {self._values('subject')}"
                f" or order_key in {self._values('order_key')})"
            )
            for name, when in classes.items():
                held[name] += self._count(table, f"{theirs} and {when}")
        return {name: rows for name, rows in held.items() if rows}

    def _reason(self, held: Mapping[str, int], hashes: Sequence[str]) -> str:
        ids = [
            row["hold_id"]
            for row in self.connection.execute(
                "select hold_id from control.holds where released_at is null and workspace_id = %s"
                " and (class is null or class = any(%s) or %s)"
                " and (subject_hashes = '{}' or subject_hashes && %s::text[]) order by hold_id",
                [self.workspace_id, list(held), not held, list(hashes)],
            )
        ] or [hold.hold_id for hold in self.holds]
        rows = sum(held.values())
        return f"hold {', '.join(map(str, ids))}: {rows} rows of {', '.join(held) or 'it'} stay"

    def _search(self) -> None:
        """Look for the person in every table that could have them.

        Raises:
            TidemarkError: one has.
        """
        wanted = {
            **dict.fromkeys(
                (column for own in self.classes.values() for column in own.subjects), "subject"
            ),
            "order_key": "order_key",
            "first_order_key": "order_key",
        }
        found = []
        for table, columns in self._columns().items():
            conditions = [
                f"toString({identifier(column)}) in {self._values(kind)}"
                for column, kind in wanted.items()
                if column in columns
            ]
            if conditions:
                own = self.own if "workspace_id" in columns else "true"
                rows = self._count(table, f"{own} and ({' or '.join(conditions)})")
                if rows:
                    found.append(f"{rows} rows of {table}")
        if found:
            raise TidemarkError(f"the person is still in {', '.join(found)}: run it again")

    def _end_exports(self) -> None:
        """Let files that may have the person go with the next night, not at their own time."""
        self.connection.execute(
            "update control.requests set expires_on = %s where workspace_id = %s"
            " and kind = 'export' and expires_on > %s and deleted_at is null",
            [self.clock().date(), self.workspace_id, self.clock().date()],
        )

    def _forget(self) -> None:
        self._run(f"alter table {_VALUES} drop partition {literal(self.code)}")
        self._swept(_VALUES)

    def _outcome(self) -> dict[str, int]:
        """Rows by table, of all runs of the request."""
        counts: Counter[str] = Counter()
        for row in self.connection.execute(
            "select kind, document from control.ledger where kind = any(%s)"
            " and document ->> 'code' = %s",
            [[purging.ERASURE_BEGUN, REKEYED], self.code],
        ):
            document = row["document"]
            if row["kind"] == REKEYED:
                counts[document["table"]] += document["rows"]
            else:
                counts.update(document["tables"])
        return dict(sorted(counts.items()))

    # -- small things ------------------------------------------------------------------------------

    def _columns(self) -> dict[str, dict[str, bool]]:
        """The columns of the tables that can have rows of people, and whether they are hashed.

        What tells rows apart and what is counted is hashed; of a table without an order all is.
        """
        found: dict[str, dict[str, bool]] = {}
        for row in self._rows(
            "select concat(database, '.', table) as table, name, is_in_sorting_key as is_key, type"
            f" from system.columns where database in ({', '.join(map(literal, _SEARCHED))})"
            " order by table, position"
        ):
            table = self.topology.logical(row["table"])
            if table != row["table"]:
                # A cut table's key is its parts'; its columns are known by its own name.
                found.setdefault(table, {})
            known = self.ladder.columns.get(table, {}).get(row["name"])
            is_hashed = (
                bool(row["is_key"])
                or (known is not None and known.kind == "measure")
                or row["name"] in ("load_id", "line_number")
                or table.startswith("recalled.")
            ) and not row["type"].startswith("AggregateFunction")
            columns = found.setdefault(table, {})
            columns[row["name"]] = columns.get(row["name"], False) or is_hashed
        return found

    def _check_policy(self) -> None:
        """Refuse to leave out a table that the policy knows and this module does not.

        Raises:
            TidemarkError: there is one.
        """
        derived = {table for own in self.classes.values() for table in own.derived}
        kept = {table for table in self.ladder.kept if table.startswith("intermediate.")}
        unknown = (derived - _DERIVED.keys()) | (kept - _KEPT.keys())
        for own in self.classes.values():
            unknown |= {table for table, link in own.subject_links.items() if len(link.columns) > 1}
        if unknown:
            raise TidemarkError(
                f"include/tidemark/erasure.py does not say how rows of {', '.join(sorted(unknown))}"
                " are found that were made of a person's"
            )

    def _count(self, table: str, condition: str) -> int:
        [row] = self._rows(f"select count() as rows from {table} where {condition}")
        return int(row["rows"])

    def _run(self, statement: str, params: Mapping[str, str] | None = None) -> None:
        clickhouse.execute(self.settings, statement, params=params, timeout=3600)

    def _rows(self, query: str) -> list[dict[str, Any]]:
        return clickhouse.rows(self.settings, query)


def _named(table: str) -> str:
    return table.partition(".")[2]
