"""Which figures a workspace's windows still support, by the rule of `marts.kpi_availability`.

The policy says what each figure needs; the build publishes that and the windows to ClickHouse,
where the mart compares them as `darkened` does here for a window that nobody has set yet.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from tidemark.policy import Policy, Window

RevenueSource = Literal["orders", "payments"]


@dataclass(frozen=True, slots=True)
class Darkened:
    """A figure that a window is too short for."""

    figure: str
    data_class: str
    #: The window in whole months, rounded down.
    window_months: int
    required_months: int

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return asdict(self)


def darkened(
    ladder: Policy,
    data_class: str,
    window: Window,
    revenue_source: RevenueSource | None = None,
) -> tuple[Darkened, ...]:
    """The figures that a window of a class would darken.

    Args:
        revenue_source: of the workspace, which counts orders or payments and never both; None
            where that does not matter yet.
    """
    return tuple(
        Darkened(name, data_class, window.months, figure.needs.months)
        for name, figure in ladder.figures.items()
        if data_class in figure.classes
        and not (revenue_source and data_class in _other_revenue(revenue_source))
        and window.months < figure.needs.months
    )


def requirements(ladder: Policy) -> list[dict[str, Any]]:
    """The rows of `reference.figures`: what each figure needs of each class."""
    return [
        {"figure": name, "class": data_class, "required_months": figure.needs.months}
        for name, figure in ladder.figures.items()
        for data_class in figure.classes
    ]


def windows(
    ladder: Policy, workspaces: list[str], overrides: Mapping[tuple[str, str], Window]
) -> list[dict[str, Any]]:
    """The rows of `reference.windows`: the window in force by workspace and class, in months."""
    return [
        {
            "workspace_id": workspace_id,
            "class": name,
            "window_months": min(window.months for window in (data_class.window, own) if window),
            "is_override": own is not None,
        }
        for workspace_id in workspaces
        for name, data_class in ladder.loaded.items()
        if data_class.window is not None
        for own in [overrides.get((workspace_id, name))]
    ]


def _other_revenue(revenue_source: RevenueSource) -> tuple[str, ...]:
    return ("payments",) if revenue_source == "orders" else ("orders",)
