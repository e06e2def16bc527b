"""The retention policy of `include/policy.yml`, checked on reading."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import cache, cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from psycopg.types.json import Jsonb
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PrivateAttr,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from tidemark.config import Settings
from tidemark.errors import Refused, TidemarkError
from tidemark.postgres import Connection

Kind = Literal["personal", "pseudonym", "measure", "dimension"]
Expiry = Literal["roll_up", "drop_personal_columns", "anonymise", "cold", "drop"]

_KINDS: tuple[Kind, ...] = ("personal", "pseudonym", "measure", "dimension")
_WINDOW = re.compile(r"([1-9][0-9]{0,4}) ?(d|days?|m|months?)", re.ASCII)
_TABLE = re.compile(r"[a-z_]+\.[a-z0-9_]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Window:
    """How long something stays: of a class, or a workspace's own from `control.overrides`."""

    value: int
    unit: Literal["day", "month"]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `13 months`, `200 days`, `13m` or `200d`.

        Raises:
            ValueError: it is none of these.
        """
        found = _WINDOW.fullmatch(text.strip())
        if found is None:
            raise ValueError(f"{text!r} is no window: write it as 13 months or 200 days")
        return cls(int(found[1]), "month" if found[2][0] == "m" else "day")

    def __str__(self) -> str:
        return f"{self.value} {self.unit}{'s' if self.value != 1 else ''}"

    @property
    def months(self) -> int:
        """Whole months, rounded down."""
        return self.value if self.unit == "month" else self.value // 31

    @property
    def days(self) -> int:
        """Days at most: months are counted where they are longest."""
        return self.value if self.unit == "day" else _longest(self.value)

    def start(self, as_of: date) -> date:
        """The oldest day inside it."""
        if self.unit == "month":
            return months_before(as_of, self.value)
        return as_of - timedelta(days=self.value)

    def end(self, begun: date) -> date:
        """The first day on which what began on a day lies outside it."""
        if self.unit == "month":
            return months_before(begun, -self.value)
        return begun + timedelta(days=self.value)

    def is_shorter_than(self, other: "Window") -> bool:
        """Whether it ends sooner than the other on some day; months differ in length."""
        if self.unit == other.unit:
            return self.value < other.value
        return self.days < other.days


@dataclass(frozen=True, slots=True)
class ColumnClass:
    """What a column is."""

    kind: Kind
    #: Of a mart's measure: the measure groups that it freezes with.
    groups: tuple[str, ...] = ()


def _window(value: object) -> object:
    return Window.parse(value) if isinstance(value, str) else value


_Window = Annotated[
    Window, BeforeValidator(_window), PlainSerializer(lambda window: str(window), return_type=str)
]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, strict=True)


# YAML has lists, and a policy once read must not change.
def _frozen_list(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_frozen_list)]


class Source(_Strict):
    """A source of the landing folder."""

    data_class: Annotated[str, Field(alias="class")]
    #: The one workspace folder it has; by default one a workspace.
    workspace: str | None = None
    #: How far back the platform still answers; None where its past stays.
    reach: _Window | None = None


class SubjectLink(_Strict):
    """Where the person of a row is found that does not name one itself."""

    #: Tables with some of the class's columns `subjects`.
    tables: Names
    #: Columns that lead from one row to the other, within a workspace.
    columns: Names


class DataClass(_Strict):
    """A class of the ladder: what it fills, how long it stays, what happens then."""

    #: Tables whose rows are the class; none where it is files.
    tables: Names = ()
    #: Tables of `intermediate` whose rows of the same days, in the column `date_day`, go with
    #: those of `tables`. Where such a table has a column `source`, several classes share it and
    #: the rows of the class's own sources go.
    derived: Names = ()
    #: The column of `tables` with the day that the window is held against.
    day: str = "local_date"
    #: None has no limit, unless `window_of` says whose.
    window: _Window | None = None
    #: `source`: the window of the class that a row's source fills.
    window_of: Literal["source"] | None = None
    #: The shortest window that a workspace may set.
    floor: _Window | None = None
    #: Plans that may set one; None for those of the policy.
    override_plans: Names | None = None
    #: What the day is taken from.
    clock: str
    #: Whose days: the workspace's, or those the report itself names.
    days: Literal["workspace", "report"] = "workspace"
    versions: Literal["first", "newest"] | None = None
    #: Columns that may hold the hash of a subject, in those of its tables that have them.
    subjects: Names = ()
    #: By table: its rows are a subject's also where they belong to such a row of another table.
    subject_links: dict[str, SubjectLink] = Field(default_factory=dict)
    measures: dict[str, str] = Field(default_factory=dict)
    basis: str
    expiry: Annotated[tuple[Expiry, ...], BeforeValidator(_frozen_list)]
    #: What a cold file does with pseudonyms; None where no cold file is made.
    cold_pseudonyms: Literal["rehash", "keep"] | None = None

    @property
    def is_mart(self) -> bool:
        """Whether its rows are figures that were built: raw rows of their days prove them."""
        return any(table.startswith("marts.") for table in self.tables)

    @property
    def groups(self) -> tuple[str, ...]:
        """The measure groups that its rows are counted in."""
        return tuple(sorted(set(self.measures.values())))

    def oldest_day(self, as_of: date, override: Window | None = None) -> date | None:
        """The oldest day still inside the window; None where there is no limit.

        Args:
            override: a workspace's own window; the shorter one decides.
        """
        if self.window is None:
            return None
        oldest = self.window.start(as_of)
        return max(oldest, override.start(as_of)) if override else oldest


class Figure(_Strict):
    """A figure that needs a long history."""

    needs: _Window
    classes: Names


class VerifiedBackup(_Strict):
    """The condition of the gate that a backup has been verified."""

    #: Of every home, or of those that made one before: a purge then needs a fresh one.
    required: Literal["always", "once_made"]
    #: Its age at most.
    hours: Annotated[int, Field(gt=0)]


class GateRules(_Strict):
    """What a purge's gate asks beside the tie-out."""

    verified_backup: VerifiedBackup


