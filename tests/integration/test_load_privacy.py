"""Privacy at load: what must never be stored is not, and what is harmless stays as it was."""

import hashlib
import hmac
import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from homes import Warehouse
from landings import Tenant, changed, fixture, tenant
from tidemark import keys, postgres

EVENT = changed(fixture("pixel")[0], url="https://mugs.example/", referrer="", user_agent=None)

# As content management systems write them: spaces and dashes at which no line breaks.
ODD = [
    "+44\u00a07700\u00a0900050",
    "555\u2011555\u20110199",
    "ada.lovelace\uff20example.org",
]
GUILTY = [
    "ada.lovelace@example.org",
    "ADA+news@mail.example.co.uk",
    "o'hara@example.com",
    "ädä@exämple.de",
    "+44 20 7946 0958",
    "+442079460958",
    "0044 20 7946 0958",
    "020 7946 0958",
    "02079460958",
    "07700 900123",
    "(555) 555-5555",
    "555-555-0199",
    "555.555.0199",
    "555 555 0199",
    "2125550199",
    "+1 (212) 555-0199",
    "06 12 34 56 78",
    "0151 23456789",
    "0151/23456789",
    "+49 151 23456789",
    "+33612345678",
    "81.2.69.142",
    "2001:db8:85a3::8a2e:370:7334",
    "2001:db8:0:1:2:3:4:5",
    *ODD,
]
HARMLESS = [
    "2026-11-19",
    "2026-11-19T23:09:41Z",
    "2026-11-19 23:09:41",
    "19.11.2026",
    "20261119",
    "1234.56",
    "1,234,567.89",
    "1795129781",
    "1795129781123",
    "820982911946154508",
    "0192f3c1-7a40-7c11-9a1e-3b6c1f0a0001",
    "8f14e45f-ceea-467f-ab1a-0c9d5f1c2a01",
    "9781234567897",
    "SKU-4711-B",
    "v1.2.3",
    "1536x730",
    "50% off @ home",
    "12:30:45",
    "ad::to",
    "Größe \u2013 100\u00a0%",
    "@mugs",
    "10-20-30",
    "Autumn Drop 2026",
    "#ff00aa",
]


