"""The page's one app: for signed-in people who may see Airflow's website, and read-only."""

import secrets
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from airflow.api_fastapi.auth.managers.models.resource_details import AccessView
from airflow.api_fastapi.core_api.security import requires_access_view
from fastapi import Depends, FastAPI, HTTPException
from fastapi.responses import FileResponse, HTMLResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tidemark import postgres
from tidemark.config import Settings
from tidemark.overview import Span, overview

# Nothing is fetched from elsewhere, and only Airflow itself may frame the page.
_PAGE_POLICY = (
    "default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}';"
    " img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
# The documents of Great Expectations and dbt bring their scripts inline.
_DOCUMENT_POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'self'"
)
_KINDS = {".html": "text/html", ".css": "text/css", ".png": "image/png", ".svg": "image/svg+xml"}

app = FastAPI(
    title="Retention",
    openapi_url=None,
    dependencies=[Depends(requires_access_view(AccessView.WEBSITE))],
)
_templates = Environment(
    loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
)


class Scale:
    """Where a day lies on the time axis, 0 to 1000."""

    def __init__(self, span: Span) -> None:
        # Neither the oldest day nor today lies on the picture's edge.
        margin = max((span.last - span.first) / 40, timedelta(days=7))
        self.span = Span(span.first - margin, span.last + margin)
        self._days = max((self.span.last - self.span.first).days, 1)

    def x(self, day: date) -> float:
        """The position of a day, kept within the picture."""
        days = min(max((day - self.span.first).days, 0), self._days)
        return round(1000 * days / self._days, 1)

    def width(self, span: Span) -> float:
        """The width of a span, never so small that it can't be seen."""
        return round(max(self.x(span.last + timedelta(days=1)) - self.x(span.first), 3.0), 1)

    def ticks(self) -> list[tuple[float, str]]:
        """Months to write at the axis: so few that they stand apart."""
        months = self._days // 30
        step = next(step for step in (1, 2, 3, 6, 12, 24, 60, 120, 1200) if months / step <= 6)
        index = self.span.first.year * 12 + self.span.first.month
        found = []
        while (day := date(index // 12, index % 12 + 1, 1)) <= self.span.last:
            if index % step == 0:
                found.append((self.x(day), f"{day:%b %Y}"))
            index += 1
        return found


@app.get("/")
def page() -> HTMLResponse:
    """The page."""
    settings = Settings.from_env()
    now = datetime.now(UTC)
    with postgres.connect(settings) as connection:
        seen = overview(settings, connection, now.date(), now)
    nonce = secrets.token_urlsafe(16)
    text = _templates.get_template("page.html").render(
        seen=seen,
        scale=Scale(seen.span),
        nonce=nonce,
        has_proofs=(settings.expectations / "data_docs" / "index.html").is_file(),
        has_lineage=_lineage(settings).is_file(),
    )
    return HTMLResponse(text, headers=_headers(_PAGE_POLICY.format(nonce=nonce)))


@app.get("/proofs/{path:path}")
def proof(path: str) -> Response:
    """A page of the Data Docs."""
    folder = (Settings.from_env().expectations / "data_docs").resolve()
    return _document(folder, (folder / (path or "index.html")).resolve())


@app.get("/lineage")
def lineage() -> Response:
    """The dbt docs site, as the last `tidemark docs` wrote it."""
    page = _lineage(Settings.from_env()).resolve()
    return _document(page.parent, page)


@app.get("/icon.svg")
def icon() -> Response:
    """The mark beside the name in the navigation."""
    return _icon("#3f3f46", "#ffffff")


@app.get("/icon-dark.svg")
def icon_dark() -> Response:
    """The same for the dark theme."""
    return _icon("#d4d4d8", "#18181b")


def _icon(colour: str, ground: str) -> Response:
    # Airflow darkens the entry of the page that is shown: the ground keeps the lines apart from it.
    lines = "M3 6h18M3 12h12M3 18h6"
    drawing = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24" fill="none"'
        f' stroke-linecap="round"><path stroke="{ground}" stroke-width="4.5" d="{lines}"/>'
        f'<path stroke="{colour}" stroke-width="2" d="{lines}"/></svg>'
    )
    return Response(drawing, media_type="image/svg+xml", headers=_headers("default-src 'none'"))


def _lineage(settings: Settings) -> Path:
    return settings.home / "dbt" / "target" / "static_index.html"


def _document(folder: Path, file: Path) -> Response:
    if not file.is_relative_to(folder) or not file.is_file() or file.suffix not in _KINDS:
        raise HTTPException(404, "there is no such page")
    return FileResponse(file, media_type=_KINDS[file.suffix], headers=_headers(_DOCUMENT_POLICY))


def _headers(content_policy: str) -> dict[str, str]:
    return {
        "content-security-policy": content_policy,
        "cache-control": "no-store",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }
