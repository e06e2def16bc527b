"""Raw rows made by hand, dbt on a real engine over them, and the figures told a second time.

The second telling is in Python and takes the contract's definitions over all rows at once: it
knows no scope and no increment.
"""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_HALF_UP, Decimal
from threading import Lock
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from urllib3.connectionpool import HTTPConnectionPool

from homes import Warehouse
from tidemark import build, clickhouse

PLATFORMS = {
    "r01": "google", "r02": "meta", "r03": "tiktok", "r04": "pinterest", "r05": "amazon",
    "r06": "email", "r07": "other_paid", "r08": "direct", "r09": "ai", "r10": "organic",
    "r11": "social", "r12": "referral", "r13": "direct",
}  # fmt: skip

MONEY = (
    "gross_sales",
    "discounts",
    "shipping",
    "taxes",
    "revenue",
    "refunds",
    "new_customer_revenue",
)
COUNTS = ("sessions", "pageviews", "bot_pageviews", "conversions", "orders", "new_customer_orders")


GROUPS = {
    "pixel_events": "pixel",
    "orders": "orders",
    "order_refunds": "refunds",
    "payments": "payments",
    "payment_refunds": "refunds",
}


@dataclass(frozen=True)
class Workspace:
    """A tenant."""

    workspace_id: str
    timezone: str = "Europe/London"
    currency: str = "GBP"
    revenue_source: str = "orders"

    def day(self, moment: datetime) -> date:
        """The local day of a moment."""
        return moment.astimezone(ZoneInfo(self.timezone)).date()


@dataclass(frozen=True)
class Event:
    """A pixel event."""

    workspace: Workspace
    event_id: str
    at: datetime
    visitor: str
    name: str = "$pageview"
    session: str = ""
    rule: str = "r13"
    campaign: str = ""
    order_id: str = ""
    is_bot: bool = False

    @property
    def days(self) -> Iterator[tuple[str, str, date]]:
        yield self.workspace.workspace_id, "pixel", self.workspace.day(self.at)

    def row(self) -> tuple[str, dict[str, Any]]:
        return "pixel_events", {
            "workspace_id": self.workspace.workspace_id,
            "local_date": self.workspace.day(self.at),
            "event_at": moment(self.at),
            "event_id": self.event_id,
            "event_name": self.name,
            "anonymous_id": self.visitor,
            "session_id": self.session,
            "order_id": self.order_id,
            "source_rule_id": self.rule,
            "campaign": self.campaign,
            "is_bot": self.is_bot,
        }


@dataclass(frozen=True)
class Order:
    """A shop's order."""

    workspace: Workspace
    order_id: str
    at: datetime
    total: Decimal = Decimal(100)
    source: str = "shopify_orders"
    status: str = "paid"
    is_test: bool = False
    currency: str = "GBP"
    customer: str = ""
    rule: str = "r13"
    campaign: str = ""

    @property
    def days(self) -> Iterator[tuple[str, str, date]]:
        yield self.workspace.workspace_id, "orders", self.workspace.day(self.at)

    @property
    def is_counted(self) -> bool:
        if self.workspace.revenue_source != "orders":
            return False
        if self.source == "shopify_orders":
            return not self.is_test and self.status != "voided"
        return self.status in ("processing", "on-hold", "completed", "refunded")

    def row(self) -> tuple[str, dict[str, Any]]:
        return "orders", {
            "workspace_id": self.workspace.workspace_id,
            "source": self.source,
            "order_id": self.order_id,
            "order_key": f"{self.source} {self.order_id}",
            "local_date": self.workspace.day(self.at),
            "created_at": moment(self.at),
            "status": self.status,
            "is_test": self.is_test,
            "currency": self.currency,
            "total": self.total,
            "gross_sales": self.total + 7,
            "discounts": Decimal(7),
            "shipping": Decimal(3),
            "taxes": Decimal("1.5"),
            "customer_key": self.customer,
            "source_rule_id": self.rule,
            "campaign": self.campaign,
        }


