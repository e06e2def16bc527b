"""The one door through which rows are destroyed: permitted, verified, in the ledger.

A purge's steps are gated; each is begun in the ledger before anything goes. From then on its days
are closed to loads and builds, so a killed run is finished from the ledger alone. A person's rows
go by removals, which need no gate and close no day.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date, datetime, timedelta
from typing import Any, Protocol

from tidemark import build as building
from tidemark import clickhouse, cold, coverage, ledger, load, policy, replicas
from tidemark import plan as planning
from tidemark.config import Settings
from tidemark.errors import Refused, TidemarkError
from tidemark.keys import Keyring
from tidemark.plan import Plan, Removal, Step, Target
from tidemark.postgres import Connection
from tidemark.topology import Topology

#: Seconds to wait for a mutation that an earlier run left behind, and for the bytes to go.
PATIENCE = 3600.0

BEGUN, DONE, REFUSED = "step_begun", "step_done", "step_refused"
EXPIRY_BEGUN, EXPIRY_DONE = "expiry_begun", "expiry_done"
ERASURE_BEGUN, ERASURE_DONE = "erasure_begun", "erasure_done"
_SALES = frozenset({"orders", "payments"})
# What becomes of a copy, by the policy's class.
_EXPIRING = {"cold_files": "delete_file", "recalled": "drop_recall", "exports": "delete_export"}


class Shelf(Protocol):
    """A module with copies of rows, which go at the end of a window of their own."""

    #: Of the policy, those whose copies they are.
    CLASSES: tuple[str, ...]

    def due(
        self, connection: Connection, ladder: policy.Policy, as_of: date
    ) -> tuple[cold.Due, ...]:
        """What is past its window."""
        ...

    def delete(
        self, settings: Settings, connection: Connection, own: cold.Due, now: datetime
    ) -> None:
        """Destroy it; nothing happens where it is gone. Raises Refused where it has to stay."""
        ...

    def is_gone(self, settings: Settings, connection: Connection, own: cold.Due) -> bool:
        """Whether nothing is left of it."""
        ...


class Verdict(Protocol):
    """What the purge asks of a gate's answer; `control.verdicts` has to say the same."""

    @property
    def verdict_id(self) -> int:
        """Its number there."""
        ...


@dataclass(frozen=True, slots=True)
class StepReport:
    """What became of a step."""

    step_id: str
    data_class: str
    month: date
    action: str
    workspaces: tuple[str, ...]
    #: Rows destroyed, without those derived from them.
    rows: int
    #: done, resumed, refused or held.
    status: str
    reason: str = ""

    @property
    def failed(self) -> bool:
        """Whether a guard stopped it."""
        return self.status == "refused"