def _load_each(shop: Tenant, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    counts = shop.load_lines("pixel", lines)
    assert counts.stored == len(lines)
    return shop.table("raw.pixel_events", "line_number")


@pytest.fixture(scope="module")
def planted(
    warehouse: Warehouse, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[dict[str, Any]]]:
    """Each text in each place that may hold free text, one event a text."""
    found = {}
    for name, texts in (("guilty", GUILTY), ("harmless", HARMLESS)):
        shop = tenant(warehouse, tmp_path_factory.mktemp(name))
        found[name] = _load_each(
            shop,
            [
                changed(
                    EVENT,
                    event_id=str(n),
                    event_name=f"saw {text}",
                    url=f"https://mugs.example/p/{quote(text)}/x?utm_campaign=for+{quote(text)}"
                    f"&utm_content={quote(quote(text))}&utm_source=s&secret={quote(text)}",
                    referrer=f"https://blog.example/{quote(text)}?q={quote(text)}",
                    properties={
                        "text": f"call {text} now",
                        "plain": text,
                        "nested": [{"deep": {"er": text}}],
                        text: 1,
                    },
                )
                for n, text in enumerate(texts)
            ],
        )
    return found


PLACES = (
    "event_name", "url_path", "url_parameters", "referrer_path", "campaign", "properties",
)  # fmt: skip


@pytest.mark.parametrize("number", range(len(GUILTY)), ids=GUILTY)
def test_what_looks_like_a_person_is_redacted(
    planted: dict[str, list[dict[str, Any]]], number: int
) -> None:
    text, row = GUILTY[number], planted["guilty"][number]
    everything = json.dumps(row, ensure_ascii=False)
    assert text not in everything
    assert quote(text) not in everything
    for place in PLACES:
        assert "[redacted]" in row[place], place
    properties = json.loads(row["properties"])
    assert "[redacted]" in properties["text"]
    # As a person reads it, a literal of JSON might be none.
    assert properties["text"].startswith("[redacted]" if text in ODD else "call ")
    assert properties["nested"] == [{"deep": {"er": "[redacted]"}}]
    assert row["url_path"].endswith("/x")
    assert "utm_source=s" in row["url_parameters"]


@pytest.mark.parametrize("number", range(len(HARMLESS)), ids=HARMLESS)
def test_what_is_harmless_stays(planted: dict[str, list[dict[str, Any]]], number: int) -> None:
    text, row = HARMLESS[number], planted["harmless"][number]
    assert row["event_name"] == f"saw {text}"
    assert row["url_path"] == f"/p/{text}/x"
    assert row["campaign"] == f"for {text}"
    properties = json.loads(row["properties"])
    assert properties == {
        "text": f"call {text} now",
        "plain": text,
        "nested": [{"deep": {"er": text}}],
        text: 1,
    }


@pytest.mark.parametrize(
    "written",
    ["+442079460958", "+44+20+7946+0958", "call++442079460958", "ada.lovelace+news@example.org",
     "To+<ada.lovelace+news@example.org>"],
)  # fmt: skip
def test_a_plus_that_nobody_encoded_hides_nothing(
    warehouse: Warehouse, tmp_path: Path, written: str
) -> None:
    shop = tenant(warehouse, tmp_path)
    url = "https://mugs.example/?" + "&".join(
        f"{name}={written}" for name in ("utm_source", "utm_medium", "utm_campaign", "utm_term")
    )
    (row,) = _load_each(shop, [changed(EVENT, url=url)])
    for place in ("source", "medium", "campaign", "url_parameters"):
        assert "[redacted]" in row[place], place
        for part in ("ada", "lovelace", "news", "example.org", "7946", "0958", "79460958"):
            assert part not in row[place].lower().replace("call", ""), place


def test_a_plus_between_words_is_a_space(warehouse: Warehouse, tmp_path: Path) -> None:
    shop = tenant(warehouse, tmp_path)
    url = "https://mugs.example/?utm_source=s&utm_campaign=Sale+2026+up+to+50%2B"
    (row,) = _load_each(shop, [changed(EVENT, url=url)])
    assert row["campaign"] == "Sale 2026 up to 50+"


@pytest.mark.parametrize("text", GUILTY)
def test_what_is_encoded_within_a_text_is_redacted_too(
    warehouse: Warehouse, tmp_path: Path, text: str
) -> None:
    shop = tenant(warehouse, tmp_path)
    once, twice = quote(text, safe=""), quote(quote(text, safe=""), safe="")
    links = [f"https://mugs.example/?who={encoded}&x=1" for encoded in (once, twice)]
    (row,) = _load_each(
        shop, [changed(EVENT, event_name=links[0], properties={"a": links, "b": "100% off"})]
    )
    everything = json.dumps(row, ensure_ascii=False)
    for form in {text, once, twice}:
        assert form not in everything
    assert json.loads(row["properties"])["b"] == "100% off"


def test_ids_made_of_a_person_become_pseudonyms(warehouse: Warehouse, tmp_path: Path) -> None:
    shop = tenant(warehouse, tmp_path)
    personal = ["ada@example.org", "ada%40example.org", "+442079460958", "020 7946 0958",
                "(555) 555-0199"]  # fmt: skip
    plain = ["450789469", "5123456789012", "2079460958", "10-20-30", "#1001", "a b", "1 2"]
    names = ("event_id", "anonymous_id", "session_id", "order_id")
    rows = _load_each(
        shop,
        [
            changed(
                EVENT,
                event_id=text,
                anonymous_id=text,
                session_id=text,
                properties={"order_id": text},
            )
            for text in personal + plain
        ],
    )
    for text, row in zip(personal + plain, rows, strict=True):
        for name in names:
            assert (row[name] == text) is (text in plain), (name, text)
            assert len(row[name]) == 32 or text in plain


def test_properties_under_telling_keys_go_whole(warehouse: Warehouse, tmp_path: Path) -> None:
    telling = {
        "email": "x",
        "Email Address": "x",
        "phone": 442079460958,
        "phone_number": "none of your business",
        "mobile": 7,
        "first_name": "Ada",
        "lastName": "Lovelace",
        "full name": 'Ada "the" Lovelace',
        "customer_name": "Ada",
        "address": "12 St James's Sq",
        "shipping_address": {"line1": "12 St James's Sq", "city": "London"},
        "billing_address": {
            "line1": "12 St James's Sq",
            "location": {"city": "London", "at": [{"lat": 51.5}, {"lon": -0.1}]},
        },
        "client_ip": "::1",
        "remote_addr": "::1",
        "addresses": ["12 St James's Sq"],
        "street": "12 St James's Sq",
        "zip": "SW1Y 4LB",
        "postcode": "SW1Y 4LB",
        "ip": "::1",
        "user_agent": "curl",
        "birthday": "1815-12-10",
    }
    harmless = {
        "product_name": "Blue mug", "file_name": "a.pdf", "ship": "fast", "price": 12.5,
        "recipe": "tea", "zipper": True, "tip": 2, "title": "Names of tea", "none": None,
    }  # fmt: skip
    shop = tenant(warehouse, tmp_path)
    (row,) = _load_each(
        shop, [changed(EVENT, properties={**telling, **harmless, "deep": {"list": [telling]}})]
    )
    for value in ("Ada", "Lovelace", "James", "London", "SW1Y", "442079460958", "1815", "curl"):
        assert value not in row["properties"], value
    assert "::1" not in row["properties"]
    properties = json.loads(row["properties"])
    assert {name: properties[name] for name in harmless} == harmless
    assert set(properties) == {*telling, *harmless, "deep"}


def test_nothing_stays_of_properties_too_deep_to_look_into(
    warehouse: Warehouse, tmp_path: Path
) -> None:
    shop = tenant(warehouse, tmp_path)
    deep: Any = "12 St James's Sq"
    for _ in range(7):
        deep = {"in": deep}
    addressed, other = _load_each(
        shop,
        [
            changed(EVENT, event_id="1", properties={"address": deep, "price": 1}),
            changed(EVENT, event_id="2", properties={"mug": deep, "price": 1}),
        ],
    )
    assert addressed["properties"] == "{}"
    assert json.loads(other["properties"]) == {"mug": deep, "price": 1}


def test_properties_over_8_kb_are_replaced_whole(warehouse: Warehouse, tmp_path: Path) -> None:
    shop = tenant(warehouse, tmp_path)

    def document(size: int) -> dict[str, str]:
        left = size - len(b'{"order_id":"77","k":""}')
        return {"order_id": "77", "k": "é" * (left // 2) + "x" * (left % 2)}

    sizes = []
    lines = []
    for n, wanted in enumerate((8190, 8191, 8192, 8193, 20_000)):
        properties = document(wanted)
        compact = json.dumps(properties, ensure_ascii=False, separators=(",", ":")).encode()
        sizes.append(len(compact))
        # Spaces and escapes of the delivery don't count: the size is that of compact JSON.
        lines.append(changed(EVENT, event_id=str(n), properties=properties))
    assert {8192, 8193} <= set(sizes)
    for row, size in zip(_load_each(shop, lines), sizes, strict=True):
        if size > 8192:
            assert json.loads(row["properties"]) == {"__truncated": True, "original_bytes": size}
        else:
            assert len(row["properties"].encode()) == size
        assert row["order_id"] == "77"


def test_click_ids_are_kept_as_keyed_hashes(warehouse: Warehouse, tmp_path: Path) -> None:
    shop = tenant(warehouse, tmp_path)
    kinds = ["gclid", "gbraid", "wbraid", "fbclid", "ttclid", "epik", "_kx", "msclkid"]
    rows = _load_each(
        shop,
        [
            changed(EVENT, event_id=kind, url=f"https://mugs.example/?{kind}=Secret-{n % 2}")
            for n, kind in enumerate(kinds)
        ],
    )
    assert [row["click_id_kind"] for row in rows] == kinds
    assert "Secret" not in json.dumps(rows)
    assert len({row["click_id_hash"] for row in rows}) == 2
    assert all(len(row["click_id_hash"]) == 32 for row in rows)


def test_a_click_id_without_a_value_is_none(warehouse: Warehouse, tmp_path: Path) -> None:
    shop = tenant(warehouse, tmp_path)
    queries = ["gclid=", "gclid", "fbclid=&gclid=", "gad_source=&utm_term=", "_kx=&aa_x="]
    rows = _load_each(
        shop,
        [
            changed(EVENT, event_id=str(n), url=f"https://mugs.example/?{query}")
            for n, query in enumerate(queries)
        ],
    )
    for row in rows:
        assert (row["click_id_kind"], row["click_id_hash"]) == ("", "")
        assert (row["source_rule_id"], row["source_confidence"]) == ("r13", "low")


def test_an_ip_is_hashed_under_its_days_salt_and_kept_as_country_alone(
    warehouse: Warehouse, tmp_path: Path
) -> None:
    # Days that no other test has salts for; earlier ones, because a load destroys past salts.
    as_of = date(2021, 5, 5)
    shop = tenant(warehouse, tmp_path)
    shop.as_of = as_of
    countries = {
        "81.2.69.142": "GB",
        "216.160.83.56": "US",
        "89.160.20.112": "SE",
        "2001:218:85a3::8a2e:370:7334": "JP",
        "127.0.0.1": "",
        "nonsense": "",
    }
    days = [as_of - timedelta(days=1), as_of, as_of, as_of + timedelta(days=1)]
    lines = [
        changed(EVENT, event_id=f"{n}-{number}", ip=ip, timestamp=f"{day}T0{n}:00:00Z")
        for n, day in enumerate(days)
        for number, ip in enumerate(countries)
    ]
    rows = _load_each(shop, lines)
    assert not [ip for ip in countries if "." in ip and ip in json.dumps(rows)]
    hashes: dict[tuple[date, str], set[str]] = {}
    for row, line in zip(rows, lines, strict=True):
        assert row["country"] == countries[line["ip"]]
        day = date.fromisoformat(line["timestamp"][:10])
        hashes.setdefault((day, line["ip"]), set()).add(row["ip_hash"])
    # A salt is never made for a past day.
    assert all(hashes[as_of - timedelta(days=1), ip] == {""} for ip in countries)
    with_salt = {key: found for key, found in hashes.items() if key[0] >= as_of}
    assert all(len(found) == 1 for found in with_salt.values())
    values = [value for found in with_salt.values() for value in found]
    assert len(set(values)) == len(values) == 2 * len(countries)
    assert all(len(value) == 32 and int(value, 16) >= 0 for value in values)
    salts = shop.ledger(
        "select day from control.salts where day between %s and %s",
        [as_of - timedelta(days=3), as_of + timedelta(days=1)],
    )
    assert [row["day"] for row in salts] == [as_of, as_of + timedelta(days=1)]
    # The hash told a second time.
    with postgres.connect(warehouse.settings) as connection:
        salt = keys.Keyring.from_settings(warehouse.settings).salt_for(
            connection, as_of, as_of, datetime(2021, 5, 5, tzinfo=UTC)
        )
    assert salt is not None
    told = hmac.new(salt, b"ip\x0081.2.69.142", hashlib.sha256).hexdigest()[:32]
    assert hashes[as_of, "81.2.69.142"] == {told}


def test_a_day_whose_salt_is_destroyed_has_no_hash(warehouse: Warehouse, tmp_path: Path) -> None:
    as_of = date(2021, 6, 5)
    shop = tenant(warehouse, tmp_path)
    shop.as_of = as_of
    line = changed(EVENT, ip="81.2.69.142", timestamp=f"{as_of}T01:00:00Z")
    (before,) = _load_each(shop, [line])
    assert before["ip_hash"]
    # A load destroys the salts whose time has come before it reads a line.
    later = as_of + timedelta(days=3)
    shop.as_of = later
    shop.deliver("pixel", [changed(line, event_id="late")], name="late.jsonl")
    shop.load()
    (row,) = shop.rows(
        "select ip_hash, country from raw.pixel_events"
        " where workspace_id = {workspace} and event_id = 'late'"
    )
    assert row == {"ip_hash": "", "country": "GB"}


def test_user_agents_are_kept_as_classes(warehouse: Warehouse, tmp_path: Path) -> None:
    webkit = "AppleWebKit/537.36 (KHTML, like Gecko)"
    agents: dict[str, tuple[str, str, str, bool, bool]] = {
        f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) {webkit} Chrome/141.0.0.0 Safari/537.36": (
            "desktop", "chrome", "windows", False, False,
        ),
        f"Mozilla/5.0 (Linux; Android 15; Pixel 9) {webkit} Chrome/141.0 Mobile Safari/537.36": (
            "mobile", "chrome", "android", False, False,
        ),
        "Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0": (
            "desktop", "firefox", "linux", False, False,
        ),
        "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)": (
            "bot", "", "", True, False,
        ),
        f"Mozilla/5.0 {webkit}; compatible; GPTBot/1.2; +https://openai.com/gptbot)": (
            "bot", "", "", True, True,
        ),
        "": ("", "", "", False, False),
    }  # fmt: skip
    shop = tenant(warehouse, tmp_path)
    rows = _load_each(
        shop,
        [changed(EVENT, event_id=str(n), user_agent=agent) for n, agent in enumerate(agents)],
    )
    found = [(r["device_type"], r["browser"], r["os"], r["is_bot"], r["is_ai_agent"]) for r in rows]
    assert dict(zip(agents, found, strict=True)) == agents


def test_without_consent_nothing_is_stored(warehouse: Warehouse, tmp_path: Path) -> None:
    refused = [False, {"analytics": False}, {"analytics": "false"}, {"analytics": "denied"},
               "false", {"analytics": False, "ads": True}, {"analytics": 0}]  # fmt: skip
    given = [..., None, {}, True, {"analytics": True}, {"analytics": "true"}, {"ads": False},
             {"analytics": None}]  # fmt: skip
    shop = tenant(warehouse, tmp_path)
    counts = shop.load_lines(
        "pixel",
        [changed(EVENT, event_id=f"r{n}", consent=c) for n, c in enumerate(refused)]
        + [changed(EVENT, event_id=f"g{n}", consent=c) for n, c in enumerate(given)],
    )
    stored = {row["event_id"] for row in shop.table("raw.pixel_events")}
    assert stored == {f"g{n}" for n in range(len(given))}
    assert (counts.refused, counts.stored, counts.quarantined) == (len(refused), len(given), 0)
    assert shop.quarantine() == {}


def test_a_subject_on_the_erasure_list_is_refused_everywhere(
    warehouse: Warehouse, tmp_path: Path
) -> None:
    shop = tenant(warehouse, tmp_path)
    with postgres.connect(warehouse.settings) as connection:
        key = keys.Keyring.from_settings(warehouse.settings).pseudonym_key(
            connection, shop.workspace_id
        )

        def hashed(text: str) -> str:
            return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()[:32]

        for subject in (
            hashed("email\0grace@example.org"),
            hashed("user_id\0cust_9"),
            hashed("customer\0shopify_orders\x0020712"),
            hashed("profile\x0001GDDKASAP8TKDDA2GRZDSVP4H"),
            "visitor-to-forget",
        ):
            connection.execute(
                "insert into control.erasure_list values (%s, %s, now())",
                [shop.workspace_id, subject],
            )
    shop.deliver(
        "pixel",
        [
            changed(EVENT, event_id="a", email="GRACE@example.org"),
            changed(EVENT, event_id="b", user_id="cust_9"),
            changed(EVENT, event_id="c", anonymous_id="visitor-to-forget"),
            changed(EVENT, event_id="d", email="someone@example.org"),
        ],
    )
    shop.deliver("shopify_orders", fixture("shopify_orders"))
    shop.deliver(
        "payments",
        [
            fixture("payments")[0],
            changed(fixture("payments")[1], metadata={"visitor_id": "visitor-to-forget"}),
            fixture("payments")[3],
        ],
    )
    shop.deliver("klaviyo_events", fixture("klaviyo_events"))
    report = shop.load()
    fates = {
        file.file.split("/")[0]: (file.counts.stored, file.counts.refused) for file in report.files
    }
    # Of the orders one has no customer; every e-mail event is of the one profile.
    assert fates == {
        "pixel": (1, 3), "shopify_orders": (1, 4), "payments": (1, 2), "klaviyo_events": (0, 7),
    }  # fmt: skip
    shop.assert_ties_out()
