"""The source rules on the real classifier: r01 to r13, the first that holds wins."""

import json
from pathlib import Path

import pytest

from homes import Warehouse
from landings import Tenant, changed, fixture, tenant

SHOP = "https://www.mugs.co.uk/p"
PAID = [
    "cpc", "ppc", "cpm", "cpa", "paid", "paid_social", "paidsearch", "display", "retargeting",
    "remarketing", "CPC", "Paid-Social",
]  # fmt: skip

# Query of the landing URL, referrer, rule, confidence.
Case = tuple[str, str, str, str]
CASES: list[Case] = [
    # r01: click ids of Google, or its sources with a paid medium.
    ("gclid=1", "", "r01", "high"),
    ("gbraid=1", "", "r01", "high"),
    ("wbraid=1", "", "r01", "high"),
    ("gad_source=1", "", "r01", "high"),
    ("a=b&gclid=1", "https://www.facebook.com/", "r01", "high"),
    ("utm_source=adwords&utm_medium=cpc", "", "r01", "high"),
    ("utm_source=youtube&utm_medium=cpc", "", "r01", "high"),
    *((f"utm_source=Google&utm_medium={m}", "", "r01", "high") for m in PAID),
    # Before meta: the first match wins.
    ("utm_source=facebook&utm_medium=cpc&gclid=1", "", "r01", "high"),
    # r02
    *(
        (f"utm_source={s}&utm_medium=paid_social", "", "r02", "high")
        for s in ("facebook", "fb", "instagram", "ig", "meta", "an", "FB")
    ),
    ("utm_source=facebook&fbclid=1", "", "r02", "high"),
    ("utm_source=ig&utm_medium=social&fbclid=1", "https://l.instagram.com/", "r02", "high"),
    # r03 to r05
    ("ttclid=1", "", "r03", "high"),
    ("utm_source=tiktok&utm_medium=cpc", "", "r03", "high"),
    ("epik=1", "", "r04", "high"),
    ("utm_source=pinterest&utm_medium=cpc", "", "r04", "high"),
    ("utm_source=amazon&utm_medium=cpc", "", "r05", "high"),
    ("maas=1", "", "r05", "high"),
    # Amazon's tags are no click id of the list.
    ("aa_campaignid=1", "", "r05", "low"),
    # r06
    *((f"utm_medium={m}", "", "r06", "high") for m in ("email", "e-mail", "newsletter", "sms")),
    ("utm_medium=Email", "", "r06", "high"),
    ("utm_source=klaviyo", "", "r06", "medium"),
    ("utm_source=google&utm_medium=email", "", "r06", "high"),
    ("_kx=1", "", "r06", "high"),
    # r07: any other paid medium.
    *((f"utm_source=bing&utm_medium={m}", "", "r07", "high") for m in PAID),
    ("utm_medium=cpc", "", "r07", "high"),
    # r08: the shop's own registrable domain, and no utm.
    ("", "https://www.mugs.co.uk/", "r08", "low"),
    ("", "https://MUGS.co.uk/cart", "r08", "low"),
    ("size=L", "https://checkout.mugs.co.uk/x", "r08", "low"),
    ("utm_campaign=x", "https://mugs.co.uk/", "r12", "low"),
    ("utm_source=letter", "https://mugs.co.uk/", "r12", "medium"),
    ("", "https://pots.co.uk/", "r12", "low"),
    # r09: AI assistants, in the referrer or as source.
    ("", "https://chatgpt.com/", "r09", "low"),
    ("", "https://gemini.google.com/app", "r09", "low"),
    ("", "https://www.perplexity.ai/", "r09", "low"),
    ("", "https://claude.ai/", "r09", "low"),
    ("", "https://copilot.microsoft.com/", "r09", "low"),
    ("utm_source=chatgpt.com", "", "r09", "medium"),
    ("utm_source=chatgpt.com&utm_medium=organic", "", "r09", "high"),
    # r10: search engines.
    ("", "https://www.google.com/", "r10", "low"),
    ("", "https://www.google.co.uk/url", "r10", "low"),
    ("", "https://www.bing.com/search", "r10", "low"),
    ("", "https://duckduckgo.com/", "r10", "low"),
    ("", "https://search.yahoo.com/", "r10", "low"),
    ("utm_source=google", "", "r10", "medium"),
    ("utm_source=letter&utm_medium=organic", "", "r10", "high"),
    # A paid source without a paid medium is none.
    ("utm_source=bing&utm_medium=referral", "", "r10", "high"),
    # r11: social networks, fbclid alone.
    ("", "https://l.facebook.com/l.php", "r11", "low"),
    ("", "https://m.facebook.com/", "r11", "low"),
    ("", "https://t.co/abc", "r11", "low"),
    ("", "https://www.reddit.com/r/mugs", "r11", "low"),
    ("", "https://old.reddit.com/r/mugs", "r11", "low"),
    ("fbclid=1", "", "r11", "high"),
    ("utm_source=facebook", "", "r11", "medium"),
    ("utm_source=letter&utm_medium=social", "", "r11", "high"),
    # r12: any other referrer or source.
    ("", "https://blog.example/post", "r12", "low"),
    ("utm_source=letter", "", "r12", "medium"),
    ("utm_source=letter&utm_medium=banner", "", "r12", "high"),
    # A host that only looks like one of the lists.
    ("", "https://notgoogle.com/", "r12", "low"),
    ("", "https://google.com.evil.example/", "r12", "low"),
    # r13: nothing.
    ("", "", "r13", "low"),
    ("size=L", "", "r13", "low"),
    ("utm_campaign=x", "", "r13", "low"),
    # A parameter's name counts whole, and in its own case.
    ("xgclid=1&notfbclid=2", "", "r13", "low"),
    ("utm_sourcex=google&utm_medium=", "", "r13", "low"),
]  # fmt: skip


