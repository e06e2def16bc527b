import csv
import gzip
import ipaddress
import json
from collections import Counter
from pathlib import Path

import pytest

from homes import Warehouse
from tidemark import clickhouse, reference
from tidemark.errors import UsageError

IPHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 "
    "(KHTML, like Gecko) Version/18.5 Mobile/15E148 Safari/604.1"
)
BLINK = "AppleWebKit/537.36 (KHTML, like Gecko)"
AI = f"Mozilla/5.0 {BLINK[:-1]}; compatible; {{}})"

USER_AGENTS = [
    # user agent, device type, browser, os, is bot, is AI agent
    ("", "", "", "", False, False),
    (IPHONE, "mobile", "safari", "ios", False, False),
    (IPHONE.replace("iPhone", "iPad", 1), "tablet", "safari", "ios", False, False),
    (
        f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) {BLINK} Chrome/141.0.0.0 Safari/537.36",
        "desktop", "chrome", "windows", False, False,
    ),
    (
        f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) {BLINK} Chrome/141.0.0.0 Safari/537.36 "
        "Edg/141.0.0.0",
        "desktop", "edge", "windows", False, False,
    ),
    (
        f"Mozilla/5.0 (Linux; Android 10; K) {BLINK} Chrome/141.0.0.0 Mobile Safari/537.36",
        "mobile", "chrome", "android", False, False,
    ),
    (
        f"Mozilla/5.0 (Linux; Android 14; SM-X710) {BLINK} Chrome/141.0.0.0 Safari/537.36",
        "tablet", "chrome", "android", False, False,
    ),
    (
        f"Mozilla/5.0 (Linux; Android 10; K) {BLINK} SamsungBrowser/28.0 Chrome/130.0.0.0 "
        "Mobile Safari/537.36",
        "mobile", "samsung", "android", False, False,
    ),
    (
        "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 "
        "(KHTML, like Gecko) Version/18.5 Safari/605.1.15",
        "desktop", "safari", "macos", False, False,
    ),
    (
        "Mozilla/5.0 (X11; Linux x86_64; rv:144.0) Gecko/20100101 Firefox/144.0",
        "desktop", "firefox", "linux", False, False,
    ),
    (
        f"Mozilla/5.0 (X11; CrOS x86_64 14541.0.0) {BLINK} Chrome/141.0.0.0 Safari/537.36",
        "desktop", "chrome", "chromeos", False, False,
    ),
    (
        f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) {BLINK} Chrome/141.0.0.0 Safari/537.36 "
        "OPR/125.0.0.0",
        "desktop", "opera", "windows", False, False,
    ),
    (
        f"Mozilla/5.0 (Linux; Android 9; AFTSSS) {BLINK} Silk/130.4 like Chrome/130.0 "
        "Safari/537.36",
        "", "silk", "android", False, False,
    ),
    (
        "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
        "bot", "", "", True, False,
    ),
    (AI.format("GPTBot/1.2; +https://openai.com/gptbot"), "bot", "", "", True, True),
    (AI.format("ChatGPT-User/1.0; +https://openai.com/bot"), "bot", "", "", True, True),
    (AI.format("OAI-SearchBot/1.0; +https://openai.com/searchbot"), "bot", "", "", True, True),
    (AI.format("ClaudeBot/1.0; +claudebot@anthropic.com"), "bot", "", "", True, True),
    (AI.format("Claude-User/1.0; +Claude-User@anthropic.com"), "bot", "", "", True, True),
    (AI.format("PerplexityBot/1.0; +https://perplexity.ai/bot"), "bot", "", "", True, True),
    (AI.format("Perplexity-User/1.0; +https://perplexity.ai/user"), "bot", "", "", True, True),
    (AI.format("Amazonbot/0.1; +https://developer.amazon.com/x"), "bot", "", "", True, True),
    ("CCBot/2.0 (https://commoncrawl.org/faq/)", "bot", "", "", True, True),
    ("meta-externalagent/1.1 (+https://developers.facebook.com/)", "bot", "", "", True, True),
    ("Mozilla/5.0 (compatible; Bytespider; spider-feedback@x.com)", "bot", "", "", True, True),
    ("Google-Extended", "bot", "", "", True, True),
    ("curl/8.5.0", "bot", "", "", True, False),
]  # fmt: skip