@dataclass(frozen=True, slots=True)
class Door:
    """Everything a purge needs; `note` is called at each boundary of a step."""

    settings: Settings
    #: Commits by itself.
    connection: Connection
    ladder: policy.Policy
    keyring: Keyring
    clock: Callable[[], datetime]
    #: What `expire` empties.
    shelves: tuple[Shelf, ...]
    note: Callable[[str], None] = lambda _line: None

    @property
    def _topology(self) -> Topology:
        return clickhouse.topology(self.settings)

    @property
    def _hosts(self) -> replicas.Hosts:
        return clickhouse.hosts(self.settings)

    # -- what the command line and the DAGs call ---------------------------------------------------

    def resume(self) -> tuple[StepReport, ...]:
        """Finish the steps that were begun and not ended: they are closed, and have to go.

        Raises:
            Refused: rows came in behind a closed step.
            TidemarkError: a store does not answer, or a figure of a closed day changed.
        """
        reports = []
        for begun in self._open_steps():
            step = planning.step_from_dict(begun["step"])
            if self._is_held(step):
                reports.append(_report(step, 0, "held", "a hold came after the step was begun"))
                continue
            self.note(f"finishing {step.data_class} {step.month:%Y-%m}, which was begun")
            reports.append(self._finish(step, begun, "resumed"))
        return tuple(reports)

    def purge(
        self,
        plan: Plan,
        verdicts: Mapping[str, Verdict | None],
        *,
        as_of: date,
        current: Plan,
        approved_by: str | None = None,
        only: str | None = None,
    ) -> tuple[StepReport, ...]:
        """Destroy what a plan says, class by class, as far as its verdicts let it.

        Args:
            verdicts: of the gate, by class.
            as_of: the day that decides: the plan's own.
            current: what would be planned now; a step that is not in it does not happen, for a
                window, a hold or the rows have changed.
            approved_by: who let a plan over the policy's size go.
            only: this class of the plan alone.

        Returns:
            What became of each step; a class whose guard said no has none done.

        Raises:
            Refused: the day is not the plan's or lies in the future, or the plan needs approval.
            TidemarkError: a store does not answer, or a figure changed.
        """
        if as_of != plan.as_of:
            raise Refused(f"plan {plan.plan_id} is of {plan.as_of}, not of {as_of}")
        policy.refuse_future(as_of, self.clock())
        Plan.from_dict(plan.as_dict())
        if plan.policy_sha256 != self.ladder.sha256:
            raise Refused(
                f"{policy.path(self.settings)} changed since plan {plan.plan_id}: plan again"
            )
        if plan.rows > self.ladder.purge.approval_rows and not approved_by:
            raise Refused(
                f"plan {plan.plan_id} destroys {plan.rows} rows, more than the"
                f" {self.ladder.purge.approval_rows} that go without a person's approval:"
                " look at it with `tidemark plan` and approve it"
            )
        planning.store(self.connection, plan, self.clock())
        done = {entry["step_id"] for entry in self._entries(DONE, plan)}
        reports: list[StepReport] = []
        for name in plan.classes:
            for step in plan.of(name):
                if step.step_id in done or only not in (None, name):
                    continue
                try:
                    proof = self._checked(plan, name, verdicts.get(name))
                    if not any(step.takes_the_same(own) for own in current.steps):
                        raise Refused(
                            f"{name} of {step.month:%Y-%m} changed since the plan: plan again"
                        )
                    reports.append(self._begin(plan, step, proof, approved_by))
                except Refused as error:
                    self._enter(
                        REFUSED,
                        {"plan_id": plan.plan_id, "step_id": step.step_id, "reason": str(error)},
                    )
                    reports.append(_report(step, 0, "refused", str(error)))
        return tuple(reports)

    def expire(self, as_of: date) -> tuple[StepReport, ...]:
        """Destroy cold files, recalled rows and exports whose time is over.

        Safe to run again: what a killed run began goes first.

        Raises:
            Refused: the day lies in the future.
            TidemarkError: something is left of what was destroyed, or a store does not answer.
        """
        policy.refuse_future(as_of, self.clock())
        began = self._open_expiries()
        numbers = {(own.data_class, own.number) for own in began}
        due = [
            own
            for shelf in self.shelves
            for own in shelf.due(self.connection, self.ladder, as_of)
            if (own.data_class, own.number) not in numbers
        ]
        reports = []
        for own in (*began, *due):
            if own.held_by:
                holds = ", ".join(map(str, own.held_by))
                reports.append(_expired(own, 0, "held", f"hold {holds}"))
                continue
            try:
                reports.append(self._expire(own, is_begun=own not in due))
            except Refused as error:
                reports.append(_expired(own, 0, "held", str(error)))
        return tuple(reports)

    def unfinished(self) -> tuple[str, ...]:
        """The steps that were begun and not ended, a line each."""
        steps = [planning.step_from_dict(begun["step"]) for begun in self._open_steps()]
        return tuple(f"{step.data_class} {step.month:%Y-%m}, {step.rows} rows" for step in steps)

    def verify(self, plan: Plan) -> tuple[str, ...]:
        """Read the stores again for every step of a plan that is done.

        Returns:
            A line for each thing that is not as it has to be.
        """
        done = {entry["step_id"] for entry in self._entries(DONE, plan)}
        begun = {entry["step"]["step_id"]: entry for entry in self._entries(BEGUN, plan)}
        # A mart's own step read its cold copy back: from then on that is where the figures are.
        tiered = {
            (target["table"], own["workspace_id"], entry["step"]["month"])
            for step_id, entry in begun.items()
            if step_id in done
            for target in entry["step"]["targets"]
            for own in entry["step"]["ranges"]
        }
        problems: list[str] = []
        for step in plan.steps:
            if step.step_id in done:
                before = {
                    table: {
                        workspace_id: digest
                        for workspace_id, digest in workspaces.items()
                        if (table, workspace_id, step.month.isoformat()) not in tiered
                    }
                    for table, workspaces in begun[step.step_id]["aggregates"].items()
                }
                problems += self._left(step)
                problems += self._changed(step, before)
        problems += [
            f"{own.name} is left over from a run that was killed and may hold rows that are purged:"
            " run `tidemark load` and `tidemark build`, or drop it"
            for own in coverage.orphans(self.settings)
        ]
        return tuple(problems)

    # -- a person's erasure ------------------------------------------------------------------------

    def remove(self, code: str, removal: Removal, hold_ids: Sequence[int]) -> None:
        """Destroy the rows of a removal, whichever day they are of.

        Args:
            code: of the request.
            hold_ids: the holds that its predicates leave out; one that comes later stops a rerun.

        Raises:
            Refused: replicas differ, or rows came in behind it.
            TidemarkError: something is left, or a store does not answer.
        """
        self._mark(removal, f"{sum(removal.tables.values())} rows to go")
        begun = {
            "code": code,
            "class": removal.data_class,
            "removal": asdict(removal),
            "tables": removal.tables,
            "holds": list(hold_ids),
        }
        counted = list(self._counted(removal))
        with self.connection.transaction():
            self._count_in_ledger(removal, counted)
            evidence = ledger.evidence(self.connection, removal.step_id)
            begun["evidence"] = evidence.get(removal.step_id, {})
            ledger.append(self.connection, self.keyring, ERASURE_BEGUN, begun, self.clock())
        self.finish_removal(begun)

    def begun_removals(self, code: str) -> list[Mapping[str, Any]]:
        """The removals of a request that were begun and not ended, as the ledger has them."""
        return [
            begun
            for begun in ledger.unended(
                self.connection,
                ERASURE_BEGUN,
                ERASURE_DONE,
                "done.document -> 'step_id' = begun.document -> 'removal' -> 'step_id'",
            )
            if begun["code"] == code
        ]

    def finish_removal(self, begun: Mapping[str, Any]) -> None:
        """Destroy what is left of a removal that is in the ledger; raises as `remove`."""
        removal = planning.removal_from_dict(begun["removal"])
        self._mark(removal, "is in the ledger")
        self._cover(removal)
        self._mark(removal, "is counted")
        self._destroy(begun["code"], removal)
        self._forget_permits(removal)
        left = self._left(removal, PATIENCE)
        if left:
            raise TidemarkError(f"the erasure left something behind: {'; '.join(left)}")
        self._mark(removal, "is verified")
        self._enter(
            ERASURE_DONE,
            {
                "code": begun["code"],
                "step_id": removal.step_id,
                "class": removal.data_class,
                "tables": removal.tables,
            },
        )
        self._mark(removal, "is done")

    def _cover(self, removal: Removal) -> None:
        """Tell the marts' side what went: the facts of days that change are made without it."""
        table = "retention.erased_coverage"
        known = clickhouse.rows(
            self.settings,
            f"select 1 from {table} where step_id = {clickhouse.literal(removal.step_id)} limit 1",
        )
        if known:
            return
        clickhouse.insert_rows(
            self.settings,
            table,
            [
                {
                    "workspace_id": row["workspace_id"],
                    "class": row["measure"],
                    "local_date": row["local_date"].isoformat(),
                    "currency": row["currency"],
                    "row_count": row["event_count"],
                    "distinct_ids": row["distinct_ids"],
                    "money": f"{row['money']:f}",
                    "step_id": removal.step_id,
                }
                for row in self.connection.execute(
                    "select workspace_id, measure, local_date, currency, event_count, distinct_ids,"
                    " money from control.purged_rows where step_id = %s",
                    [removal.step_id],
                )
            ],
        )

    # -- the end of copies -------------------------------------------------------------------------

    def _expire(self, own: cold.Due, *, is_begun: bool) -> StepReport:
        what = f"{own.data_class} {own.number}: {own.of_class} of {own.month:%Y-%m}"
        if not is_begun:
            self._enter(EXPIRY_BEGUN, asdict(own))
            self.note(f"{what}: is in the ledger")
        (shelf,) = (shelf for shelf in self.shelves if own.data_class in shelf.CLASSES)
        shelf.delete(self.settings, self.connection, own, self.clock())
        self.note(f"{what}: is deleted")
        deadline = time.monotonic() + PATIENCE
        while not shelf.is_gone(self.settings, self.connection, own):
            if time.monotonic() > deadline:
                raise TidemarkError(f"{what}: something of it is still there")
            time.sleep(0.2)
        self._enter(EXPIRY_DONE, {"data_class": own.data_class, "number": own.number})
        self.note(f"{what}: is gone")
        return _expired(own, own.rows, "resumed" if is_begun else "done")

    def _open_expiries(self) -> list[cold.Due]:
        """What was begun and not ended."""
        return [
            cold.due_from(entry)
            for entry in ledger.unended(
                self.connection,
                EXPIRY_BEGUN,
                EXPIRY_DONE,
                "done.document -> 'data_class' = begun.document -> 'data_class'"
                " and done.document -> 'number' = begun.document -> 'number'",
            )
        ]

    # -- a step ------------------------------------------------------------------------------------

    def _begin(
        self, plan: Plan, step: Step, proof: Mapping[str, Any], approved_by: str | None
    ) -> StepReport:
        if self._is_held(step):
            raise Refused("a hold came after the plan: plan again")
        self._compare(step)
        self._wait_for_raw(step)
        self._mark(step, f"{step.rows} rows to go, and they are those of the plan")
        begun = {
            "plan_id": plan.plan_id,
            "step": asdict(step),
            "rows": step.rows,
            "verdict": proof,
            "approved_by": approved_by,
            "aggregates": self._aggregates(step),
        }
        counted = list(self._counted(step))
        with self.connection.transaction():
            cold.seal(self.connection, step, self.clock())
            self._close_in_ledger(plan.plan_id, step, counted)
            evidence = ledger.evidence(self.connection, step.step_id)
            begun["evidence"] = evidence.get(step.step_id, {})
            ledger.append(self.connection, self.keyring, BEGUN, begun, self.clock())
        return self._finish(step, begun, "done")

    def _finish(self, step: Step, begun: Mapping[str, Any], status: str) -> StepReport:
        self._mark(step, "is in the ledger")
        self._put_days(step, "retention.frozen_days")
        self._mark(step, "days are closed")
        self._keep_coverage(step)
        self._mark(step, "coverage is kept")
        if "anonymise" in step.expiry:
            self._anonymise(step)
            self._mark(step, "anonymised facts are kept")
        self._destroy(begun["plan_id"], step)
        self._forget_permits(step)
        left = self._left(step, PATIENCE)
        if left:
            raise TidemarkError(f"the purge left something behind: {'; '.join(left)}")
        changed = self._changed(step, begun["aggregates"])
        if changed:
            raise TidemarkError("; ".join(changed))
        self._mark(step, "is verified")
        self._enter(
            DONE,
            {
                "plan_id": begun["plan_id"],
                "step_id": step.step_id,
                "class": step.data_class,
                "month": step.month,
                "rows": step.rows,
                "tables": {target.table: target.rows for target in step.targets},
            },
        )
        self._mark(step, "is done")
        return _report(step, step.rows, status)

    def _mark(self, step: Step | Removal, line: str) -> None:
        month = f" {step.month:%Y-%m}" if isinstance(step, Step) else ""
        self.note(f"{step.data_class}{month}: {line}")

    def _checked(self, plan: Plan, name: str, verdict: Verdict | None) -> dict[str, Any]:
        """What the gate found, read from where it was stored."""
        if verdict is None:
            raise Refused(f"the gate has not looked at {name}")
        row = self.connection.execute(
            "select verdict_id, plan_id, class, success, created_at, validation_result_id"
            " from control.verdicts where verdict_id = %s",
            [verdict.verdict_id],
        ).fetchone()
        if row is None:
            raise Refused(f"verdict {verdict.verdict_id} is not on file")
        if row["plan_id"] != plan.plan_id or row["class"] != name:
            raise Refused(f"verdict {verdict.verdict_id} is not about {name} of this plan")
        if not row["success"]:
            raise Refused(f"the gate refused {name}: verdict {verdict.verdict_id}")
        hours = self.ladder.purge.verdict_hours
        age = self.clock() - row["created_at"]
        if not timedelta(0) <= age <= timedelta(hours=hours):
            raise Refused(
                f"verdict {verdict.verdict_id} on {name} is of {row['created_at']:%Y-%m-%d %H:%M}"
                f" UTC: it holds for {hours} hours"
            )
        return {
            "verdict_id": row["verdict_id"],
            "validation_result_id": row["validation_result_id"],
        }

    def _compare(self, step: Step) -> None:
        for target in step.targets:
            found = self._standing(target)
            if (found.rows, found.fingerprint) != (target.rows, target.fingerprint):
                raise Refused(
                    f"{target.table} {target.partition} changed since the plan:"
                    f" {found.rows} rows stand there, {target.rows} were planned: plan again"
                )
            if target.whole_partition and found.others:
                raise Refused(f"{target.table} {target.partition} has rows that stay: plan again")

    def _standing(self, target: Target) -> replicas.Standing:
        return replicas.standing(self._hosts, self._topology, target)

    def _wait_for_raw(self, step: Step) -> None:
        """A mart goes after the raw rows that it is proven by."""
        if not self.ladder.classes[step.data_class].is_mart:
            return
        for name, own in self.ladder.classes.items():
            if not own.measures or "drop" not in own.expiry:
                continue
            for table in own.tables:
                (row,) = clickhouse.rows(
                    self.settings,
                    f"select count() as rows from {table} where {step.predicate(own.day)}",
                )
                if row["rows"]:
                    raise Refused(f"{row['rows']} rows of {name} still stand in {table}")

    def _counted(self, step: Step | Removal) -> Iterator[dict[str, Any]]:
        for measure, select in planning.effects(self.settings, self.ladder, [step]).items():
            for row in clickhouse.rows(self.settings, load.counted(select)):
                yield {**row, "measure": measure}

    def _close_in_ledger(self, plan_id: str, step: Step, counted: list[dict[str, Any]]) -> None:
        if self.ladder.closed_groups(step.data_class):
            self.connection.execute(
                "insert into control.purge_ledger"
                " (class, workspace_id, local_date, plan_id, purged_at)"
                " select %s, workspace_id, %s::date + number, %s, %s"
                " from unnest(%s::text[], %s::int[]) as closing (workspace_id, days),"
                " generate_series(0, days - 1) as number"
                " on conflict (class, workspace_id, local_date) do nothing",
                [
                    step.data_class, step.month, plan_id, self.clock(),
                    list(step.closing), list(step.closing.values()),
                ],
            )  # fmt: skip
        self._count_in_ledger(step, counted)

    def _count_in_ledger(self, step: Step | Removal, counted: list[dict[str, Any]]) -> None:
        with self.connection.cursor() as cursor:
            cursor.executemany(
                "insert into control.purged_rows (step_id, class, measure, workspace_id,"
                " local_date, currency, event_count, distinct_ids, money)"
                " values (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
                [
                    [
                        step.step_id, step.data_class, row["measure"], row["workspace_id"],
                        row["local_date"], row["currency"], row["events"], row["ids"],
                        row["money"],
                    ]
                    for row in counted
                ],
            )  # fmt: skip

    # -- closing a day -----------------------------------------------------------------------------

    def _put_days(self, step: Step, table: str) -> None:
        """Name the step's days there, by workspace and measure group."""
        groups = self.ladder.closed_groups(step.data_class)
        if not groups:
            return
        lines = (
            json.dumps({"workspace_id": workspace_id, "days": days})
            for workspace_id, days in step.closing.items()
        )
        clickhouse.stream_insert(
            self.settings,
            f"insert into {table} (workspace_id, measure_group, local_date)"
            f" select workspace_id, arrayJoin([{', '.join(map(clickhouse.literal, groups))}]),"
            f" {clickhouse.literal(step.month)} + arrayJoin(range(days))"
            " from input('workspace_id String, days UInt8') format JSONEachRow",
            ["\n".join(lines).encode()],
        )

    def _keep_coverage(self, step: Step) -> None:
        measures = self.ladder.classes[step.data_class].measures
        if not measures:
            return
        named = ", ".join(clickhouse.literal(measure) for measure in measures)
        columns = "workspace_id, class, local_date, currency, row_count, distinct_ids, money"
        table = "retention.purged_coverage"
        # Days that closed before keep what was known of them then: their facts are gone.
        clickhouse.execute(
            self.settings,
            f"insert into {table} ({columns}, step_id)"
            f" select {columns}, {clickhouse.literal(step.step_id)} from retention.coverage"
            f" where class in ({named}) and {step.predicate('local_date')}"
            " and (workspace_id, class, local_date) not in"
            f" (select workspace_id, class, local_date from {table})",
            params=self._topology.written(table),
        )

    def _anonymise(self, step: Step) -> None:
        clickhouse.execute(self.settings, "truncate table retention.expiring_days")
        self._put_days(step, "retention.expiring_days")
        building.dbt(self.settings, ["snapshot"])
        query = self.settings.sql / "purge" / "anonymised.sql"
        for row in clickhouse.rows(self.settings, query.read_text(encoding="utf-8")):
            if row["missing"]:
                raise TidemarkError(
                    f"{row['missing']} rows of {row['measure']} left nothing in the anonymised"
                    " snapshots (dbt_project/snapshots): nothing of them was destroyed"
                )
        clickhouse.execute(self.settings, "truncate table retention.expiring_days")

    # -- destroying --------------------------------------------------------------------------------

    def _destroy(self, plan_id: str, step: Step | Removal) -> None:
        """Take what is left of a step's rows: all its tables in one command of dbt, which costs.

        Args:
            plan_id: what its permits are written for: a plan, or the code of a request.
        """
        standing = [(target, self._settled(target)) for target in step.targets]
        minutes = self.ladder.purge.permit_minutes * len(step.targets)
        permits = [
            {
                "plan_id": plan_id,
                "step_id": step.step_id,
                "table_name": target.table,
                "partition_id": target.partition,
                "predicate": target.predicate,
                "is_whole_partition": found.others == 0 and target.partition != "all",
                "row_count": found.rows,
                "hashed_columns": clickhouse.identifiers(target.columns),
                "fingerprint": found.fingerprint,
                "expires_at": int(time.time()) + 60 * minutes,
            }
            for target, found in standing
            if found.rows
        ]
        if not permits:
            return
        self._forget_permits(step)
        clickhouse.insert_rows(self.settings, "retention.permits", permits)
        self._mark(step, f"has permits for {len(permits)} tables")
        tables = [permit["table_name"] for permit in permits]
        arguments = {"plan_id": plan_id, "step_id": step.step_id, "tables": tables}
        operation = ["run-operation", "retention_destroy", "--args", json.dumps(arguments)]
        building.dbt(self.settings, operation)
        self._mark(step, "its tables are clean")

    def _settled(self, target: Target) -> replicas.Standing:
        # A killed run may have left a mutation at work.
        replicas.settle(self._hosts, self._topology, target.table, PATIENCE)
        found = self._standing(target)
        if found.rows > target.rows:
            raise Refused(
                f"{target.table} {target.partition} grew behind a closed step:"
                f" {found.rows} rows stand there, {target.rows} were planned"
            )
        return found

    def _forget_permits(self, step: Step | Removal) -> None:
        clickhouse.execute(
            self.settings,
            "alter table retention.permits delete"
            f" where step_id = {clickhouse.literal(step.step_id)} settings mutations_sync = 2",
        )

    # -- reading again -----------------------------------------------------------------------------

    def _left(self, step: Step | Removal, patience: float = 0.0) -> list[str]:
        """What is left of a step anywhere; replicas take seconds or minutes to sweep old parts."""
        deadline = time.monotonic() + patience
        problems: list[str] = []
        for target in step.targets:
            problems += replicas.left(self._hosts, self._topology, target)
            while True:
                dead = list(replicas.dead(self._hosts, self._topology, target))
                if not dead or problems or time.monotonic() >= deadline:
                    break
                if target.partition == "all":
                    # Merges of other rows meanwhile leave parts behind, too.
                    replicas.sweep(self._hosts, self._topology, target.table)
                time.sleep(0.2)
            problems += dead
        return problems

    def _aggregates(self, step: Step) -> dict[str, dict[str, str]]:
        return aggregates(self.settings, self.connection, self.ladder, step)

    def _changed(self, step: Step, before: Mapping[str, Mapping[str, str]]) -> list[str]:
        after = self._aggregates(step)
        return [
            f"figures of {table} changed for workspace {workspace_id} in {step.month:%Y-%m}"
            for table, workspaces in before.items()
            for workspace_id, digest in workspaces.items()
            if after.get(table, {}).get(workspace_id) != digest
        ]

    # -- the ledger --------------------------------------------------------------------------------

    def _entries(self, kind: str, plan: Plan) -> list[Mapping[str, Any]]:
        """What the ledger has of the months of a plan, of other plans too."""
        return [
            row["document"]
            for row in self.connection.execute(
                "select document from control.ledger where kind = %s"
                " and coalesce(document ->> 'month', document -> 'step' ->> 'month') = any(%s)"
                " order by entry_id",
                [kind, [step.month.isoformat() for step in plan.steps]],
            )
        ]

    def _open_steps(self) -> list[Mapping[str, Any]]:
        return ledger.unended(
            self.connection,
            BEGUN,
            DONE,
            "done.document -> 'step_id' = begun.document -> 'step' -> 'step_id'",
        )

    def _enter(self, kind: str, document: Mapping[str, Any]) -> None:
        with self.connection.transaction():
            ledger.append(self.connection, self.keyring, kind, document, self.clock())

    def _is_held(self, step: Step) -> bool:
        """Whether a hold on all of a workspace speaks against a step; a plan leaves those out."""
        workspaces = set(step.workspaces)
        return any(
            hold.workspace_id in workspaces
            and hold.data_class in (None, step.data_class)
            and not hold.is_of_subject
            for hold in policy.holds(self.connection)
        )