def _url(query: str) -> str:
    return f"{SHOP}?{query}" if query else SHOP


@pytest.fixture(scope="module")
def classified(warehouse: Warehouse, tmp_path_factory: pytest.TempPathFactory) -> Tenant:
    """Each case as a pixel event, and as an order of either shop system."""
    shop = tenant(warehouse, tmp_path_factory.mktemp("rules"))
    event, order, woo = (
        fixture(source)[0] for source in ("pixel", "shopify_orders", "woocommerce_orders")
    )
    shop.deliver(
        "pixel",
        [
            changed(event, event_id=f"e{n}", url=_url(query), referrer=referrer)
            for n, (query, referrer, _, _) in enumerate(CASES)
        ],
    )
    shop.deliver(
        "shopify_orders",
        [
            changed(order, id=f"o{n}", landing_site=_url(query), referring_site=referrer)
            for n, (query, referrer, _, _) in enumerate(CASES)
        ],
    )
    shop.deliver(
        "woocommerce_orders",
        [
            changed(woo, id=f"w{n}", meta_data=_woo_meta(query, referrer))
            for n, (query, referrer, _, _) in enumerate(CASES)
        ],
    )
    shop.load()
    return shop


def _woo_meta(query: str, referrer: str) -> list[dict[str, str]]:
    prefix = "_wc_order_attribution_"
    tags = dict(part.split("=", 1) for part in query.split("&") if part.startswith("utm_"))
    return [
        {"key": f"{prefix}session_entry", "value": _url(query)},
        {"key": f"{prefix}referrer", "value": referrer},
        *({"key": prefix + name, "value": value} for name, value in tags.items()),
    ]