@pytest.mark.parametrize("expected", USER_AGENTS, ids=lambda row: row[0][-40:] or "empty")
def test_user_agents(expected):
    (found,) = reference.user_agent_classes([expected[0]])
    if found.is_bot:
        # Which browser or system a bot names is not held to anything.
        found = found._replace(browser="", os="")
    assert tuple(found) == expected


def test_each_user_agent_once_in_order():
    found = list(reference.user_agent_classes([IPHONE, None, "curl/8", IPHONE, "", "curl/8"]))
    assert [row.user_agent for row in found] == [IPHONE, "", "curl/8"]


def test_what_is_no_user_agent_does_not_raise():
    junk = ["\ud800 half a character", "x" * 100_000, "\x00\x01", "😀" * 50, "' or 1=1 --"]
    assert [row.user_agent for row in reference.user_agent_classes(junk)] == junk


def seed(name: str) -> list[dict[str, str]]:
    with (reference.SEEDS / name).open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


HOSTS = {
    row["host"]: reference.SourceHost(row["host"], row["kind"], row["name"])
    for row in seed("source_hosts.csv")
}


@pytest.mark.parametrize(
    ("host", "kind"),
    [
        ("google.com", "search"),
        ("www.google.com", "search"),
        ("www.google.co.uk", "search"),
        ("www.google.com.br", "search"),
        ("google", "search"),
        ("www.bing.com", "search"),
        ("duckduckgo.com", "search"),
        ("uk.search.yahoo.com", "search"),
        ("www.baidu.com", "search"),
        ("yandex.ru", "search"),
        ("www.ecosia.org", "search"),
        ("www.qwant.com", "search"),
        ("search.brave.com", "search"),
        ("m.search.naver.com", "search"),
        ("com.google.android.googlequicksearchbox", "search"),
        ("chatgpt.com", "ai"),
        ("chatgpt", "ai"),
        ("chat.openai.com", "ai"),
        ("www.perplexity.ai", "ai"),
        ("perplexity", "ai"),
        ("gemini.google.com", "ai"),
        ("copilot.microsoft.com", "ai"),
        ("claude.ai", "ai"),
        ("you.com", "ai"),
        ("poe.com", "ai"),
        ("chat.deepseek.com", "ai"),
        ("chat.mistral.ai", "ai"),
        ("grok.com", "ai"),
        ("www.meta.ai", "ai"),
        ("www.phind.com", "ai"),
        ("l.facebook.com", "social"),
        ("lm.facebook.com", "social"),
        ("m.facebook.com", "social"),
        ("l.instagram.com", "social"),
        ("t.co", "social"),
        ("x.com", "social"),
        ("out.reddit.com", "social"),
        ("www.linkedin.com", "social"),
        ("lnkd.in", "social"),
        ("www.pinterest.co.uk", "social"),
        ("www.tiktok.com", "social"),
        ("m.youtube.com", "social"),
        ("l.threads.com", "social"),
        ("go.bsky.app", "social"),
        ("mastodon.social", "social"),
        ("www.snapchat.com", "social"),
        ("away.vk.com", "social"),
        ("mail.google.com", "email"),
        ("maps.google.com", "other"),
        ("platform.openai.com", "other"),
        ("www.amazon.com", "other"),
        ("shop.example", None),
        ("notgoogle.com", None),
        ("netflix.com", None),
        ("microsoft.com", None),
    ],
)
def test_hosts_by_their_longest_suffix(host, kind):
    entry = HOSTS.get(host) or reference.find_parent(host, HOSTS)
    assert (entry.kind if entry else None) == kind


def test_source_hosts_are_keys():
    rows = seed("source_hosts.csv")
    assert len(rows) == len(HOSTS) > 1000
    assert {row["kind"] for row in rows} == {"search", "social", "ai", "email", "other"}
    for row in rows:
        assert row["host"] == row["host"].lower().strip().removeprefix("www.")
        assert "/" not in row["host"]
        assert row["name"]


def test_source_rules_are_in_order():
    rows = seed("source_rules.csv")
    assert [row["rule_id"] for row in rows] == [f"r{n:02d}" for n in range(1, 14)]
    assert [row["priority"] for row in rows] == [str(n) for n in range(1, 14)]