class PurgeRules(_Strict):
    """The limits of a purge."""

    #: A plan over more rows than this waits for a person.
    approval_rows: Annotated[int, Field(gt=0)]
    verdict_hours: Annotated[int, Field(gt=0)]
    permit_minutes: Annotated[int, Field(gt=0)]
    #: The fewest customers that a row may stand for in a mart that outlives raw data.
    k: Annotated[int, Field(gt=1)]


class BackupRules(_Strict):
    """How long backups stay, and what they leave out."""

    daily: _Window
    monthly: _Window
    #: Tables of PostgreSQL whose rows are in no backup.
    never: Names
    #: Of schema app a monthly has the rows of these alone.
    monthly_app: Names


class RequestRules(_Strict):
    """Days from a request's receipt to its deadline."""

    erase_days: Annotated[int, Field(gt=0)]
    export_days: Annotated[int, Field(gt=0)]


class Policy(_Strict):
    """The whole ladder."""

    version: Literal[1]
    plans: Names
    override_plans: Names
    sources: dict[str, Source]
    classes: dict[str, DataClass]
    figures: dict[str, Figure]
    gate: GateRules
    purge: PurgeRules
    requests: RequestRules
    backups: BackupRules
    #: Tables that no class purges though a column looks like somebody's identifier: the reason.
    kept: dict[str, str]
    #: As the file has them: by table, then by kind and measure groups. `columns` is the other way.
    column_lists: Annotated[dict[str, dict[str, Names]], Field(alias="columns")]

    _sha256: str = PrivateAttr("")

    @property
    def sha256(self) -> str:
        """The SHA-256 of the file, 64 hex."""
        return self._sha256

    @cached_property
    def columns(self) -> dict[str, dict[str, ColumnClass]]:
        """What every column of every table is: by table, then by column."""
        return {
            table: {
                column: ColumnClass(kind, groups)
                for key, columns in lists.items()
                for kind, groups in [_kind(key)]
                for column in columns
            }
            for table, lists in self.column_lists.items()
        }

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """The measure groups that have days of a workspace."""
        every = {group for own in self.classes.values() for group in own.groups}
        # Rates belong to no workspace and reach no mart by themselves.
        return tuple(sorted(every - {"fx"}))

    def closed_groups(self, name: str) -> tuple[str, ...]:
        """The measure groups whose days a purge of a class closes: a mart's are closed to all."""
        data_class = self.classes[name]
        return self.groups if data_class.is_mart else data_class.groups

    @model_validator(mode="after")
    def _check(self) -> "Policy":
        for at, text in self._faults():
            raise PydanticCustomError("policy", "{text}", {"text": text, "at": at})
        return self

    def _faults(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """What the entries say of each other and must not: where, and what."""
        for position, plan in enumerate(self.override_plans):
            if plan not in self.plans:
                yield ("override_plans", position), f"{plan} is not one of plans"
        for name, source in self.sources.items():
            at = ("sources", name, "class")
            if source.data_class not in self.classes:
                yield at, f"there is no class {source.data_class}"
            elif self.classes[source.data_class].versions is None:
                yield at, f"class {source.data_class} lacks versions, which a load needs"
        owners: dict[str, str] = {}
        for name, data_class in self.classes.items():
            yield from self._faults_of_class(name, data_class)
            for position, table in enumerate(data_class.tables):
                if table in owners:
                    at_table = ("classes", name, "tables", position)
                    yield at_table, f"{table} belongs to class {owners[table]} already"
                owners[table] = name
        for name, figure in self.figures.items():
            for position, class_name in enumerate(figure.classes):
                if class_name not in self.classes or self.classes[class_name].window is None:
                    at_figure = ("figures", name, "classes", position)
                    yield at_figure, f"there is no class {class_name} with a window"
        yield from self._faults_of_columns(owners)

    def _faults_of_class(
        self, name: str, own: DataClass
    ) -> Iterator[tuple[tuple[str | int, ...], str]]:
        at = ("classes", name)
        for position, plan in enumerate(own.override_plans or ()):
            if plan not in self.plans:
                yield (*at, "override_plans", position), f"{plan} is not one of plans"
        if own.window and own.window_of:
            yield (*at, "window_of"), "it has a window of its own"
        if own.floor and (own.window is None or own.window.is_shorter_than(own.floor)):
            yield (*at, "floor"), "the window is shorter than its floor"
        limited = own.window is not None or own.window_of is not None
        if limited != ("drop" in own.expiry):
            yield (*at, "expiry"), "what has a window is dropped at its end, and nothing else is"
        if len(set(own.expiry)) != len(own.expiry) or "drop" in own.expiry[:-1]:
            yield (*at, "expiry"), "each action stands there once, and drop is the last"
        if ("cold" in own.expiry) != (own.cold_pseudonyms is not None):
            yield at, "cold and cold_pseudonyms need each other"
        kinds = {
            column.kind for table in own.tables for column in self.columns.get(table, {}).values()
        }
        drops = "cold" in own.expiry and "personal" in kinds
        if ("drop_personal_columns" in own.expiry) != drops:
            yield (
                (*at, "expiry"),
                (
                    "drop_personal_columns stands where personal columns are left out of a cold"
                    " file, and nowhere else"
                ),
            )
        if ("roll_up" in own.expiry) != (limited and bool(own.measures)):
            yield (*at, "expiry"), "roll_up stands where a class with a window has measures"
        anonymised = {f"anonymised.{table.split('.')[1]}" for table in own.tables[:1]}
        if ("anonymise" in own.expiry) != (not anonymised.isdisjoint(self.columns)):
            yield (*at, "expiry"), "anonymise stands where a table of anonymised keeps the facts"
        for position, table in enumerate(own.tables):
            if table not in self.columns:
                yield (*at, "tables", position), f"{table} is not in columns"
            elif own.day not in self.columns[table]:
                yield at, f"the day {own.day} is no column of {table}"
        for position, table in enumerate(own.derived):
            if not table.startswith("intermediate."):
                yield (*at, "derived", position), f"{table} is not of intermediate"
        for position, column in enumerate(own.subjects):
            kinds = {
                self.columns[table][column].kind
                for table in own.tables
                if column in self.columns.get(table, {})
            }
            if not kinds or kinds - {"personal", "pseudonym"}:
                yield (
                    (*at, "subjects", position),
                    f"{column} is no personal or pseudonym column of its tables",
                )
        for table, link in own.subject_links.items():
            at_link = (*at, "subject_links", table)
            if table not in own.tables:
                yield at_link, "the table must be the class's"
            for side in (table, *link.tables):
                known = self.columns.get(side, {})
                for column in link.columns:
                    if column not in known:
                        yield at_link, f"{column} is no column of {side} under columns"
            for side in link.tables:
                if not set(own.subjects) & self.columns.get(side, {}).keys():
                    yield at_link, f"{side} has none of the subjects"

    def _faults_of_columns(
        self, owners: dict[str, str]
    ) -> Iterator[tuple[tuple[str | int, ...], str]]:
        groups = {group for own in self.classes.values() for group in own.measures.values()}
        for table, lists in self.column_lists.items():
            at = ("columns", table)
            if not _TABLE.fullmatch(table):
                yield at, "a table is written as database.table"
            if table.startswith("raw.") and table not in owners:
                yield at, "no class has this table"
            seen: dict[str, str] = {}
            for key, columns in lists.items():
                kind, named = _kind(key)
                if kind not in _KINDS:
                    yield (*at, key), f"{kind} is not one of {', '.join(_KINDS)}"
                if named and (kind != "measure" or not table.startswith("marts.")):
                    yield (*at, key), "only a measure of a mart names measure groups"
                for group in named:
                    if group not in groups:
                        yield (*at, key), f"no class has the measure group {group}"
                for position, column in enumerate(columns):
                    if column in seen:
                        yield (*at, key, position), f"{column} is in {seen[column]} already"
                    seen[column] = key

    @property
    def loaded(self) -> dict[str, DataClass]:
        """The classes that sources fill."""
        filled = {source.data_class for source in self.sources.values()}
        return {name: own for name, own in self.classes.items() if name in filled}

    def class_of(self, source: str) -> tuple[str, DataClass]:
        """The class a source fills, with its name."""
        name = self.sources[source].data_class
        return name, self.classes[name]

    def sources_of(self, class_name: str) -> tuple[str, ...]:
        """The sources that fill a class."""
        return tuple(
            name for name, source in self.sources.items() if source.data_class == class_name
        )

    def window_classes(self, class_name: str) -> tuple[tuple[str, str], ...]:
        """The classes whose windows, and whose overrides, decide over rows of a class.

        Returns:
            Source of the rows, or empty for all of them, and the class.
        """
        if self.classes[class_name].window_of is None:
            return (("", class_name),)
        return tuple((name, source.data_class) for name, source in self.sources.items())

    def plans_that_override(self, class_name: str) -> tuple[str, ...]:
        """The plans whose workspaces may set a window of their own for a class."""
        own = self.classes[class_name].override_plans
        return self.override_plans if own is None else own

    def measure_group(self, measure: str) -> str:
        """The measure group of the marts that a measure of the load ledger belongs to."""
        for data_class in self.classes.values():
            if measure in data_class.measures:
                return data_class.measures[measure]
        raise KeyError(measure)

    def columns_of(self, table: str, kind: Kind) -> tuple[str, ...]:
        """The columns of a kind, in the order of the file.

        Raises:
            TidemarkError: the table is not in the policy.
        """
        if table not in self.columns:
            raise TidemarkError(
                f"{table} is not in include/policy.yml: name its columns under columns"
            )
        return tuple(name for name, own in self.columns[table].items() if own.kind == kind)

    def mart_measures(self, group: str) -> dict[str, tuple[str, ...]]:
        """The columns of the marts that freeze with a measure group, by mart."""
        found = {
            table: tuple(name for name, own in columns.items() if group in own.groups)
            for table, columns in self.columns.items()
        }
        return {table: names for table, names in found.items() if names}


def overrides(connection: Connection) -> dict[tuple[str, str], Window]:
    """The windows in force that workspaces set for themselves, by workspace and class."""
    return {
        (row["workspace_id"], row["class"]): Window(row["window_value"], row["window_unit"])
        for row in connection.execute(
            "select workspace_id, class, window_value, window_unit from control.overrides"
            " where withdrawn_at is null"
        )
    }


@dataclass(frozen=True, slots=True)
class Hold:
    """A legal hold in force: what it covers is neither purged nor erased."""

    hold_id: int
    workspace_id: str
    #: None for every class.
    data_class: str | None
    #: Of one person: `control.holds` has the keyed hashes.
    is_of_subject: bool


def holds(connection: Connection) -> tuple[Hold, ...]:
    """The holds in force, by id."""
    return tuple(
        Hold(row["hold_id"], row["workspace_id"], row["class"], row["is_of_subject"])
        for row in connection.execute(
            "select hold_id, workspace_id, class, subject_hashes <> '{}' as is_of_subject"
            " from control.holds where released_at is null order by hold_id"
        )
    )


def months_before(day: date, months: int) -> date:
    """The same day of the month some months ago, or that month's last day."""
    month_index = day.year * 12 + day.month - 1 - months
    year, month = divmod(month_index, 12)
    month += 1
    following = date(year + month // 12, month % 12 + 1, 1)
    last = (following - date(year, month, 1)).days
    return date(year, month, min(day.day, last))


@cache
def _longest(months: int) -> int:
    """Days of the longest run of some months."""
    # Within four years every run of months occurs that the calendar has at its longest.
    ends = [date(2000 + n // 12, n % 12 + 1, 1) for n in range(48)]
    return max((end - months_before(end, months)).days for end in ends)


def _kind(key: str) -> tuple[Any, tuple[str, ...]]:
    """Kind and measure groups of an entry of `columns`, like `measure orders payments`."""
    kind, *groups = key.split(" ")
    return kind, tuple(groups)


def refuse_future(as_of: date, now: datetime) -> None:
    """Refuse a day that has not come yet.

    Raises:
        Refused: `as_of` lies after the clock's day in UTC.
    """
    if as_of > now.date():
        raise Refused(f"as_of {as_of} lies in the future: today is {now.date()} in UTC")


def path(settings: Settings) -> Path:
    """Where the policy lies."""
    return settings.root / "include" / "policy.yml"


def read(settings: Settings) -> Policy:
    """Read and check the policy.

    Raises:
        TidemarkError: the file cannot be read or says something it must not; the message names
            the file, the line and the entry.
    """
    file = path(settings)
    try:
        text = file.read_bytes()
        loader = yaml.CSafeLoader(text)
        try:
            root = loader.get_single_node()
            twice = _twice(root)
            document = loader.construct_document(root) if root is not None else None
        finally:
            loader.dispose()
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise TidemarkError(f"{file} cannot be read: {error}") from error
    if twice is not None:
        raise TidemarkError(f"{file}:{twice.start_mark.line + 1}: {twice.value} is there twice")
    try:
        policy = Policy.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        loc = (*first["loc"], *first.get("ctx", {}).get("at", ()))
        entry = ".".join(str(part) for part in loc) or "policy"
        line = _line(root, loc)
        raise TidemarkError(f"{file}:{line}: {entry}: {first['msg']}") from error
    policy._sha256 = hashlib.sha256(text).hexdigest()
    return policy


def _twice(node: yaml.Node | None) -> yaml.ScalarNode | None:
    """A key that its mapping has already; YAML would take the last silently."""
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    return key
                seen.add(key.value)
            found = _twice(value)
            if found is not None:
                return found
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            found = _twice(item)
            if found is not None:
                return found
    return None


def _line(node: yaml.Node | None, loc: tuple[str | int, ...]) -> int:
    """The line of an entry, or of the innermost entry around it that is there; from 1."""
    line = node.start_mark.line if node is not None else 0
    for part in loc:
        inner = None
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == str(part):
                    line, inner = key.start_mark.line, value
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            inner = node.value[part]
            line = inner.start_mark.line
        if inner is None:
            break
        node = inner
    return line + 1


def record(connection: Connection, policy: Policy, now: datetime) -> None:
    """Keep the policy that a decision was made by, once per version of the file."""
    connection.execute(
        "insert into control.policy (version, sha256, document, loaded_at)"
        " values (%s, %s, %s, %s) on conflict (sha256) do nothing",
        [
            policy.version,
            policy.sha256,
            Jsonb(policy.model_dump(mode="json", by_alias=True)),
            now,
        ],
    )