@dataclass(frozen=True)
class Refund:
    """What went back for an order."""

    order: Order
    refund_id: str
    at: datetime
    amount: Decimal = Decimal(10)

    @property
    def days(self) -> Iterator[tuple[str, str, date]]:
        workspace = self.order.workspace
        yield workspace.workspace_id, "refunds", workspace.day(self.at)

    def row(self) -> tuple[str, dict[str, Any]]:
        workspace = self.order.workspace
        return "order_refunds", {
            "workspace_id": workspace.workspace_id,
            "source": self.order.source,
            "refund_id": self.refund_id,
            "order_id": self.order.order_id,
            "order_key": f"{self.order.source} {self.order.order_id}",
            "local_date": workspace.day(self.at),
            "refunded_at": moment(self.at),
            "order_local_date": workspace.day(self.order.at),
            "currency": self.order.currency,
            "amount": self.amount,
        }


@dataclass(frozen=True)
class Payment:
    """A payment with its refunds: id, time, amount and status of each."""

    workspace: Workspace
    payment_id: str
    at: datetime
    amount: Decimal = Decimal(100)
    status: str = "succeeded"
    is_livemode: bool = True
    currency: str = "GBP"
    customer: str = ""
    visitor: str = ""
    refunds: tuple[tuple[str, datetime, Decimal, str], ...] = ()

    @property
    def days(self) -> Iterator[tuple[str, str, date]]:
        yield self.workspace.workspace_id, "payments", self.workspace.day(self.at)
        for _, at, _, _ in self.refunds:
            yield self.workspace.workspace_id, "refunds", self.workspace.day(at)

    @property
    def is_counted(self) -> bool:
        return (
            self.workspace.revenue_source == "payments"
            and self.is_livemode
            and self.status == "succeeded"
        )

    def row(self) -> tuple[str, dict[str, Any]]:
        return "payments", {
            "workspace_id": self.workspace.workspace_id,
            "payment_id": self.payment_id,
            "order_key": f"payments {self.payment_id}",
            "local_date": self.workspace.day(self.at),
            "paid_at": moment(self.at),
            "status": self.status,
            "is_paid": True,
            "is_livemode": self.is_livemode,
            "currency": self.currency,
            "amount": self.amount,
            "customer_key": self.customer,
            "visitor_id": self.visitor,
        }

    def more_rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for refund_id, at, amount, status in self.refunds:
            yield (
                "payment_refunds",
                {
                    "workspace_id": self.workspace.workspace_id,
                    "refund_id": refund_id,
                    "payment_id": self.payment_id,
                    "order_key": f"payments {self.payment_id}",
                    "local_date": self.workspace.day(at),
                    "refunded_at": moment(at),
                    "payment_local_date": self.workspace.day(self.at),
                    "status": status,
                    "currency": self.currency,
                    "amount": amount,
                },
            )


Row = Event | Order | Refund | Payment


def moment(at: datetime) -> str:
    """A time as ClickHouse reads it."""
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S.%f")