def test_conversion_of_source_hosts(tmp_path):
    referrers = tmp_path / "referrers.json"
    referrers.write_text(
        json.dumps(
            {
                "www.Search.example": {"medium": "search", "source": "Finder"},
                "images.search.example": {"medium": "search", "source": "Finder"},
                "mail.search.example": {"medium": "email", "source": "Finder Mail"},
                "search.example/pictures": {"medium": "search", "source": "Finder Pictures"},
                "ads.example": {"medium": "paid", "source": "Ads"},
                "talk.example": {"medium": "social", "source": "Talk"},
            },
        ),
    )
    extra = tmp_path / "extra.csv"
    extra.write_text("host,kind,name\ntalk.example,ai,talk\nfinder,search,finder\n")
    assert reference.source_hosts(referrers, extra) == [
        ("finder", "search", "finder"),
        ("mail.search.example", "email", "finder mail"),
        ("search.example", "search", "finder"),
        ("talk.example", "ai", "talk"),
    ]
    referrers.write_text("[]")
    with pytest.raises(UsageError, match=r"referrers\.json"):
        reference.source_hosts(referrers, extra)


ADDRESSES = ("81.2.69.142", "216.160.83.56", "89.160.20.112", "2001:218:85a3::8a2e:370:7334")


def lookup(path: Path) -> dict[str, str]:
    """What the database says of some addresses, by the slow and certain way."""
    found = {}
    for prefix, country in reference.country_ranges(path):
        if prefix.startswith(("81.", "216.", "89.", "2001:")):
            net = ipaddress.ip_network(prefix)
            for address in map(ipaddress.ip_address, ADDRESSES):
                if address.version == net.version and address in net:
                    found[str(address)] = country
    return found


def test_the_database_that_ships():
    assert lookup(reference.DEFAULT_GEO) == {
        "81.2.69.142": "GB",
        "216.160.83.56": "US",
        "89.160.20.112": "SE",
        "2001:218:85a3::8a2e:370:7334": "JP",
    }


def test_the_database_that_ships_has_no_overlaps():
    last = {4: -1, 6: -1}
    seen: Counter[str] = Counter()
    for prefix, country in reference.country_ranges(reference.DEFAULT_GEO):
        net = ipaddress.ip_network(prefix)
        assert int(net.network_address) > last[net.version]
        last[net.version] = int(net.broadcast_address)
        seen[country] += 1
    assert sum(seen.values()) > 200_000
    assert len(seen) > 230
    assert reference.DEFAULT_GEO.stat().st_size < 2_000_000