def aggregates(
    settings: Settings,
    connection: Connection,
    ladder: policy.Policy,
    step: Step,
    instead: Mapping[str, str] | None = None,
) -> dict[str, dict[str, str]]:
    """What the marts say of a step's days: a hash by mart and workspace.

    Only columns of the class's measure groups count: others of the same day may still change.

    Args:
        instead: by mart, a table like it to read; then of these marts alone.
    """
    data_class = ladder.classes[step.data_class]
    groups = set(data_class.measures.values())
    columns: dict[str, set[str]] = {}
    for group in groups:
        for table, names in ladder.mart_measures(group).items():
            if instead is None or table in instead:
                columns.setdefault(table, set()).update(names)
    counted = {
        row["workspace_id"]: row["revenue_source"]
        for row in connection.execute("select workspace_id, revenue_source from app.workspaces")
    }
    found: dict[str, dict[str, str]] = {}
    for table, wanted in sorted(columns.items()):
        types = {
            row["name"]: row
            for row in clickhouse.rows(
                settings,
                "select name, type, is_in_sorting_key from system.columns"
                " where concat(database, '.', table) ="
                f" {clickhouse.literal(clickhouse.topology(settings).local(table))}",
            )
        }
        own = sorted(name for name in wanted if name in types)
        if "date_day" not in types or not own:
            continue
        values = [
            f"finalizeAggregation({clickhouse.identifier(name)})"
            if types[name]["type"].startswith("AggregateFunction")
            else clickhouse.identifier(name)
            for name in own
        ]
        key = [clickhouse.identifier(n) for n, row in types.items() if row["is_in_sorting_key"]]
        rows = clickhouse.rows(
            settings,
            "select workspace_id, toString(sum(reinterpretAsUInt128(sipHash128("
            f"{', '.join([*key, *values])})))) as digest from {(instead or {}).get(table, table)}"
            f" where {step.predicate('date_day')}"
            f" and ({' or '.join(f'{value} != 0' for value in values)})"
            " group by workspace_id order by workspace_id",
        )
        found[table] = {
            row["workspace_id"]: hashlib.sha256(row["digest"].encode()).hexdigest()
            for row in rows
            # Sales that a workspace does not count are in no figure.
            if step.data_class not in _SALES or counted.get(row["workspace_id"]) == step.data_class
        }
    return found


def _report(step: Step, rows: int, status: str, reason: str = "") -> StepReport:
    return StepReport(
        step.step_id,
        step.data_class,
        step.month,
        step.action,
        step.workspaces,
        rows,
        status,
        reason,
    )


def _expired(own: cold.Due, rows: int, status: str, reason: str = "") -> StepReport:
    return StepReport(
        f"{own.data_class}:{own.number}",
        own.data_class,
        own.month,
        _EXPIRING[own.data_class],
        (own.workspace_id,),
        rows,
        status,
        reason,
    )