@dataclass
class Dbt:
    """dbt over one warehouse; it keeps what was loaded, to tell which days a change touches."""

    warehouse: Warehouse
    rows: set[Row] = field(default_factory=set)
    #: Workspaces, measure groups and days that `purge` closed.
    frozen: set[tuple[str, str, date]] = field(default_factory=set)
    reads: Counter[str] = field(default_factory=Counter)

    def query(self, sql: str) -> list[dict[str, Any]]:
        """The rows of a query, numbers and dates as text."""
        body = clickhouse.execute(
            self.warehouse.settings,
            sql,
            params={"default_format": "JSONEachRow", "output_format_json_quote_decimals": "1"},
        ).body
        return [json.loads(line) for line in body.splitlines()]

    def run(self, *arguments: str) -> None:
        """Run dbt in this process. Raises TidemarkError with what it said where it fails."""
        with self._counting():
            build.dbt(self.warehouse.settings, arguments)
        if arguments == ("run",):
            # The contracts held: they need not be asked about again.
            build.note_models(self.warehouse.settings)

    def open(
        self, workspaces: Iterable[Workspace], rates: Iterable[tuple[date, str, str, str]] = ()
    ) -> None:
        """Start anew: no rows, these tenants, these exchange rates."""
        self.rows, self.frozen = set(), set()
        databases = "('intermediate', 'marts', 'retention', 'reference', 'raw', 'anonymised')"
        emptied = ("reference.workspaces", "reference.build_scope")
        for table in self.query(
            "select concat(database, '.', name) as name, engine from system.tables"
            f" where database in {databases} and (engine like '%MergeTree' or engine = 'View')"
        ):
            name, engine = table["name"], table["engine"]
            if (
                name in emptied
                or name.startswith(("raw.", "anonymised."))
                or (name.startswith("retention.") and engine != "View")
            ):
                self.execute(f"truncate table {name}")
            elif name.startswith(("intermediate.", "marts.")) and engine != "View":
                self.execute(f"drop table {name} sync")
        self.insert(
            "reference.workspaces",
            [
                {
                    "workspace_id": workspace.workspace_id,
                    "timezone": workspace.timezone,
                    "currency": workspace.currency,
                    "currency_exponent": 2,
                    "plan": "growth",
                    "revenue_source": workspace.revenue_source,
                }
                for workspace in workspaces
            ],
        )
        self.insert(
            "raw.fx_rates",
            [
                {"workspace_id": "_", "local_date": day, "base": base, "quote": quote, "rate": rate}
                for day, base, quote, rate in rates
            ],
        )

    def load(self, rows: Iterable[Row]) -> None:
        """Let raw hold these rows and no others, and scope the days that differ."""
        loaded = set(rows)
        tables: dict[str, list[dict[str, Any]]] = {
            "pixel_events": [], "orders": [], "order_refunds": [], "payments": [],
            "payment_refunds": [],
        }  # fmt: skip
        for row in loaded:
            refunds = row.more_rows() if isinstance(row, Payment) else ()
            for table, values in (row.row(), *refunds):
                if (values["workspace_id"], GROUPS[table], values["local_date"]) not in self.frozen:
                    tables[table].append(values)
        for table, lines in tables.items():
            self.execute(f"truncate table raw.{table}")
            self.insert(f"raw.{table}", lines)
        self.scope({day for row in loaded ^ self.rows for day in row.days})
        self.rows = loaded

    def purge(self, days: Iterable[tuple[str, str, date]]) -> None:
        """Take these days' rows of raw and of the facts, as the purge's steps do."""
        closed = set(days)
        closing = [
            {"workspace_id": workspace, "measure_group": group, "local_date": day}
            for workspace, group, day in closed
        ]
        self.insert("retention.frozen_days", closing)
        self.insert("retention.expiring_days", closing)
        self.execute(
            "insert into retention.purged_coverage select *, 'test' from retention.coverage"
            " where (workspace_id, transform(class, ['pixel_events', 'order_refunds',"
            " 'payment_refunds'], ['pixel', 'refunds', 'refunds'], class), local_date)"
            " in retention.expiring_days"
        )
        self.run("snapshot")
        query = self.warehouse.settings.sql / "purge" / "anonymised.sql"
        missing = {row["measure"]: row["missing"] for row in self.query(query.read_text())}
        assert missing == dict.fromkeys(missing, missing["orders"])
        assert int(missing["orders"]) == 0
        for table, group in GROUPS.items():
            self._delete(f"raw.{table}", f"'{group}'", "local_date")
        for table in ("int_session_days", "int_sessions", "int_purchase_links"):
            self._delete(f"intermediate.{table}", "'pixel'", "date_day")
        self._delete("intermediate.int_orders", "measure_group", "date_day")
        self._delete("intermediate.int_refunds", "'refunds'", "date_day")
        self.execute("truncate table retention.expiring_days")
        self.frozen |= closed

    def _delete(self, table: str, group: str, day: str) -> None:
        self.execute(
            f"alter table {table} delete where (workspace_id, {group}, {day}) in"
            " (select workspace_id, measure_group, local_date from retention.expiring_days)"
            " settings mutations_sync = 2, allow_nondeterministic_mutations = 1"
        )

    def scope(self, days: Iterable[tuple[str, str, date]]) -> None:
        """Set the days that the next build recomputes."""
        self.execute("truncate table reference.build_scope")
        self.insert(
            "reference.build_scope",
            [
                {"workspace_id": workspace, "measure_group": group, "local_date": day}
                for workspace, group, day in days
            ],
        )

    def figures(self, where: str = "true") -> dict[tuple[str, str, str, str], dict[str, Any]]:
        """The commerce measures of the daily mart, zeros left out, by its key."""
        measures = ", ".join(f"toString({name}) as {name}" for name in (*COUNTS, *MONEY))
        rows = self.query(
            f"select workspace_id, toString(date_day) as day, platform, campaign, {measures},"
            " toString(finalizeAggregation(visitors_state)) as visitors"
            f" from marts.summary_kpis_daily where {where}"
        )
        return {
            (row.pop("workspace_id"), row.pop("day"), row.pop("platform"), row.pop("campaign")): {
                name: Decimal(value) for name, value in row.items() if Decimal(value)
            }
            for row in rows
        }

    def execute(self, sql: str) -> dict[str, Any]:
        """Run a statement; the engine's counters of it."""
        return clickhouse.execute(self.warehouse.settings, sql).summary

    def insert(self, table: str, rows: list[dict[str, Any]]) -> None:
        """Insert rows given as columns by name."""
        if rows:
            lines = "\n".join(json.dumps(row, default=str) for row in rows)
            self.execute(f"insert into {table} format JSONEachRow\n{lines}")

    @contextmanager
    def _counting(self) -> Iterator[None]:
        """Add up what the engine says it read, from the header of each of its answers."""
        self.reads.clear()
        urlopen, lock = HTTPConnectionPool.urlopen, Lock()

        def counted(*arguments: Any, **options: Any) -> Any:
            response = urlopen(*arguments, **options)
            summary = json.loads(response.headers.get("X-ClickHouse-Summary") or "{}")
            with lock:
                for name in ("read_rows", "read_bytes"):
                    self.reads[name] += int(summary.get(name, 0))
            return response

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(HTTPConnectionPool, "urlopen", counted)
            yield