def test_ranges_become_prefixes(tmp_path):
    (tmp_path / "x-ipv4-num.csv").write_text("16,31,AA\n32,47,AA\n48,50,BB\n64,64,BB\n")
    (tmp_path / "x-ipv6-num.csv").write_text(f"{1 << 112},{(1 << 113) - 1},CC\n")
    target = tmp_path / "out.csv.gz"
    assert reference.write_geo(tmp_path, target) == 6
    assert list(reference.country_ranges(target)) == [
        ("0.0.0.16/28", "AA"),
        ("0.0.0.32/28", "AA"),
        ("0.0.0.48/31", "BB"),
        ("0.0.0.50/32", "BB"),
        ("0.0.0.64/32", "BB"),
        ("1::/16", "CC"),
    ]
    first = target.read_bytes()
    reference.write_geo(tmp_path, target)
    assert target.read_bytes() == first
    (tmp_path / "y-ipv4-num.csv").write_text("")
    with pytest.raises(UsageError, match="found 2"):
        reference.write_geo(tmp_path, target)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("geo.csv", b"1.0.0.0/8,US\n", "first line"),
        ("geo.csv", b"prefix,country\n1.0.0.0,US\n", "line 2"),
        ("geo.csv", b"prefix,country\n", "no network"),
        ("geo.csv.gz", b"prefix,country\n", "can't be read"),
        (
            "geo.csv.gz",
            gzip.compress(b"prefix,country\n1.0.0.0/8,US\n", mtime=0)[:-9],
            "can't be read",
        ),
        ("geo.mmdb", b"nothing", "not a MaxMind database"),
        ("geo.dat", b"", "must be"),
    ],
)
def test_files_that_are_no_database(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        list(reference.country_ranges(path))
    with pytest.raises(UsageError, match="no IP database"):
        list(reference.country_ranges(tmp_path / "missing.mmdb"))


UINT16, UINT32, UINT64 = 5, 6, 9


def mmdb(countries):
    """A MaxMind DB of IPv4 networks, as their format's specification 2.0 has it."""

    def encode(value):
        if isinstance(value, dict):
            body = b"".join(encode(key) + encode(item) for key, item in value.items())
            return bytes([0xE0 | len(value)]) + body
        if isinstance(value, str):
            raw = value.encode()
            return bytes([0x40 | len(raw)]) + raw
        if isinstance(value, list):
            return bytes([len(value), 4]) + b"".join(map(encode, value))
        kind, number = value
        raw = number.to_bytes({UINT16: 2, UINT32: 4, UINT64: 8}[kind], "big")
        return (bytes([kind << 5 | len(raw)]) if kind < 8 else bytes([len(raw), kind - 7])) + raw

    data = b""
    # A node is its two sides: a node's number (0 is none: nothing leads to the root) or a record.
    tree = [[0, 0]]
    leaves = {}
    for prefix, record in countries.items():
        net = ipaddress.IPv4Network(prefix)
        sides = [int(bit) for bit in f"{int(net.network_address):032b}"[: net.prefixlen]]
        at = 0
        for side in sides[:-1]:
            if not tree[at][side]:
                tree.append([0, 0])
                tree[at][side] = len(tree) - 1
            at = tree[at][side]
        leaves[at, sides[-1]] = len(data)
        data += encode(record)
    nodes = b""
    for number, node in enumerate(tree):
        for side in (0, 1):
            leaf = leaves.get((number, side))
            value = (node[side] or len(tree)) if leaf is None else len(tree) + 16 + leaf
            nodes += value.to_bytes(3, "big")
    metadata = {
        "node_count": (UINT32, len(tree)),
        "record_size": (UINT16, 24),
        "ip_version": (UINT16, 4),
        "database_type": "Test",
        "languages": ["en"],
        "binary_format_major_version": (UINT16, 2),
        "binary_format_minor_version": (UINT16, 0),
        "build_epoch": (UINT64, 1),
        "description": {"en": "made by a test"},
    }
    return nodes + bytes(16) + data + b"\xab\xcd\xefMaxMind.com" + encode(metadata)


@pytest.fixture
def maxmind(tmp_path):
    path = tmp_path / "countries.mmdb"
    path.write_bytes(
        mmdb(
            {
                "81.2.69.0/24": {
                    "country": {"iso_code": "GB"},
                    "registered_country": {"iso_code": "US"},
                },
                "89.160.0.0/16": {"registered_country": {"iso_code": "SE"}},
                "67.43.156.0/24": {"country_code": "BT"},
                "10.0.0.0/8": {"traits": {}},
            },
        ),
    )
    return path


def test_a_maxmind_database(maxmind):
    assert list(reference.country_ranges(maxmind)) == [
        ("67.43.156.0/24", "BT"),
        ("81.2.69.0/24", "GB"),
        ("89.160.0.0/16", "SE"),
    ]


def test_load_geo(fresh_warehouse: Warehouse, maxmind, tmp_path):
    client = clickhouse.client(fresh_warehouse.settings)
    addresses = ["81.2.69.142", "::ffff:81.2.69.142", "2001:218:85a3::1", "127.0.0.1", "", "junk"]

    def countries():
        return client.query(
            "select arrayMap(ip -> dictGetOrDefault('reference.geo', 'country', "
            "tuple(toIPv6OrDefault(ip)), ''), {ips:Array(String)})",
            parameters={"ips": addresses},
        ).result_rows[0][0]

    assert reference.load_geo(client, reference.DEFAULT_GEO)
    assert countries() == ["GB", "GB", "JP", "", "", ""]
    assert not reference.load_geo(client, reference.DEFAULT_GEO)

    assert reference.load_geo(client, maxmind)
    assert countries() == ["GB", "GB", "", "", "", ""]

    broken = tmp_path / "broken.csv"
    broken.write_text("prefix,country\n1.0.0.0/8,US\nnonsense\n")
    with pytest.raises(UsageError, match="line 3"):
        reference.load_geo(client, broken)
    assert countries() == ["GB", "GB", "", "", "", ""]
    assert reference.load_geo(client, reference.DEFAULT_GEO)
    names = client.query("select name from system.tables where database = 'reference'").result_rows
    assert ("geo_prefixes_new",) not in names
