"""The retention policy of `include/policy.yml`, checked on reading."""

from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tidemark.config import Settings
from tidemark.errors import TidemarkError
from tidemark.postgres import Connection


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Source(_Strict):
    """A source of the landing folder."""

    data_class: Annotated[str, Field(alias="class")]
    #: The one workspace folder it has; by default one a workspace.
    workspace: str | None = None


class DataClass(_Strict):
    """A class of the ladder: what it fills, how long it stays, what happens then."""

    tables: tuple[str, ...]
    #: Months; None has no limit.
    window: Annotated[int | None, Field(gt=0)] = None
    floor: Annotated[int | None, Field(gt=0)] = None
    clock: str
    #: Whose days: the workspace's, or those the report itself names.
    days: Literal["workspace", "report"] = "workspace"
    versions: Literal["first", "newest"]
    subjects: tuple[str, ...]
    measures: dict[str, str]
    basis: str
    expiry: tuple[str, ...]

    def oldest_day(self, as_of: date, override: "Window | None" = None) -> date | None:
        """The oldest day still inside the window; None where there is no limit.

        Args:
            override: a workspace's own window; the shorter one decides.
        """
        if self.window is None:
            return None
        oldest = months_before(as_of, self.window)
        return max(oldest, override.start(as_of)) if override else oldest


@dataclass(frozen=True, slots=True)
class Window:
    """A workspace's own window, from `control.overrides`."""

    value: int
    unit: Literal["day", "month"]

    @property
    def months(self) -> int:
        """Whole months, rounded down."""
        return self.value if self.unit == "month" else self.value // 31

    def start(self, as_of: date) -> date:
        """The oldest day inside it."""
        if self.unit == "month":
            return months_before(as_of, self.value)
        return as_of - timedelta(days=self.value)


def overrides(connection: Connection) -> dict[tuple[str, str], Window]:
    """The windows in force that workspaces set for themselves, by workspace and class."""
    return {
        (row["workspace_id"], row["class"]): Window(row["window_value"], row["window_unit"])
        for row in connection.execute(
            "select workspace_id, class, window_value, window_unit from control.overrides"
            " where withdrawn_at is null"
        )
    }


class Policy(_Strict):
    """The whole ladder."""

    version: Literal[1]
    plans: tuple[str, ...]
    override_plans: tuple[str, ...]
    sources: dict[str, Source]
    classes: dict[str, DataClass]

    @model_validator(mode="after")
    def _names_exist(self) -> "Policy":
        for name, source in self.sources.items():
            if source.data_class not in self.classes:
                raise ValueError(f"source {name} names class {source.data_class}, which is not")
        for plan in self.override_plans:
            if plan not in self.plans:
                raise ValueError(f"override_plans names {plan}, which is not a plan")
        return self

    def class_of(self, source: str) -> tuple[str, DataClass]:
        """The class a source fills, with its name."""
        name = self.sources[source].data_class
        return name, self.classes[name]

    def measure_group(self, measure: str) -> str:
        """The measure group of the marts that a measure of the load ledger belongs to."""
        for data_class in self.classes.values():
            if measure in data_class.measures:
                return data_class.measures[measure]
        raise KeyError(measure)


def months_before(day: date, months: int) -> date:
    """The same day of the month some months ago, or that month's last day."""
    month_index = day.year * 12 + day.month - 1 - months
    year, month = divmod(month_index, 12)
    month += 1
    following = date(year + month // 12, month % 12 + 1, 1)
    last = (following - date(year, month, 1)).days
    return date(year, month, min(day.day, last))


def path(settings: Settings) -> Path:
    """Where the policy lies."""
    return settings.root / "include" / "policy.yml"


def read(settings: Settings) -> Policy:
    """Read and check the policy.

    Raises:
        TidemarkError: the file cannot be read or says something it must not; the message names
            the file, and the line or the entry.
    """
    file = path(settings)
    try:
        return Policy.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError) as error:
        raise TidemarkError(f"{file} cannot be read: {error}") from error
    except ValidationError as error:
        first = error.errors()[0]
        entry = ".".join(str(part) for part in first["loc"]) or "policy"
        raise TidemarkError(f"{file}: {entry}: {first['msg']}") from error
