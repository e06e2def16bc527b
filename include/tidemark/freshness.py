"""How fresh each source is, what is missing of it, and by when that can still be fetched."""

from dataclasses import dataclass
from datetime import date, datetime, timedelta

from tidemark import policy, postgres
from tidemark.config import Settings
from tidemark.policy import Policy, Window
from tidemark.postgres import Connection

#: Days in which a missing delivery counts as a gap, where the platform forgets nothing.
GAP_DAYS = 28
#: The same where it does; to read the loads of years would take the page its time.
REACH_DAYS = 92
#: A gap is an alarm when this many days are left to close it.
ALARM_DAYS = 14


@dataclass(frozen=True, slots=True)
class SourceState:
    """How fresh a source is, and what is missing of it."""

    name: str
    workspaces: int
    newest_delivery: date | None
    loaded_at: datetime | None
    #: Deliveries that are missing, over all workspaces that had one before.
    gaps: int
    oldest_gap: date | None
    #: From this day on the platform can no longer be asked for the oldest gap.
    permanent_on: date | None
    #: What to tell people, where little time is left; else None.
    alarm: str | None


def sources(connection: Connection, ladder: Policy, as_of: date) -> tuple[SourceState, ...]:
    """Every source of the policy by name, with its gaps up to the day before `as_of`.

    Gaps are looked for as far back as the platform answers (`reach` of the policy) but for three
    months at most; of a source that has no such limit, in the last days alone.
    """
    names = sorted(ladder.sources)
    recent = as_of - timedelta(days=GAP_DAYS)
    reaches = [ladder.sources[name].reach for name in names]
    since = [
        max(reach.start(as_of) + timedelta(days=1), as_of - timedelta(days=REACH_DAYS))
        if reach
        else recent
        for reach in reaches
    ]
    # The days of a source and workspace are bits, the first of them the leftmost: hashing numbers
    # by their pair is all that the many rows cost, and no day is looked for.
    rows = connection.execute(
        "with name as (select * from unnest(%(names)s::text[], %(since)s::date[]) with ordinality"
        "   as name (source, since, number)),"
        " pair as (select name.source, edge.newest, tenant.workspace_id,"
        "   greatest(edge.oldest, name.since) as first, name.since"
        "  from name"
        "  cross join (select workspace_id from app.workspaces where deleted_at is null"
        "   union all select '_') as tenant"
        "  cross join lateral (select min(delivery_date) as oldest, max(delivery_date) as newest"
        "   from control.loads as own"
        "   where own.source = name.source and own.workspace_id = tenant.workspace_id) as edge"
        "  where edge.oldest is not null),"
        " delivered as (select source, workspace_id,"
        "   bit_or(%(first_bit)s::bit varying >> (own.delivery_date - name.since)) as days"
        "  from name join control.loads as own using (source)"
        "  where own.delivery_date between %(oldest)s and %(to)s"
        "  and own.delivery_date >= name.since group by source, workspace_id),"
        " kept as (select pair.source, pair.newest, pair.first,"
        "   substring(coalesce(delivered.days, %(no_bit)s::bit varying)"
        "    from pair.first - pair.since + 1"
        "    for greatest(%(to)s::date - pair.first + 1, 0)) as days"
        "  from pair left join delivered using (source, workspace_id)),"
        " state as (select source, count(*) as workspaces, max(newest) as newest_delivery,"
        "   sum(length(days) - bit_count(days))::bigint as gaps,"
        "   min(first + position(B'0' in days) - 1) filter (where position(B'0' in days) > 0)"
        "    as oldest_gap"
        "  from kept group by source)"
        " select source, coalesce(workspaces, 0) as workspaces, newest_delivery,"
        "  (select max(loaded_at) from control.loads as own where own.source = name.source"
        "   and own.delivery_date = state.newest_delivery) as loaded_at,"
        "  coalesce(gaps, 0) as gaps, oldest_gap"
        " from name left join state using (source) order by number",
        {
            "names": names,
            "since": since,
            "oldest": min(since),
            "to": as_of - timedelta(days=1),
            "first_bit": "1".ljust(REACH_DAYS, "0"),
            "no_bit": "0" * REACH_DAYS,
        },
    )
    found = []
    for row, reach in zip(rows, reaches, strict=True):
        oldest = row["oldest_gap"]
        lost = _lost_on(oldest, reach) if oldest and reach else None
        alarm = None
        if lost and lost <= as_of + timedelta(days=ALARM_DAYS):
            alarm = (
                f"{row['source']}: the delivery of {oldest} is missing and can be fetched until"
                f" {lost - timedelta(days=1)} only: the platform answers no further back"
            )
        found.append(
            SourceState(
                name=row["source"],
                workspaces=row["workspaces"],
                newest_delivery=row["newest_delivery"],
                loaded_at=row["loaded_at"],
                gaps=row["gaps"],
                oldest_gap=oldest,
                permanent_on=lost,
                alarm=alarm,
            )
        )
    return tuple(found)


def alarms(settings: Settings, as_of: date) -> tuple[str, ...]:
    """A line for each source with a gap that soon can't be fetched any more.

    Raises:
        TidemarkError: PostgreSQL does not answer, or the policy cannot be read.
    """
    with postgres.connect(settings) as connection:
        found = sources(connection, policy.read(settings), as_of)
    return tuple(source.alarm for source in found if source.alarm)


def _lost_on(delivery: date, reach: Window) -> date:
    """The first day on which the platform no longer answers for the day before a delivery."""
    found = delivery + timedelta(days=reach.days)
    while reach.start(found - timedelta(days=1)) >= delivery:
        found -= timedelta(days=1)
    return found