@dataclass(frozen=True)
class Session:
    """A session as the contract defines it, over all its events."""

    started_at: datetime
    platform: str
    campaign: str
    is_bot: bool


def figures(
    rows: Iterable[Row], rate: Callable[[str, str, date], Decimal]
) -> dict[tuple[str, str, str, str], dict[str, Decimal]]:
    """The daily mart, zeros left out, by its key."""
    rows = list(rows)
    events = [row for row in rows if isinstance(row, Event)]
    totals: dict[tuple[str, str, str, str], dict[str, Decimal]] = defaultdict(
        lambda: defaultdict(Decimal)
    )
    visitors: dict[tuple[str, str, str, str], set[str]] = defaultdict(set)

    grouped: dict[tuple[Any, ...], list[Event]] = defaultdict(list)
    for event in events:
        bucket = event.session or event.at.timestamp() // 1800
        grouped[event.workspace, event.visitor, bucket, event.is_bot].append(event)

    by_visitor: dict[tuple[str, str], list[Session]] = defaultdict(list)
    for (workspace, visitor, _, is_bot), members in grouped.items():
        members.sort(key=lambda event: (event.at, event.event_id))
        origin = next((event for event in members if PLATFORMS[event.rule] != "direct"), None)
        platform, campaign = (PLATFORMS[origin.rule], origin.campaign) if origin else ("direct", "")
        session = Session(members[0].at, platform, campaign, is_bot)
        by_visitor[workspace.workspace_id, visitor].append(session)
        for number, event in enumerate(members):
            key = (workspace.workspace_id, str(workspace.day(event.at)), platform, campaign)
            totals[key]["bot_pageviews"] += event.is_bot and event.name == "$pageview"
            if not event.is_bot:
                totals[key]["sessions"] += number == 0
                totals[key]["pageviews"] += event.name == "$pageview"
                totals[key]["conversions"] += event.name == "purchase"
                visitors[key].add(visitor)

    def attribution(sale: Order | Payment) -> tuple[str, str]:
        workspace_id = sale.workspace.workspace_id
        if isinstance(sale, Payment):
            visitor, own = sale.visitor, ("direct", "")
        else:
            links = [
                event
                for event in events
                if event.workspace == sale.workspace
                and event.name == "purchase"
                and event.order_id == sale.order_id
            ]
            earliest = min(links, key=lambda event: (event.at, event.visitor), default=None)
            visitor = earliest.visitor if earliest else ""
            own = (
                (PLATFORMS[sale.rule], sale.campaign)
                if PLATFORMS[sale.rule] != "direct"
                else ("direct", "")
            )
        visits = [
            session
            for session in by_visitor.get((workspace_id, visitor), ())
            if visitor
            and not session.is_bot
            and session.platform != "direct"
            and sale.at - timedelta(hours=720) <= session.started_at <= sale.at
        ]
        latest = max(visits, key=lambda session: session.started_at, default=None)
        return (latest.platform, latest.campaign) if latest else own

    sales = [row for row in rows if isinstance(row, Order | Payment) and row.is_counted]
    first: dict[tuple[str, str], Any] = {}
    for sale in sales:
        if sale.customer:
            customer = (sale.workspace.workspace_id, sale.customer)
            first[customer] = min(first.get(customer, sale), sale, key=_order_of_sales)

    for sale in sales:
        workspace = sale.workspace
        key = (workspace.workspace_id, str(workspace.day(sale.at)), *attribution(sale))

        def converted(amount: Decimal, day: date, sale: Order | Payment = sale) -> Decimal:
            factor = rate(sale.currency, sale.workspace.currency, day)
            return (amount * factor).quantize(Decimal("0.01"), ROUND_HALF_UP)

        _, values = sale.row()
        total = sale.total if isinstance(sale, Order) else sale.amount
        amounts = {"revenue": total, "gross_sales": values.get("gross_sales", total)}
        amounts |= {
            name: values.get(name, Decimal(0)) for name in ("discounts", "shipping", "taxes")
        }
        for name, amount in amounts.items():
            totals[key][name] += converted(amount, workspace.day(sale.at))
        totals[key]["orders"] += 1
        if sale.customer and first[workspace.workspace_id, sale.customer] == sale:
            totals[key]["new_customer_orders"] += 1
            totals[key]["new_customer_revenue"] += converted(total, workspace.day(sale.at))

        if isinstance(sale, Payment):
            returned = [
                (at, amount) for _, at, amount, status in sale.refunds if status == "succeeded"
            ]
        else:
            returned = [
                (row.at, row.amount)
                for row in rows
                if isinstance(row, Refund) and row.order == sale
            ]
        for at, amount in returned:
            day = workspace.day(at)
            totals[key[0], str(day), key[2], key[3]]["refunds"] += converted(amount, day)

    for key, seen in visitors.items():
        totals[key]["visitors"] = Decimal(len(seen))
    nonzero = {
        key: {name: value for name, value in row.items() if value} for key, row in totals.items()
    }
    return {key: row for key, row in nonzero.items() if row}


