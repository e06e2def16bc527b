"""The page *Retention* as the API server serves it: to whom, what it tells, how it looks.

A history is loaded, built and purged by the command line; of Airflow only the API server runs. In
Chromium where one is installed; `TIDEMARK_TEST_PICTURES=DIR` keeps the pictures.
"""

import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote

import pytest

import history
from airflow_home import AirflowHome, api_server
from chromium import Page, installed, page
from homes import new_home
from tidemark import postgres

NOW = datetime.now(UTC)
#: Months of them; the first is past the window of pixel events, the third past that of two shops.
DAYS = [(NOW.date() - timedelta(days=age)).replace(day=9) for age in (600, 360, 250, 130, 60, 31)]
WINDOW = "6 months"
CASE = "case 12"

needs_chromium = pytest.mark.skipif(installed() is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def home() -> Iterator[AirflowHome]:
    """Three shops: of one old days have gone, of another a hold keeps them; a request is late."""
    with new_home() as warehouse:
        warehouse.run("up", "--no-airflow")
        history.add_shops(warehouse)
        warehouse.run(
            "workspace", "add", "kiosk", "--timezone", "Europe/London", "--currency", "GBP",
            "--plan", "enterprise",
        )  # fmt: skip
        history.deliver(warehouse, *DAYS)
        for day in DAYS:
            history.put(warehouse, "pixel/kiosk", day, [history.pixel(day, 7, "$pageview")])
        warehouse.run("load")
        warehouse.run("build")
        for shop in ("shop", "kiosk"):
            warehouse.run("override", "set", shop, "pixel_events", WINDOW)
        warehouse.run("hold", "add", "--workspace", "kiosk", "--reason", CASE)
        warehouse.run("purge")
        with postgres.connect(warehouse.settings) as connection:
            connection.execute(
                "insert into control.requests"
                " (code, workspace_id, kind, status, received_at, due_at)"
                " values ('R-0001', 'shop', 'export', 'received', %s, %s)",
                [NOW - timedelta(days=31), NOW - timedelta(days=1)],
            )
        with api_server(warehouse) as served:
            yield served


def test_the_page_is_for_those_who_may_see_it(home: AirflowHome) -> None:
    stranger = home.token_of("stranger")
    for path in ("/retention/", "/retention/proofs/index.html", "/retention/lineage"):
        assert home.fetch(path).status == 401
        assert home.fetch(path, cookie="no.such.token").status in (401, 403)
        assert home.fetch(path, cookie=stranger).status == 403
    assert home.fetch("/retention/", cookie=home.token_of("reader")).status == 200
    answer = home.fetch("/retention/", cookie=home.token)
    assert answer.status == 200
    text = answer.body.decode()
    assert "pixel_events" in text
    assert "Missing deliveries" in text
    assert history.PERSON not in text
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    # Nothing comes from elsewhere.
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "https://" not in text
    assert home.fetch("/retention/proofs/index.html", cookie=home.token).status == 200
    outside = quote("../../secrets/master.key", safe="")
    assert home.fetch(f"/retention/proofs/{outside}", cookie=home.token).status == 404
    assert home.fetch("/retention/openapi.json", cookie=home.token).status == 404
    assert home.sign_in("admin", "wrong").status == 401


def test_it_tells_how_the_ladder_stands(home: AirflowHome) -> None:
    text = home.fetch("/retention/", cookie=home.token).body.decode()
    ladder, held = text.split('id="ladder"')[1].split('id="waiting"')
    assert "2 with a shorter one" in ladder
    proof = ladder.split('href="proofs/validations/')[1].split('"')[0]
    found = home.fetch(f"/retention/proofs/validations/{proof}", cookie=home.token)
    assert found.status == 200
    assert b"pixel_events" in found.body
    assert CASE in held
    assert "Nothing was ever delivered of amazon_ads" in text
    assert "Request R-0001 (export) was due on" in text


@pytest.fixture
def base(home: AirflowHome) -> str:
    """Where Airflow answers."""
    return f"http://127.0.0.1:{home.warehouse.settings.airflow_port}"


@pytest.fixture
def tab(home: AirflowHome, base: str) -> Iterator[Page]:
    """A tab of a wide window, signed in."""
    with page() as tab:
        tab.size(1400, 1400)
        tab.dark(dark=False)
        tab.call("Network.setCookie", name="_token", value=home.token, url=base)
        yield tab


def keep(tab: Page, name: str, folder: Path) -> None:
    """A picture of the tab."""
    file = folder / f"{name}.png"
    tab.picture(file)
    assert file.stat().st_size > 10_000
    kept = os.environ.get("TIDEMARK_TEST_PICTURES")
    if kept:
        shutil.copy(file, kept)


_BACKGROUND = "getComputedStyle(document.body).backgroundColor"


@needs_chromium
def test_in_a_browser_light_dark_and_narrow(tab: Page, base: str, tmp_path: Path) -> None:
    tab.open(f"{base}/retention/")
    assert (
        tab.ask("document.querySelector('#ladder ~ .scroll').querySelectorAll('tbody tr').length")
        == 8
    )
    light = tab.ask(_BACKGROUND)
    keep(tab, "light", tmp_path)
    tab.dark(dark=True)
    assert tab.ask(_BACKGROUND) != light
    keep(tab, "dark", tmp_path)
    # Airflow's own choice goes before the system's.
    tab.ask("localStorage.setItem('theme', 'light')")
    tab.open(f"{base}/retention/")
    assert tab.ask(_BACKGROUND) == light
    tab.size(480, 900)
    assert tab.ask("document.documentElement.scrollWidth <= 480")
    keep(tab, "narrow", tmp_path)


@needs_chromium
def test_in_a_browser_it_works_from_the_keyboard(tab: Page, base: str) -> None:
    tab.open(f"{base}/retention/")
    reached = []
    for _ in range(14):
        tab.press("Tab", 9)
        reached.append(
            tab.ask(
                "document.activeElement.getAttribute('aria-label')"
                " || document.activeElement.innerText.trim()"
            )
        )
    assert reached[0] == "Skip to the ladder"
    assert "The ladder, class by class" in reached
    assert "Held and refused" in reached
    assert "Freshness and gaps of each source" in reached
    unnamed = (
        "[...document.querySelectorAll('svg')].filter(own => own.getAttribute('aria-hidden')"
        " !== 'true' && !own.getAttribute('aria-label')).length"
    )
    assert tab.ask(unnamed) == 0


@needs_chromium
def test_in_a_browser_nothing_comes_from_elsewhere_or_fails(tab: Page, base: str) -> None:
    tab.open(f"{base}/retention/")
    hosts = {own["request"]["url"].split("/")[2] for own in tab.of("Network.requestWillBeSent")}
    assert hosts == {base.removeprefix("http://")}
    assert tab.of("Runtime.exceptionThrown") == []
    assert [own for own in tab.of("Log.entryAdded") if own["entry"]["level"] == "error"] == []


@needs_chromium
def test_in_a_browser_it_stands_in_airflows_navigation(
    tab: Page, base: str, tmp_path: Path
) -> None:
    tab.open(f"{base}/")
    tab.until("[...document.querySelectorAll('a')].some(own => own.href.endsWith('/retention'))")
    tab.open(f"{base}/plugin/retention")
    tab.until(
        "Boolean(document.querySelector('iframe')?.contentDocument?.querySelector('#ladder'))"
    )
    keep(tab, "framed", tmp_path)