@pytest.mark.parametrize(
    ("table", "ids", "where"),
    [
        ("pixel_events", "event_id", "1"),
        ("orders", "order_id", "source = 'shopify_orders'"),
        ("orders", "order_id", "source = 'woocommerce_orders'"),
    ],
)
def test_each_case_finds_its_rule(classified: Tenant, table: str, ids: str, where: str) -> None:
    rows = classified.rows(
        f"select {ids} as id, source_rule_id, source_confidence from raw.{table}"
        f" where workspace_id = {{workspace}} and {where}"
    )
    found = {int(row["id"][1:]): (row["source_rule_id"], row["source_confidence"]) for row in rows}
    assert len(found) == len(CASES)
    wrong = {case: found[n] for n, case in enumerate(CASES) if found[n] != (case[2], case[3])}
    assert not wrong


def test_every_rule_has_a_case() -> None:
    assert {rule for _, _, rule, _ in CASES} == {f"r{n:02}" for n in range(1, 14)}


def test_source_medium_and_campaign_say_what_is_known(warehouse: Warehouse, tmp_path: Path) -> None:
    shop = tenant(warehouse, tmp_path)
    event = fixture("pixel")[0]
    cases = {
        ("utm_source=Google&utm_medium=CPC&utm_campaign=Brand+%26%20Co", ""): (
            "google", "cpc", "Brand & Co",
        ),
        ("gclid=1", ""): ("google", "cpc", ""),
        ("gclid=1", "https://www.google.de/"): ("google", "cpc", ""),
        ("fbclid=1", ""): ("facebook", "social", ""),
        ("ttclid=1", ""): ("tiktok", "cpc", ""),
        ("aa_x=1", ""): ("amazon", "cpc", ""),
        ("_kx=1", ""): ("klaviyo", "email", ""),
        ("", "https://old.reddit.com/r/x"): ("reddit", "social", ""),
        ("", "https://blog.example/x"): ("blog.example", "referral", ""),
        ("", ""): ("", "", ""),
        # Words of another alphabet, and what a careless tool encoded twice.
        ("utm_source=vk&utm_campaign=%D0%9E%D1%81%D0%B5%D0%BD%D1%8C", ""): (
            "vk", "social", "Осень",
        ),
        ("utm_source=letter&utm_campaign=A%2520B", ""): ("letter", "referral", "A B"),
    }  # fmt: skip
    counts = shop.load_lines(
        "pixel",
        [
            changed(event, event_id=str(n), url=_url(query), referrer=referrer)
            for n, (query, referrer) in enumerate(cases)
        ],
    )
    assert counts.stored == len(cases)
    rows = shop.table("raw.pixel_events", "toUInt32(event_id)")
    found = [(row["source"], row["medium"], row["campaign"]) for row in rows]
    assert dict(zip(cases, found, strict=True)) == cases


def test_a_url_is_kept_as_host_path_and_utm_alone(warehouse: Warehouse, tmp_path: Path) -> None:
    shop = tenant(warehouse, tmp_path)
    event = fixture("pixel")[0]
    urls = {
        "https://Mugs.Example:8443/a%20b/c?x=1&utm_source=s&utm_term=t&gclid=k#top": (
            "mugs.example", "/a b/c", "utm_source=s&utm_term=t",
        ),
        # A login reads like an e-mail address: nothing of that part stays.
        "https://user:secret@mugs.example/p?utmx=1&token=secret": ("", "/p", ""),
        "mugs.example/p": ("mugs.example", "/p", ""),
        "/only/a/path?utm_source=s": ("", "/only/a/path", "utm_source=s"),
        "https://mugs.example": ("mugs.example", "", ""),
        # Pages that route by fragment put their parameters behind it.
        "https://mugs.example/p#/route?utm_source=s&token=secret": (
            "mugs.example", "/p", "utm_source=s",
        ),
        "javascript:alert('secret')": ("", "", ""),
    }  # fmt: skip
    counts = shop.load_lines(
        "pixel", [changed(event, event_id=str(n), url=url) for n, url in enumerate(urls)]
    )
    assert counts.stored == len(urls)
    rows = shop.table("raw.pixel_events", "toUInt32(event_id)")
    found = [(row["url_host"], row["url_path"], row["url_parameters"]) for row in rows]
    assert dict(zip(urls, found, strict=True)) == urls
    assert "secret" not in json.dumps(rows)