def _order_of_sales(sale: Order | Payment) -> tuple[datetime, str, int, str]:
    sale_id = sale.order_id if isinstance(sale, Order) else sale.payment_id
    source = sale.source if isinstance(sale, Order) else "payments"
    return sale.at, source, int(sale_id) if sale_id.isdigit() else 0, sale_id


def random_rows(
    dice: random.Random, workspaces: list[Workspace], first_day: date, days: int, count: int
) -> list[Row]:
    """Rows that meet often: few visitors, customers and sessions, many of them around midnight."""

    def some_time(around: datetime | None = None, spread: float = 0) -> datetime:
        if around is not None:
            return around + timedelta(seconds=int(dice.uniform(-spread, spread) * 86400))
        start = datetime(first_day.year, first_day.month, first_day.day, tzinfo=UTC)
        day = start + timedelta(days=dice.randrange(days))
        if dice.random() < 0.4:
            return day + timedelta(minutes=dice.randrange(-90, 90))
        return day + timedelta(seconds=dice.randrange(86400))

    rows: list[Row] = []
    for number in range(count):
        workspace = dice.choice(workspaces)
        kind = dice.random()
        at = some_time()
        rule, campaign = dice.choice([*PLATFORMS, "r13", "r13", "r13"]), dice.choice(["", "spring"])
        if PLATFORMS[rule] == "direct":
            campaign = ""
        name = f"{number}"
        customer = dice.choice(["", *(f"c{i}" for i in range(count // 20))])
        visitor = f"v{dice.randrange(max(2, count // 15))}"
        currency = dice.choice(["GBP", "GBP", "USD"])
        amount = Decimal(dice.randrange(1, 30000)) / 100
        if kind < 0.7:
            # Ten days at most: a session id that comes back after months is another question.
            session = dice.choice(["", f"s{at.timetuple().tm_yday // 10}"])
            is_bot = dice.random() < 0.15
            rows.append(
                Event(
                    workspace,
                    f"e{name}",
                    at,
                    visitor,
                    "$pageview",
                    session,
                    rule,
                    campaign,
                    "",
                    is_bot,
                )
            )
        elif kind < 0.9:
            source = dice.choice(["shopify_orders", "woocommerce_orders"])
            statuses = (
                ["paid", "voided"]
                if source == "shopify_orders"
                else ["completed", "failed", "on-hold"]
            )
            order = Order(
                workspace, name, at, amount, source, dice.choice(statuses), dice.random() < 0.1,
                currency, customer, rule, campaign,
            )  # fmt: skip
            rows.append(order)
            for link in range(dice.randrange(3)):
                rows.append(
                    Event(
                        workspace,
                        f"e{name}-{link}",
                        some_time(at, 2),
                        f"v{dice.randrange(max(2, count // 15))}",
                        "purchase",
                        "",
                        dice.choice(["r13", "r01"]),
                        "",
                        name,
                    )
                )
            for refund in range(dice.randrange(2)):
                rows.append(
                    Refund(
                        order,
                        f"f{name}-{refund}",
                        at + timedelta(days=dice.uniform(0, 20)),
                        Decimal("1.25"),
                    )
                )
        else:
            refunds = tuple(
                (
                    f"f{name}-{refund}",
                    at + timedelta(days=dice.uniform(0, 20)),
                    Decimal("2.35"),
                    dice.choice(["succeeded", "failed"]),
                )
                for refund in range(dice.randrange(3))
            )
            rows.append(
                Payment(
                    workspace,
                    f"p{name}",
                    at,
                    amount,
                    dice.choice(["succeeded", "failed"]),
                    dice.random() < 0.9,
                    currency,
                    customer,
                    visitor,
                    refunds,
                )
            )
    return rows


def changed(dice: random.Random, row: Row) -> Row:
    """A newer version of a row, as a source redelivers it."""
    if isinstance(row, Order):
        return replace(
            row,
            status=dice.choice(["paid", "voided", "completed", "failed"]),
            total=row.total + 1,
            customer=dice.choice([row.customer, row.customer, ""]),
        )
    if isinstance(row, Payment):
        return replace(row, refunds=row.refunds[:-1], amount=row.amount + 1)
    if isinstance(row, Refund):
        return replace(row, amount=row.amount + 1)
    return row
