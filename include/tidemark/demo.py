"""Landing files of three invented shops: believable, deterministic, and of nobody.

Everything a source can do to a warehouse is in them: late and repeated events, restated spend,
refunds on later days, cancellations, refused consent, bots, foreign currencies, bad lines. People
have documentation addresses and telephone ranges kept for fiction; the IPs are drawn from large
providers' blocks so that countries resolve. The formats are those of the vendors' APIs, as the
contract's samples have them.
"""

import gzip
import json
import math
from bisect import bisect
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import quote
from zoneinfo import ZoneInfo

#: Days before `as_of` that are delivered one by one; what is older comes in files of a month.
RECENT_DAYS = 31
_MONTHS_BEFORE = 13


@dataclass(frozen=True, slots=True)
class Workspace:
    """A tenant of the demonstration, with what `tidemark workspace add` needs to know."""

    workspace_id: str
    timezone: str
    currency: str
    plan: str
    revenue_source: str
    #: The source of its orders or payments.
    revenue_feed: str
    host: str
    #: Sessions with the pixel on an average day, and orders or payments on one.
    sessions: float
    orders: float
    #: Where its visitors are, as relative weights.
    countries: Mapping[str, float]


#: The demonstration's tenants; the loader knows them under these settings alone.
WORKSPACES: tuple[Workspace, ...] = (
    Workspace(
        workspace_id="tidal-goods",
        timezone="Europe/London",
        currency="GBP",
        plan="growth",
        revenue_source="orders",
        revenue_feed="shopify_orders",
        host="tidal-goods.example",
        sessions=165,
        orders=19,
        countries={"GB": 78, "IE": 7, "US": 6, "FR": 3, "DE": 3, "SE": 2, "AU": 1},
    ),
    Workspace(
        workspace_id="harbour-home",
        timezone="Europe/Paris",
        currency="EUR",
        plan="enterprise",
        revenue_source="orders",
        revenue_feed="woocommerce_orders",
        host="harbour-home.example",
        sessions=135,
        orders=14,
        countries={"FR": 70, "BE": 9, "DE": 8, "ES": 4, "IT": 4, "GB": 3, "NL": 2},
    ),
    Workspace(
        workspace_id="wren-studio",
        timezone="America/New_York",
        currency="USD",
        plan="pro",
        revenue_source="payments",
        revenue_feed="payments",
        host="wren-studio.example",
        sessions=110,
        orders=11,
        countries={"US": 82, "CA": 9, "GB": 5, "AU": 2, "DE": 2},
    ),
)


@dataclass(frozen=True, slots=True)
class Summary:
    """What `write_landing` wrote.

    `history_as_of` is the date to load the monthly files by (`load --as-of`): seen from `as_of`
    itself, the oldest month is past the pixel's window and would be quarantined, not purged.
    """

    first_day: date
    last_day: date
    history_as_of: date
    files: int
    bytes: int
    lines: Mapping[str, int]


def write_landing(
    landing: Path, as_of: date, seed: int = 7, *, recent: Path | None = None, scale: float = 1.0
) -> Summary:
    """Write 14 months of landing files, up to the day before `as_of`.

    The same arguments make the same bytes.

    Args:
        landing: root of the landing layout `<source>/<workspace>/<delivery day>/<name>.jsonl.gz`.
        as_of: the day the demonstration plays on (UTC); the last delivery is of this day.
        recent: where to put the deliveries of the last 31 days instead, in the same layout, so
            that history can be loaded by its own date first.
        scale: share of the usual volume, for tests.
    """
    history_as_of = as_of - timedelta(days=RECENT_DAYS)
    first_day = _months_before(history_as_of, _MONTHS_BEFORE)
    last_day = as_of - timedelta(days=1)
    out = _Deliveries(landing, recent or landing, history_as_of)
    for workspace in WORKSPACES:
        _Shop(workspace, out, first_day, last_day, seed, scale).run()
    _write_fx(out, first_day, last_day, seed)
    # A folder nobody knows: somebody mistyped a workspace.
    stray = (
        f'{{"event_id": "00000000-0000-7000-a000-000000000001", "event_name": "$pageview", '
        f'"timestamp": "{last_day}T12:00:00Z", "anonymous_id": "a-1", '
        f'"url": "https://tidal-gods.example/", "properties": {{}}}}'
    )
    out.put("pixel", "tidal-gods", last_day, stray)
    out.flush()
    return Summary(first_day, last_day, history_as_of, out.files, out.bytes, dict(out.lines))


def _months_before(day: date, months: int) -> date:
    total = day.year * 12 + day.month - 1 - months
    year, month = divmod(total, 12)
    for last in (day.day, 30, 29, 28):
        try:
            return date(year, month + 1, last)
        except ValueError:
            continue
    raise AssertionError("every month has a 28th day")


class _Deliveries:
    """Lines on their way into files; a file is written once no more lines can join it."""

    def __init__(self, landing: Path, recent: Path, history_as_of: date) -> None:
        self._landing = landing
        self._recent = recent
        self._history_as_of = history_as_of
        self._open: dict[tuple[str, str, date], list[str]] = {}
        self._delivery_days: dict[tuple[date, int], date] = {}
        self.files = 0
        self.bytes = 0
        self.lines: Counter[str] = Counter()

    def delivery_day(self, day: date, late: int = 0) -> date:
        """The delivery that carries what happened on a day, or became known `late` days after."""
        found = self._delivery_days.get((day, late))
        if found is None:
            known = day + timedelta(days=late)
            if known >= self._history_as_of:
                found = known + timedelta(days=1)
            else:
                month = date(known.year + known.month // 12, known.month % 12 + 1, 1)
                found = min(month, self._history_as_of)
            self._delivery_days[day, late] = found
        return found

    def put(self, source: str, workspace: str, day: date, line: str, late: int = 0) -> None:
        self.put_on(source, workspace, self.delivery_day(day, late), line)

    def put_on(self, source: str, workspace: str, delivery: date, line: str) -> None:
        self._open.setdefault((source, workspace, delivery), []).append(line)

    def flush(self, before: date | None = None, source: str | None = None) -> None:
        """Write what is complete: all, or deliveries before a day (of one source)."""
        for key in sorted(self._open):
            if (before is None or key[2] < before) and source in (None, key[0]):
                self._write(*key, self._open.pop(key))

    def _write(self, source: str, workspace: str, delivery: date, lines: list[str]) -> None:
        root = self._recent if delivery > self._history_as_of else self._landing
        folder = root / source / workspace / delivery.isoformat()
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{source}.jsonl.gz"
        partial = folder / f".{path.name}.partial"
        with partial.open("wb") as raw, gzip.GzipFile("", "wb", 1, raw, mtime=0) as packed:
            packed.write(("\n".join(lines) + "\n").encode())
        partial.rename(path)
        self.files += 1
        self.bytes += path.stat().st_size
        self.lines[source] += len(lines)


_NETWORKS: dict[str, tuple[str, ...]] = {
    "AU": ("1.120.0.0/13", "58.160.0.0/12"),
    "BE": ("81.240.0.0/13", "91.176.0.0/13"),
    "CA": ("99.224.0.0/11", "184.144.0.0/13"),
    "DE": ("79.192.0.0/10", "91.0.0.0/10"),
    "ES": ("88.0.0.0/11", "83.32.0.0/11"),
    "FR": ("90.0.0.0/9", "82.64.0.0/14", "2a01:e0a::/32"),
    "GB": ("86.128.0.0/11", "2.24.0.0/13", "81.152.0.0/13", "2a02:c7c::/30"),
    "IE": ("86.40.0.0/13", "109.76.0.0/14"),
    "IT": ("79.0.0.0/10", "87.0.0.0/12"),
    "NL": ("84.80.0.0/12", "77.160.0.0/13"),
    "SE": ("81.224.0.0/12", "90.224.0.0/12"),
    "US": ("73.0.0.0/8", "98.192.0.0/10", "24.0.0.0/12", "2601::/20"),
}
_LANGUAGES = {
    "AU": ("en-AU", "Australia/Sydney"),
    "BE": ("fr-BE", "Europe/Brussels"),
    "CA": ("en-CA", "America/Toronto"),
    "DE": ("de-DE", "Europe/Berlin"),
    "ES": ("es-ES", "Europe/Madrid"),
    "FR": ("fr-FR", "Europe/Paris"),
    "GB": ("en-GB", "Europe/London"),
    "IE": ("en-IE", "Europe/Dublin"),
    "IT": ("it-IT", "Europe/Rome"),
    "NL": ("nl-NL", "Europe/Amsterdam"),
    "SE": ("sv-SE", "Europe/Stockholm"),
    "US": ("en-US", "America/New_York"),
}
_BLOCKS: dict[str, tuple[tuple[int, int, int], ...]] = {}
for _country, _texts in _NETWORKS.items():
    _BLOCKS[_country] = tuple(
        (net.version, int(net.network_address), net.max_prefixlen - net.prefixlen)
        for net in (IPv6Network(text) if ":" in text else IPv4Network(text) for text in _texts)
    )


def random_ip(random: Random, country: str) -> str:
    """Draw an address out of a large provider's blocks in a country of `countries()`."""
    version, start, bits = random.choice(_BLOCKS[country])
    number = start | random.getrandbits(bits)
    return str(IPv4Address(number) if version == 4 else IPv6Address(number))


def countries() -> tuple[str, ...]:
    """The countries (ISO 3166-1 alpha-2) that `random_ip` knows."""
    return tuple(_BLOCKS)


_SAFARI = "AppleWebKit/605.1.15 (KHTML, like Gecko)"
_CHROME = "AppleWebKit/537.36 (KHTML, like Gecko)"
_IOS = ("17_6", "18_1", "18_3", "18_5", "18_6", "26_0", "26_1")
_PHONES = (
    "SM-S921B", "SM-S928B", "SM-A546B", "SM-A556E", "SM-A155F", "Pixel 7", "Pixel 8",
    "Pixel 8a", "Pixel 9", "2201117TG", "CPH2581", "XQ-DC54", "moto g54", "NE2213",
)  # fmt: skip


def _iphone(random: Random) -> str:
    version = random.choice(_IOS)
    return (
        f"Mozilla/5.0 (iPhone; CPU iPhone OS {version} like Mac OS X) {_SAFARI} "
        f"Version/{version.replace('_', '.')} Mobile/15E148 Safari/604.1"
    )


def _iphone_app(random: Random) -> str:
    version = random.choice(_IOS)
    base = f"Mozilla/5.0 (iPhone; CPU iPhone OS {version} like Mac OS X) {_SAFARI} Mobile/15E148"
    number = f"{random.randrange(380, 560)}.0.0.{random.randrange(20, 60)}.{random.randrange(99)}"
    if random.random() < 0.5:
        return f"{base} Instagram {number} (iPhone15,3; iOS {version}; en_GB; en; scale=3.00)"
    dotted = version.replace("_", ".")
    return f"{base} [FBAN/FBIOS;FBAV/{number};FBDV/iPhone15,3;FBMD/iPhone;FBSN/iOS;FBSV/{dotted}]"


def _ipad(random: Random) -> str:
    version = random.choice(_IOS)
    return (
        f"Mozilla/5.0 (iPad; CPU OS {version} like Mac OS X) {_SAFARI} "
        f"Version/{version.replace('_', '.')} Mobile/15E148 Safari/604.1"
    )


def _android(random: Random) -> str:
    chrome = random.randrange(126, 143)
    device, build = "10; K", "0.0"
    # Most browsers hide the model since 2023, some still tell it.
    if random.random() < 0.4:
        device = f"{random.randrange(12, 17)}; {random.choice(_PHONES)}"
        build = f"{random.randrange(6000, 7400)}.{random.randrange(200)}"
    return (
        f"Mozilla/5.0 (Linux; Android {device}) {_CHROME} "
        f"Chrome/{chrome}.0.{build} Mobile Safari/537.36"
    )


def _samsung(random: Random) -> str:
    return (
        f"Mozilla/5.0 (Linux; Android 10; K) {_CHROME} SamsungBrowser/{random.randrange(24, 30)}.0 "
        f"Chrome/{random.randrange(117, 137)}.0.0.0 Mobile Safari/537.36"
    )


def _windows(random: Random) -> str:
    chrome = random.randrange(126, 143)
    edge = f" Edg/{chrome}.0.0.0" if random.random() < 0.25 else ""
    return (
        f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) {_CHROME} Chrome/{chrome}.0.0.0 "
        f"Safari/537.36{edge}"
    )


def _mac(random: Random) -> str:
    if random.random() < 0.55:
        version = random.choice(("17.6", "18.1", "18.3", "18.5", "18.6", "26.0", "26.1"))
        return (
            f"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) {_SAFARI} "
            f"Version/{version} Safari/605.1.15"
        )
    return (
        f"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) {_CHROME} "
        f"Chrome/{random.randrange(126, 143)}.0.0.0 Safari/537.36"
    )


def _firefox(random: Random) -> str:
    version = random.randrange(125, 146)
    system = random.choice(
        ("Windows NT 10.0; Win64; x64", "X11; Linux x86_64", "Macintosh; Intel Mac OS X 10.15")
    )
    return f"Mozilla/5.0 ({system}; rv:{version}.0) Gecko/20100101 Firefox/{version}.0"


_DEVICES = (
    (_iphone, 30, "390x844"),
    (_iphone_app, 9, "390x745"),
    (_android, 21, "412x915"),
    (_samsung, 5, "360x780"),
    (_windows, 19, "1536x730"),
    (_mac, 10, "1440x790"),
    (_firefox, 3, "1920x947"),
    (_ipad, 3, "820x1180"),
)
_DEVICE_WEIGHTS = tuple(accumulate(weight for _, weight, _ in _DEVICES))

BOTS: tuple[tuple[str, str], ...] = (
    ("Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)", "66.249.66."),
    ("Mozilla/5.0 (compatible; bingbot/2.0; +http://www.bing.com/bingbot.htm)", "40.77.167."),
    ("Mozilla/5.0 (compatible; AhrefsBot/7.0; +http://ahrefs.com/robot/)", "54.36.148."),
    ("facebookexternalhit/1.1 (+http://www.facebook.com/externalhit_uatext.php)", "173.252.95."),
    (
        f"Mozilla/5.0 {_CHROME[:-1]}; compatible; GPTBot/1.2; +https://openai.com/gptbot)",
        "4.227.36.",
    ),
    (
        f"Mozilla/5.0 {_CHROME[:-1]}; compatible; ChatGPT-User/1.0; +https://openai.com/bot)",
        "23.98.142.",
    ),
    (
        f"Mozilla/5.0 {_CHROME[:-1]}; compatible; ClaudeBot/1.0; +claudebot@anthropic.com)",
        "216.73.216.",
    ),
    (
        f"Mozilla/5.0 {_CHROME[:-1]}; compatible; PerplexityBot/1.0; +https://perplexity.ai/bot)",
        "44.221.181.",
    ),
    (
        f"Mozilla/5.0 (X11; Linux x86_64) {_CHROME} HeadlessChrome/138.0.0.0 Safari/537.36",
        "34.86.35.",
    ),
)
"""User agents of bots, with the first three bytes of an address they come from."""


def random_device(random: Random) -> tuple[str, str]:
    """Draw a person's user agent and the viewport that goes with it."""
    make, _, viewport = _DEVICES[bisect(_DEVICE_WEIGHTS, random.random() * _DEVICE_WEIGHTS[-1])]
    return make(random), viewport


def random_uuid(random: Random) -> str:
    """Draw a version 4 UUID."""
    text = f"{random.getrandbits(128):032x}"
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-a{text[17:20]}-{text[20:]}"


def event_uuid(random: Random, at: float) -> str:
    """Make a version 7 UUID for a moment in epoch seconds."""
    stamp = f"{int(at * 1000):012x}"
    text = f"{random.getrandbits(72):018x}"
    return f"{stamp[:8]}-{stamp[8:]}-7{text[:3]}-a{text[3:6]}-{text[6:]}"


def timestamp(at: float) -> str:
    """Write epoch seconds as `2026-11-19T22:58:03.412Z`."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")[:23] + "Z"


@dataclass(frozen=True, slots=True)
class Visitor:
    """A browser as the pixel sees it; `tail` is what stands the same in each of its lines."""

    anonymous_id: str
    ip: str
    user_agent: str
    head: str = field(repr=False)
    tail: str = field(repr=False)

    @classmethod
    def make(
        cls, ip: str, user_agent: str, viewport: str | None, country: str | None, anonymous_id: str
    ) -> "Visitor":
        language, zone = _LANGUAGES[country] if country else (None, None)
        return cls(
            anonymous_id=anonymous_id,
            ip=ip,
            user_agent=user_agent,
            head=f'"ip": "{ip}", "user_agent": "{user_agent}"',
            tail=(
                f'"viewport": {_text(viewport)}, "language": {_text(language)}, '
                f'"timezone": {_text(zone)}'
            ),
        )


def pixel_line(
    visitor: Visitor,
    event_id: str,
    name: str,
    at: float,
    url: str,
    referrer: str,
    *,
    user_id: str | None = None,
    session_id: str | None = None,
    email: str | None = None,
    consent: bool = True,
    properties: str = "{}",
) -> str:
    """Write one line of the pixel source; `properties` is JSON already, `at` epoch seconds.

    Built as text: a line takes a few microseconds, a tenth of what `json.dumps` takes. Every value
    is made here and needs no escaping.
    """
    return (
        f'{{"event_id": "{event_id}", "event_name": "{name}", "timestamp": "{timestamp(at)}", '
        f'"anonymous_id": "{visitor.anonymous_id}", '
        f'"user_id": {_text(user_id)}, "session_id": {_text(session_id)}, '
        f'"email": {_text(email)}, {visitor.head}, '
        f'"url": "{url}", "referrer": "{referrer}", {visitor.tail}, '
        f'"consent": {{"analytics": {"true" if consent else "false"}}}, '
        f'"properties": {properties}}}'
    )


def _text(value: str | None) -> str:
    return "null" if value is None else f'"{value}"'


@dataclass(frozen=True, slots=True)
class Campaign:
    """An ad campaign: what the pixel sees of it in `utm_campaign` and what it costs a day."""

    source: str
    name: str
    budget: float
    ads: int
    currency: str
    timezone: str
    account: str
    number: str


def _campaigns(workspace: Workspace) -> tuple[Campaign, ...]:
    rows: dict[str, tuple[tuple[str, str, float, int, str], ...]] = {
        "tidal-goods": (
            ("google_ads", "Brand", 38, 2, "GBP"),
            ("google_ads", "Shopping - Mugs", 74, 3, "GBP"),
            ("google_ads", "PMax All Products", 96, 1, "GBP"),
            ("meta_ads", "Autumn Drop", 118, 4, "GBP"),
            ("meta_ads", "Retargeting 30d", 46, 2, "GBP"),
            ("tiktok_ads", "TT Launch", 42, 3, "GBP"),
            ("pinterest_ads", "Pins Home", 18, 2, "USD"),
            ("amazon_ads", "SP - Mugs", 27, 3, "EUR"),
        ),
        "harbour-home": (
            ("google_ads", "Marque", 64, 2, "EUR"),
            ("google_ads", "Shopping Luminaires", 190, 3, "EUR"),
            ("meta_ads", "Maison Collection", 236, 4, "EUR"),
            ("meta_ads", "Reciblage", 78, 2, "EUR"),
            ("pinterest_ads", "Inspiration Salon", 92, 3, "EUR"),
            ("tiktok_ads", "Avant Apres", 610, 2, "SEK"),
        ),
        "wren-studio": (
            ("google_ads", "Brand US", 70, 2, "USD"),
            ("google_ads", "Template Search", 142, 3, "USD"),
            ("meta_ads", "Creators Lookalike", 98, 3, "GBP"),
            ("tiktok_ads", "Studio Tour", 64, 2, "USD"),
        ),
    }
    base = 1_000 * (1 + [w.workspace_id for w in WORKSPACES].index(workspace.workspace_id))
    return tuple(
        Campaign(
            source, name, budget, ads, currency, workspace.timezone, f"{base}", f"{base + 1 + i}"
        )
        for i, (source, name, budget, ads, currency) in enumerate(rows[workspace.workspace_id])
    )


@dataclass(frozen=True, slots=True)
class _Arrival:
    """How a session reached the shop."""

    query: str
    referrer: str
    utm_source: str = ""
    utm_medium: str = ""
    utm_campaign: str = ""


_UTM = {
    "google_ads": ("google", "cpc", "gclid", "https://www.google.com/"),
    "meta_ads": ("facebook", "paid_social", "fbclid", "https://l.facebook.com/"),
    "tiktok_ads": ("tiktok", "paid_social", "ttclid", "https://www.tiktok.com/"),
    "pinterest_ads": ("pinterest", "cpc", "epik", "https://www.pinterest.com/"),
    "amazon_ads": ("amazon", "cpc", "maas", "https://www.amazon.com/"),
}
# Against the sum of the weights below.
_PAID_WEIGHT = 38
_UNPAID: tuple[tuple[float, str, str, str, str], ...] = (
    # weight, utm_source, utm_medium, referrer, extra parameter
    (17, "", "", "", ""),
    (11, "", "", "https://www.google.com/", ""),
    (2.2, "", "", "https://www.bing.com/", ""),
    (1.4, "", "", "https://duckduckgo.com/", ""),
    (0.5, "", "", "https://www.ecosia.org/", ""),
    (3.0, "", "", "https://l.instagram.com/", ""),
    (1.1, "", "", "https://t.co/", ""),
    (1.0, "", "", "https://www.reddit.com/", ""),
    (1.2, "", "", "https://www.pinterest.com/", ""),
    (1.6, "instagram", "social", "https://l.instagram.com/", ""),
    (1.5, "chatgpt.com", "", "https://chatgpt.com/", ""),
    (0.6, "", "", "https://www.perplexity.ai/", ""),
    (0.4, "", "", "https://gemini.google.com/", ""),
    (0.3, "", "", "https://copilot.microsoft.com/", ""),
    (1.5, "", "", "https://kettle-and-crumb.example/reviews/", ""),
    (0.8, "partner-letter", "affiliate", "https://partners.example/", ""),
    (1.1, "criteo", "retargeting", "https://news.example/", ""),
    (0.5, "", "", "https://mail.google.com/", ""),
    (6.5, "klaviyo", "email", "", "_kx"),
    (0.9, "klaviyo", "sms", "", "_kx"),
)


def _token(random: Random, prefix: str, length: int) -> str:
    return f"{prefix}{random.getrandbits(4 * length):0{length}x}"


class _Arrivals:
    """Draws arrivals: paid ones in proportion to what a campaign costs."""

    def __init__(self, random: Random, campaigns: Sequence[Campaign]) -> None:
        self._random = random
        self._paid = [
            (
                campaign,
                *_UTM[campaign.source],
                f"?utm_source={_UTM[campaign.source][0]}&utm_medium={_UTM[campaign.source][1]}"
                f"&utm_campaign={quote(campaign.name)}",
            )
            for campaign in campaigns
        ]
        budget = sum(campaign.budget for campaign in campaigns)
        self._weights = list(
            accumulate(
                [_PAID_WEIGHT * campaign.budget / budget for campaign in campaigns]
                + [weight for weight, *_ in _UNPAID]
            )
        )

    def draw(self, email_campaign: str) -> _Arrival:
        random = self._random
        at = bisect(self._weights, random.random() * self._weights[-1])
        if at < len(self._paid):
            campaign, source, medium, click, referrer, utm = self._paid[at]
            clicked = f"&{click}={_token(random, 'Cj0', 40)}" if random.random() < 0.82 else ""
            return _Arrival(
                f"{utm}{clicked}",
                referrer if random.random() < 0.8 else "",
                source,
                medium,
                campaign.name,
            )
        _, source, medium, referrer, extra = _UNPAID[at - len(self._paid)]
        name = email_campaign if source == "klaviyo" else ""
        parameters = [
            f"{key}={quote(value)}"
            for key, value in (
                ("utm_source", source),
                ("utm_medium", medium),
                ("utm_campaign", name),
            )
            if value
        ]
        if extra:
            parameters.append(f"{extra}={_token(random, '', 22)}")
        query = "?" + "&".join(parameters) if parameters else ""
        return _Arrival(query, referrer, source, medium, name)


_FIRST = (
    "Ada", "Grace", "Alan", "Joan", "Edsger", "Katherine", "Donald", "Barbara", "John", "Radia",
    "Tim", "Margaret", "Dennis", "Frances", "Ken", "Hedy", "Claude", "Annie", "Niklaus", "Mary",
)  # fmt: skip
_LAST = (
    "Sample", "Example", "Placeholder", "Testcase", "Fixture", "Dummy", "Specimen", "Mock",
    "Stub", "Invented", "Madeup", "Fiction", "Nobody", "Pretend", "Imagined", "Demo",
)  # fmt: skip
_PHONES_OF_FICTION = {
    "GBP": "+44 20 7946 0{:03d}",
    "EUR": "+33 1 99 00 {:02d} 00",
    "USD": "+1 202 555 01{:02d}",
}
_PRODUCTS: dict[str, tuple[tuple[str, str, int], ...]] = {
    # sku, title, price in minor units
    "tidal-goods": (
        ("MUG-BLU", "Blue mug", 1400), ("MUG-GRN", "Green mug", 1400), ("TEE-M", "Tee", 2600),
        ("TOWEL-L", "Beach towel", 3800), ("FLASK-05", "Flask", 2950), ("CAP-NVY", "Cap", 1950),
        ("KNIT-M", "Harbour knit", 8900), ("POSTER-A2", "Tide table poster", 1800),
    ),
    "harbour-home": (
        ("LMP-01", "Lampe de chevet", 7900), ("VAS-02", "Vase grès", 4500),
        ("PLD-03", "Plaid laine", 11900), ("COU-04", "Coussin lin", 3900),
        ("TAB-05", "Table basse", 34900), ("BOU-06", "Bougie", 2400), ("MIR-07", "Miroir", 15900),
    ),
    "wren-studio": (
        ("PLAN-M", "Studio monthly", 2900), ("PLAN-Y", "Studio yearly", 29000),
        ("PACK-A", "Template pack", 4900), ("PACK-B", "Brand kit", 8900),
        ("SEAT-1", "Extra seat", 1200),
    ),
}  # fmt: skip
_PATHS = (
    "/",
    "/collections/new",
    "/collections/all",
    "/about",
    "/journal/tides",
    "/search",
    "/faq",
)
# Sessions by local hour, and by weekday from Monday.
_HOURS = (3, 2, 1, 1, 1, 2, 5, 9, 12, 13, 13, 13, 15, 14, 13, 13, 13, 14, 17, 21, 24, 22, 15, 8)
_WEEKDAYS = (1.08, 1.02, 1.0, 0.98, 0.93, 0.92, 1.12)
_SEASON = (0.86, 0.84, 0.90, 0.92, 0.95, 0.96, 0.94, 0.90, 1.00, 1.06, 1.38, 1.42)


@dataclass(frozen=True, slots=True)
class _Customer:
    number: int
    first_name: str
    last_name: str
    email: str
    phone: str
    profile: str


class _Shop:
    """One workspace's 14 months: sessions, orders or payments, spend, e-mail."""

    def __init__(
        self,
        workspace: Workspace,
        out: _Deliveries,
        first: date,
        last: date,
        seed: int,
        scale: float,
    ) -> None:
        self.workspace = workspace
        self.out = out
        self.first = first
        self.last = last
        self.scale = scale
        # Text seeds hash the same on every run, unlike `hash()`.
        self.random = Random(f"{seed}:{workspace.workspace_id}")  # noqa: S311
        self.zone = ZoneInfo(workspace.timezone)
        self.campaigns = _campaigns(workspace)
        self.arrivals = _Arrivals(self.random, self.campaigns)
        self.products = _PRODUCTS[workspace.workspace_id]
        self.pages = [f"/p/{sku.lower()}" for sku, _, _ in self.products]
        self.devices = [random_device(self.random) for _ in range(1500)]
        self.visitors: deque[Visitor] = deque(maxlen=2500)
        self.customers: list[_Customer] = []
        self.orders = 0
        self.emails = 0
        self.country_names = tuple(workspace.countries)
        self.country_weights = list(accumulate(workspace.countries.values()))
        self.hours = list(accumulate(_HOURS))
        self.sends: list[tuple[float, str, str, str | None]] = []

    def run(self) -> None:
        day = self.first
        while day <= self.last:
            midnight = datetime(day.year, day.month, day.day, tzinfo=self.zone).timestamp()
            weight = self._weight(day)
            letter = self._letter(day)
            self._day_of_sessions(day, midnight, weight, letter)
            self._day_of_untracked_orders(day, midnight, weight)
            self._day_of_spend(day, weight)
            self._day_of_email(day, midnight, letter)
            self.out.flush(before=day, source="pixel")
            day += timedelta(days=1)

    # Volume and time

    def _weight(self, day: date) -> float:
        """The day's share of an average one: season, weekday, Black Friday, growth, chance."""
        month = _SEASON[day.month - 1] * (1 - day.day / 31) + _SEASON[day.month % 12] * day.day / 31
        growth = 0.85 + 0.3 * (day - self.first).days / max(1, (self.last - self.first).days)
        friday = day.month == 11 and day.weekday() == 4 and 23 <= day.day <= 29
        burst = 2.6 if friday else 1.0
        noise = math.exp(self.random.gauss(0, 0.09))
        return month * growth * burst * noise * _WEEKDAYS[day.weekday()]

    def _count(self, mean: float) -> int:
        mean *= self.scale
        return max(0, round(self.random.gauss(mean, math.sqrt(mean)))) if mean > 0 else 0

    def _moment(self, midnight: float) -> float:
        random = self.random
        hour = bisect(self.hours, random.random() * self.hours[-1])
        return midnight + 3600 * hour + random.randrange(3_600_000) / 1000

    def _letter(self, day: date) -> str:
        monday = day - timedelta(days=day.weekday())
        return f"Letter {monday.isoformat()}"

    # Pixel

    def _new_visitor(self) -> Visitor:
        random = self.random
        at = bisect(self.country_weights, random.random() * self.country_weights[-1])
        country = self.country_names[at]
        user_agent, viewport = random.choice(self.devices)
        visitor = Visitor.make(
            random_ip(random, country), user_agent, viewport, country, random_uuid(random)
        )
        self.visitors.append(visitor)
        return visitor

    def _day_of_sessions(self, day: date, midnight: float, weight: float, letter: str) -> None:
        random = self.random
        tomorrow = midnight + 86_400
        for _ in range(self._count(self.workspace.sessions * weight)):
            known = self.visitors and random.random() < 0.28
            visitor = random.choice(self.visitors) if known else self._new_visitor()
            self._session(day, self._moment(midnight), tomorrow, visitor, letter)
        for _ in range(self._count(self.workspace.sessions * 0.07)):
            self._bot(day, self._moment(midnight))
        if random.random() < 0.12 * self.scale:
            self._bad_line(day, midnight)

    def _session(
        self, day: date, at: float, tomorrow: float, visitor: Visitor, letter: str
    ) -> None:
        random = self.random
        workspace = self.workspace
        base = f"https://{workspace.host}"
        arrival = self.arrivals.draw(letter)
        # The shop on WooCommerce runs an SDK that sends no session id.
        session = None
        if workspace.revenue_feed != "woocommerce_orders":
            session = f"s-{random.getrandbits(40):010x}"
        consent = random.random() >= 0.035
        path = random.choice(_PATHS if random.random() < 0.55 else self.pages)
        landing = path + arrival.query
        self._event(
            day,
            at,
            visitor,
            "$pageview",
            base + landing,
            arrival.referrer,
            session,
            consent,
            '{"title": "Welcome"}',
        )
        url = base + path
        if random.random() < 0.45:
            return
        for _ in range(1 + int(random.expovariate(0.9))):
            at += 8 + random.expovariate(1 / 45)
            before, url = url, base + random.choice(self.pages)
            self._event(day, at, visitor, "$pageview", url, before, session, consent, "{}")
        if random.random() < 0.24:
            at += 20
            self._event(
                day,
                at,
                visitor,
                "add_to_cart",
                url,
                base + "/",
                session,
                consent,
                f'{{"sku": "{random.choice(self.products)[0]}", "quantity": 1}}',
            )
        # Sessions that buy: about one order in two is seen by the pixel.
        if consent and random.random() < 0.5 * workspace.orders / workspace.sessions / 0.55:
            at += 60 + random.expovariate(1 / 60)
            if at < tomorrow:
                self._tracked_order(day, at, visitor, session, arrival, landing)

    def _event(
        self,
        day: date,
        at: float,
        visitor: Visitor,
        name: str,
        url: str,
        referrer: str,
        session: str | None,
        consent: bool,
        properties: str,
        user_id: str | None = None,
        email: str | None = None,
    ) -> None:
        random = self.random
        chance = random.random()
        if chance < 0.0004:
            # What careless shops do: the loader must redact it.
            url = f"{url.split('?')[0]}?email=ada.sample@example.org"
        line = pixel_line(
            visitor,
            event_uuid(random, at),
            name,
            at,
            url,
            referrer,
            user_id=user_id,
            session_id=session,
            email=email,
            consent=consent,
            properties=properties,
        )
        workspace = self.workspace.workspace_id
        if chance > 0.993 and day + timedelta(days=3) <= self.last:
            self.out.put("pixel", workspace, day, line, late=1 + int(chance * 1e6) % 3)
            return
        self.out.put("pixel", workspace, day, line)
        if 0.986 < chance <= 0.993:
            # Sent twice: at once, or again with the next delivery.
            late = int(chance * 1e6) % 2 if day < self.last else 0
            self.out.put("pixel", workspace, day, line, late=late)

    def _bot(self, day: date, at: float) -> None:
        random = self.random
        user_agent, prefix = random.choice(BOTS)
        bot = Visitor.make(
            f"{prefix}{random.randrange(1, 255)}", user_agent, None, None, random_uuid(random)
        )
        for _ in range(random.choice((1, 1, 2, 4))):
            path = random.choice(self.pages)
            self._event(
                day,
                at,
                bot,
                "$pageview",
                f"https://{self.workspace.host}{path}",
                "",
                None,
                True,
                "{}",
            )
            at += 2

    def _bad_line(self, day: date, midnight: float) -> None:
        """One of the lines a pipeline meets: cut off, no object, a field missing, 1970."""
        random = self.random
        at = self._moment(midnight)
        good = pixel_line(
            self._new_visitor(),
            event_uuid(random, at),
            "$pageview",
            at,
            f"https://{self.workspace.host}/",
            "",
        )
        bad = (
            good[: len(good) // 2],
            f"[{good}]",
            good.replace('"event_id"', '"evt"', 1),
            good.replace(timestamp(at), "1970-01-01T00:00:00.000Z", 1),
            good.replace(f'"{timestamp(at)}"', "true", 1),
        )
        self.out.put("pixel", self.workspace.workspace_id, day, random.choice(bad))

    # Orders and payments

    def _customer(self) -> _Customer:
        random = self.random
        if self.customers and random.random() < 0.36:
            # People who bought lately come back sooner.
            back = int(random.expovariate(1 / 900))
            return self.customers[-1 - back % len(self.customers)]
        number = len(self.customers) + 1
        first, last = random.choice(_FIRST), random.choice(_LAST)
        phone = _PHONES_OF_FICTION[self.workspace.currency].format(number % 100)
        customer = _Customer(
            number,
            first,
            last,
            f"{first}.{last}.{number}@example.org".lower(),
            phone,
            f"01{self.workspace.workspace_id[:4].upper()}{number:020d}"[:26],
        )
        self.customers.append(customer)
        return customer

    def _tracked_order(
        self,
        day: date,
        at: float,
        visitor: Visitor,
        session: str | None,
        arrival: _Arrival,
        landing: str,
    ) -> None:
        random = self.random
        customer = self._customer()
        order_id, value = self._sell(day, at - 3, customer, arrival, landing, visitor)
        email = customer.email.title() if random.random() < 0.1 else customer.email
        self._event(
            day,
            at,
            visitor,
            "purchase",
            f"https://{self.workspace.host}/thank_you",
            "",
            session,
            True,
            f'{{"order_id": "{order_id}", "value": "{_money(value)}", '
            f'"currency": "{self.workspace.currency}"}}',
            f"cust_{customer.number}",
            email if random.random() < 0.7 else None,
        )

    def _day_of_untracked_orders(self, day: date, midnight: float, weight: float) -> None:
        """Orders the pixel never saw: blocked, refused, by telephone."""
        for _ in range(self._count(self.workspace.orders * weight * 0.52)):
            arrival = self.arrivals.draw(self._letter(day))
            at = self._moment(midnight)
            self._sell(day, at, self._customer(), arrival, "/" + arrival.query, None)

    def _sell(
        self,
        day: date,
        at: float,
        customer: _Customer,
        arrival: _Arrival,
        landing: str,
        visitor: Visitor | None,
    ) -> tuple[str, int]:
        """Make an order or a payment with its later versions; its id and total (minor units)."""
        random = self.random
        self.orders += 1
        items = [
            (sku, title, price, 1 + int(random.expovariate(1.4)))
            for sku, title, price in random.sample(self.products, random.choice((1, 1, 1, 2, 2, 3)))
        ]
        feed = self.workspace.revenue_feed
        if feed == "shopify_orders":
            return self._shopify(day, at, customer, arrival, landing, items, visitor)
        if feed == "woocommerce_orders":
            return self._woocommerce(day, at, customer, arrival, items, visitor)
        return self._stripe(day, at, customer, items, visitor)

    def _refund_moment(self, at: float) -> float | None:
        """When a refund comes, if one comes inside the demonstration's time."""
        random = self.random
        if random.random() >= 0.062:
            return None
        later = at + 3600 * random.choice((2, 20, 50, 100, 170, 300, 500)) * (0.5 + random.random())
        return later if self._local_day(later) <= self.last else None

    def _local_day(self, at: float) -> date:
        return datetime.fromtimestamp(at, self.zone).date()

    def _put_versions(self, versions: Iterable[tuple[date, dict[str, Any]]]) -> None:
        """Deliver an order as it stood at each delivery; one version a delivery, the newest."""
        newest: dict[date, dict[str, Any]] = {}
        for day, order in versions:
            newest[self.out.delivery_day(day)] = order
        for delivery, order in newest.items():
            self.out.put_on(
                self.workspace.revenue_feed,
                self.workspace.workspace_id,
                delivery,
                json.dumps(order),
            )

    def _shopify(
        self,
        day: date,
        at: float,
        customer: _Customer,
        arrival: _Arrival,
        landing: str,
        items: list[tuple[str, str, int, int]],
        visitor: Visitor | None,
    ) -> tuple[str, int]:
        random = self.random
        number = 5_000_000_000 + self.orders
        gross = sum(price * quantity for _, _, price, quantity in items)
        discount = gross // 10 if random.random() < 0.16 else 0
        shipping = 0 if gross >= 5000 else 395
        total = gross - discount + shipping
        tax = round(total / 6)
        # Shoppers abroad see their own currency; the shop's money is what counts.
        shown, rate = (
            random.choice((("EUR", 1.15), ("USD", 1.29)))
            if random.random() < 0.08
            else ("GBP", 1.0)
        )

        def amount(pence: int) -> dict[str, Any]:
            return {
                "shop_money": {"amount": _money(pence), "currency_code": "GBP"},
                "presentment_money": {
                    "amount": _money(round(pence * rate)),
                    "currency_code": shown,
                },
            }

        created = _iso(at)
        person = {
            "first_name": customer.first_name,
            "last_name": customer.last_name,
            "phone": customer.phone,
        }
        address = {
            **person,
            "address1": f"{customer.number} Example Street",
            "city": "Exampleton",
            "zip": "ZZ99 9ZZ",
            "country_code": "GB",
        }
        at_counter = visitor is None and random.random() < 0.06
        status = random.choices(("paid", "voided", "pending"), (985, 5, 10))[0]
        order: dict[str, Any] = {
            "id": number,
            "name": f"#{1000 + self.orders}",
            "created_at": created,
            "processed_at": created,
            "updated_at": created,
            "cancelled_at": None,
            "financial_status": status,
            "test": random.random() < 0.002,
            "currency": "GBP",
            "presentment_currency": shown,
            "total_price": _money(total),
            "subtotal_price": _money(gross - discount),
            "total_discounts": _money(discount),
            "total_tax": _money(tax),
            "taxes_included": True,
            "total_shipping_price_set": amount(shipping),
            "total_price_set": amount(total),
            "landing_site": None if at_counter else landing,
            "referring_site": None if at_counter else arrival.referrer,
            "source_name": "pos" if at_counter else "web",
            "email": None if at_counter else customer.email,
            "contact_email": None if at_counter else customer.email,
            "phone": None if at_counter else customer.phone,
            "browser_ip": visitor.ip if visitor else None,
            "client_details": (
                {"browser_ip": visitor.ip, "user_agent": visitor.user_agent} if visitor else None
            ),
            "customer": None
            if at_counter
            else {"id": 7_000_000_000 + customer.number, "email": customer.email, **person},
            "billing_address": None if at_counter else address,
            "shipping_address": None if at_counter else address,
            "note": "leave with the neighbour at number 9" if random.random() < 0.03 else None,
            "note_attributes": [],
            "line_items": [
                {
                    "id": number * 10 + i,
                    "product_id": 8_000_000 + i,
                    "variant_id": 9_000_000 + i,
                    "sku": sku,
                    "title": title,
                    "quantity": quantity,
                    "price": _money(price),
                    "total_discount": "0.00",
                    "price_set": amount(price),
                    "properties": [],
                }
                for i, (sku, title, price, quantity) in enumerate(items)
            ],
            "discount_applications": [
                {
                    "type": "discount_code",
                    "code": "WELCOME10",
                    "value": "10.0",
                    "value_type": "percentage",
                }
            ]
            if discount
            else [],
            "refunds": [],
        }
        versions = [(day, order)]
        later = self._refund_moment(at) if status == "paid" else None
        if later is not None:
            cancelled = random.random() < 0.25
            whole = cancelled or random.random() < 0.45
            back = total if whole else items[0][2] * (gross - discount) // gross
            when = _iso(later)
            versions.append(
                (
                    self._local_day(later),
                    {
                        **order,
                        "updated_at": when,
                        "cancelled_at": when if cancelled else None,
                        "financial_status": "refunded" if whole else "partially_refunded",
                        "refunds": [self._shopify_refund(order, when, back)],
                    },
                )
            )
            self._email_refund(later, customer, str(number), back)
        self._put_versions(versions)
        if not at_counter:
            self._email_order(at, customer, str(number), total)
        return str(number), total

    def _shopify_refund(self, order: dict[str, Any], when: str, pence: int) -> dict[str, Any]:
        random = self.random
        number = order["id"] + 1_000_000_000
        transactions = [
            {
                "id": number * 10 + 1,
                "kind": "refund",
                "status": "success",
                "amount": _money(pence),
                "currency": "GBP",
            }
        ]
        if random.random() < 0.05:
            transactions.insert(0, {**transactions[0], "id": number * 10, "status": "failure"})
        return {
            "id": number,
            "order_id": order["id"],
            "created_at": when,
            "processed_at": when,
            "note": "changed my mind" if random.random() < 0.3 else None,
            "refund_line_items": [],
            "order_adjustments": [],
            "transactions": transactions,
        }

    def _woocommerce(
        self,
        day: date,
        at: float,
        customer: _Customer,
        arrival: _Arrival,
        items: list[tuple[str, str, int, int]],
        visitor: Visitor | None,
    ) -> tuple[str, int]:
        random = self.random
        number = 40_000 + self.orders
        # Prices include 20 % VAT; the API gives amounts without it and the tax beside them.
        lines = []
        gross = taxes = discounts = 0
        share = 10 if random.random() < 0.14 else 0
        for i, (sku, title, price, quantity) in enumerate(items):
            full = round(price * quantity / 1.2)
            full_tax = price * quantity - full
            net = full - full * share // 100
            tax = full_tax - full_tax * share // 100
            gross, taxes, discounts = gross + net, taxes + tax, discounts + full - net
            lines.append(
                {
                    "id": number * 10 + i,
                    "name": title,
                    "product_id": 90 + i,
                    "variation_id": 0,
                    "quantity": quantity,
                    "subtotal": _money(full),
                    "subtotal_tax": _money(full_tax),
                    "total": _money(net),
                    "total_tax": _money(tax),
                    "sku": sku,
                    "price": round(net / quantity / 100, 2),
                }
            )
        shipping = 0 if gross >= 8000 else 575
        shipping_tax = round(shipping * 0.2)
        total = gross + taxes + shipping + shipping_tax
        currency = "GBP" if random.random() < 0.03 else "EUR"
        status = random.choices(
            ("completed", "processing", "on-hold", "cancelled", "failed", "pending"),
            (88, 4, 2, 3, 2, 1),
        )[0]
        stamp = _iso(at)[:19]
        paid = status in ("completed", "processing")
        guest = random.random() < 0.2
        address = {
            "first_name": customer.first_name,
            "last_name": customer.last_name,
            "address_1": f"{customer.number} rue de l'Exemple",
            "city": "Exempleville",
            "state": "",
            "postcode": "00000",
            "country": "FR",
        }
        order: dict[str, Any] = {
            "id": number,
            "number": str(number),
            "status": status,
            "currency": currency,
            "date_created_gmt": stamp,
            "date_modified_gmt": stamp,
            "date_paid_gmt": stamp if paid else None,
            "discount_total": _money(discounts),
            "shipping_total": _money(shipping),
            "cart_tax": _money(taxes),
            "total": _money(total),
            "total_tax": _money(taxes + shipping_tax),
            "prices_include_tax": True,
            "customer_id": 0 if guest else customer.number,
            "customer_ip_address": visitor.ip if visitor else "",
            "customer_user_agent": visitor.user_agent if visitor else "",
            "customer_note": "sonner deux fois" if random.random() < 0.02 else "",
            "billing": {**address, "email": customer.email, "phone": customer.phone},
            "shipping": address,
            "payment_method": "stripe",
            "transaction_id": f"ch_demo{number}" if paid else "",
            "line_items": lines,
            "refunds": [],
            "meta_data": [
                {"key": f"_wc_order_attribution_{key}", "value": value}
                for key, value in (
                    ("utm_source", arrival.utm_source),
                    ("utm_medium", arrival.utm_medium),
                    ("utm_campaign", arrival.utm_campaign),
                    ("referrer", arrival.referrer),
                )
                if value
            ],
        }
        versions = [(day, order)]
        later = self._refund_moment(at) if paid else None
        if later is not None:
            whole = random.random() < 0.6
            back = total if whole else round(total * random.uniform(0.1, 0.6))
            when = _iso(later)[:19]
            refund = {
                "id": number + 500_000,
                "reason": "",
                "total": f"-{_money(back)}",
                "date_created_gmt": when,
            }
            versions.append(
                (
                    self._local_day(later),
                    {
                        **order,
                        "date_modified_gmt": when,
                        "status": "refunded" if whole else status,
                        "refunds": [refund],
                    },
                )
            )
            self._email_refund(later, customer, str(number), back, currency)
        self._put_versions(versions)
        if paid:
            self._email_order(at, customer, str(number), total, currency)
        return str(number), total

    def _stripe(
        self,
        day: date,
        at: float,
        customer: _Customer,
        items: list[tuple[str, str, int, int]],
        visitor: Visitor | None,
    ) -> tuple[str, int]:
        random = self.random
        number = f"ch_3Demo{self.orders:016d}"
        total = sum(price for _, _, price, _ in items)
        succeeded = random.random() >= 0.035
        seen = visitor is not None or random.random() < 0.15
        charge: dict[str, Any] = {
            "id": number,
            "object": "charge",
            "amount": total,
            "amount_refunded": 0,
            "currency": "eur" if random.random() < 0.04 else "usd",
            "created": int(at),
            "customer": f"cus_Demo{customer.number:08d}",
            "status": "succeeded" if succeeded else "failed",
            "paid": succeeded,
            "refunded": False,
            "livemode": random.random() >= 0.004,
            "billing_details": {
                "email": customer.email,
                "name": f"{customer.first_name} {customer.last_name}",
                "phone": customer.phone,
                "address": {"country": "US", "postal_code": "00000"},
            },
            "receipt_email": customer.email,
            "payment_method_details": {
                "type": "card",
                "card": {"brand": "visa", "last4": "4242", "country": "US"},
            },
            "metadata": {"visitor_id": visitor.anonymous_id if visitor else self._past_visitor()}
            if seen
            else {},
            "refunds": {"object": "list", "data": []},
        }
        versions = [(day, charge)]
        later = self._refund_moment(at) if succeeded else None
        if later is not None:
            back = total if random.random() < 0.7 else total // 2
            refund = {
                "id": f"re_3Demo{self.orders:016d}",
                "amount": back,
                "created": int(later),
                "status": "succeeded",
            }
            versions.append(
                (
                    self._local_day(later),
                    {
                        **charge,
                        "amount_refunded": back,
                        "refunded": back == total,
                        "refunds": {"object": "list", "data": [refund]},
                    },
                )
            )
        self._put_versions(versions)
        if succeeded:
            self._email_order(at, customer, number, total)
        return number, total

    def _past_visitor(self) -> str:
        visitor = self.random.choice(self.visitors) if self.visitors else self._new_visitor()
        return visitor.anonymous_id

    # Spend

    def _day_of_spend(self, day: date, weight: float) -> None:
        random = self.random
        for campaign in self.campaigns:
            share = campaign.budget * (0.6 + 0.4 * weight) / campaign.ads
            for ad in range(campaign.ads):
                cost = share * math.exp(random.gauss(0, 0.2)) * (1.35, 1.0, 0.8, 0.7)[ad % 4]
                clicks = max(1, round(cost / random.uniform(0.4, 1.3)))
                impressions = clicks * random.randrange(28, 95)
                bought = round(clicks * random.uniform(0.012, 0.05))
                value = bought * random.uniform(30, 70)
                # Platforms restate: conversions arrive for days after the click.
                newest = {
                    self.out.delivery_day(day, late): part
                    for late, part in ((0, 0.7), (3, 0.92), (7, 1.0))
                    if day + timedelta(days=late) <= self.last
                }
                for delivery, part in newest.items():
                    line = _spend_line(
                        campaign,
                        ad,
                        day,
                        cost * (0.995 + 0.005 * part),
                        impressions,
                        clicks,
                        round(bought * part),
                        value * part,
                    )
                    self.out.put_on(campaign.source, self.workspace.workspace_id, delivery, line)

    # E-mail

    def _email_event(
        self,
        at: float,
        metric: tuple[str, str],
        customer: _Customer,
        properties: dict[str, Any],
        attribution: list[dict[str, Any]] | None = None,
    ) -> str:
        self.emails += 1
        number = f"{self.workspace.workspace_id[:2]}{self.emails:07d}"
        stamp = int(at)
        line = {
            "type": "event",
            "id": number,
            "attributes": {
                "timestamp": stamp,
                "datetime": _iso(stamp),
                "uuid": number,
                "event_properties": properties,
            },
            "relationships": {
                "profile": {"data": {"type": "profile", "id": customer.profile}},
                "metric": {"data": {"type": "metric", "id": metric[0]}, "name": metric[1]},
                "attributions": {"data": attribution or []},
            },
            "profile": {"email": customer.email},
        }
        day = self._local_day(at)
        if day <= self.last:
            self.out.put("klaviyo_events", self.workspace.workspace_id, day, json.dumps(line))
        return number

    def _send(
        self, at: float, customer: _Customer, message: str, name: str, flow: str | None
    ) -> None:
        random = self.random
        properties = {"$message": message, "Campaign Name": name, "$flow": flow}
        self._email_event(at, ("MRece", "Received Email"), customer, properties)
        if random.random() < 0.41:
            at += random.expovariate(1 / 20_000)
            self._email_event(at, ("MOpen", "Opened Email"), customer, properties)
            if random.random() < 0.11:
                at += 30
                url = f"https://{self.workspace.host}/collections/new"
                number = self._email_event(
                    at, ("MClic", "Clicked Email"), customer, {**properties, "URL": url}
                )
                self.sends.append((at, number, message, flow))

    def _day_of_email(self, day: date, midnight: float, letter: str) -> None:
        random = self.random
        if not self.customers:
            return
        code = self.workspace.workspace_id[:2].upper()
        if day.weekday() == 1:
            size = min(len(self.customers), int(8.6 * self.workspace.orders * self.scale) + 1)
            for customer in random.sample(self.customers, size):
                at = midnight + 3600 * 8 + random.random() * 3600
                self._send(at, customer, f"W{code}{day:%y%m%d}", letter, None)
        for flow, message, name, mean in (
            (f"F{code}1", f"V{code}1", "Welcome series", 3.4),
            (f"F{code}2", f"V{code}2", "Abandoned cart", 2.3),
        ):
            for _ in range(self._count(mean)):
                customer = random.choice(self.customers[-400:])
                self._send(self._moment(midnight), customer, message, name, flow)

    def _email_order(
        self, at: float, customer: _Customer, order_id: str, total: int, currency: str = ""
    ) -> None:
        random = self.random
        attribution = None
        if self.sends and random.random() < 0.2:
            clicked, event, message, flow = random.choice(self.sends[-40:])
            if 0 < at - clicked < 5 * 86_400:
                attribution = [
                    {
                        "type": "attribution",
                        "id": f"at{self.emails:010d}",
                        "relationships": {
                            "attributed-event": {"data": {"type": "event", "id": event}},
                            "campaign": {
                                "data": None if flow else {"type": "campaign", "id": message}
                            },
                            "flow": {"data": {"type": "flow", "id": flow} if flow else None},
                        },
                    }
                ]
        self._email_event(
            at + 3,
            ("MPlac", "Placed Order"),
            customer,
            {
                "$value": total / 100,
                "$event_id": order_id,
                "currency": currency or self.workspace.currency,
            },
            attribution,
        )

    def _email_refund(
        self, at: float, customer: _Customer, order_id: str, amount: int, currency: str = ""
    ) -> None:
        self._email_event(
            at,
            ("MRefu", "Refunded Order"),
            customer,
            {
                "$value": amount / 100,
                "$event_id": order_id,
                "currency": currency or self.workspace.currency,
            },
        )


def _money(minor: int) -> str:
    return f"{minor // 100}.{minor % 100:02d}"


def _iso(at: float) -> str:
    return datetime.fromtimestamp(int(at), UTC).isoformat()


def _spend_line(
    campaign: Campaign, ad: int, day: date, cost: float, impressions: int, clicks: int,
    bought: int, value: float,
) -> str:  # fmt: skip
    """Write a spend row as its platform's reporting API does; cost and value in major units."""
    account, number = campaign.account, campaign.number
    currency, name = campaign.currency, campaign.name
    group, ad_id = f"{number}{ad // 2 + 1:02d}", f"{number}9{ad + 1:02d}"
    row: dict[str, Any]
    if campaign.source == "meta_ads":
        row = {
            "account_id": f"1200{account}",
            "account_currency": currency,
            "campaign_id": f"2384{number}",
            "campaign_name": name,
            "adset_id": f"2384{group}",
            "adset_name": f"Set {ad // 2 + 1}",
            "ad_id": f"2384{ad_id}",
            "ad_name": f"{name} {ad + 1}",
            "date_start": day.isoformat(),
            "date_stop": day.isoformat(),
            "impressions": str(impressions),
            "clicks": str(clicks),
            "spend": f"{cost:.2f}",
            "actions": [
                {"action_type": "link_click", "value": str(round(clicks * 0.9))},
                {"action_type": "purchase", "value": str(bought)},
                {"action_type": "omni_purchase", "value": str(bought)},
                {"action_type": "offsite_conversion.fb_pixel_purchase", "value": str(bought)},
            ],
            "action_values": [
                {"action_type": "purchase", "value": f"{value:.2f}"},
                {"action_type": "omni_purchase", "value": f"{value:.2f}"},
            ],
        }
        if not bought:
            row["actions"] = row["actions"][:1]
            row["action_values"] = []
    elif campaign.source == "google_ads":
        row = {
            "customer": {
                "id": f"123456{account}",
                "currencyCode": currency,
                "timeZone": campaign.timezone,
            },
            "campaign": {
                "id": f"777{number}",
                "name": name,
                "advertisingChannelType": "PERFORMANCE_MAX" if "PMax" in name else "SEARCH",
            },
            "adGroup": {"id": f"888{group}", "name": f"Group {ad // 2 + 1}"},
            "adGroupAd": {"ad": {"id": f"999{ad_id}"}},
            "segments": {"date": day.isoformat()},
            "metrics": {
                "costMicros": str(round(cost * 100) * 10_000),
                "impressions": str(impressions),
                "clicks": str(clicks),
                "conversions": bought + 0.5 * (clicks % 2),
                "conversionsValue": round(value, 2),
            },
        }
    elif campaign.source == "tiktok_ads":
        row = {
            "advertiser_id": f"7000000000000{account}",
            "currency": currency,
            "dimensions": {"ad_id": f"17000000{ad_id}", "stat_time_day": f"{day} 00:00:00"},
            "metrics": {
                "campaign_id": f"17000000{number}",
                "campaign_name": name,
                "adgroup_id": f"17000000{group}",
                "adgroup_name": f"Group {ad // 2 + 1}",
                "ad_name": f"{name} {ad + 1}",
                "spend": f"{cost:.2f}",
                "impressions": str(impressions),
                "clicks": str(clicks),
                "conversion": str(bought),
                "total_purchase_value": f"{value:.2f}",
            },
        }
    elif campaign.source == "amazon_ads":
        row = {
            "profileId": f"330000{account}",
            "date": day.isoformat(),
            "campaignId": f"501{number}",
            "campaignName": name,
            "adGroupId": f"601{group}",
            "adGroupName": f"Group {ad // 2 + 1}",
            "adId": f"701{ad_id}",
            "advertisedAsin": f"B0DEMO{ad:04d}",
            "impressions": impressions,
            "clicks": clicks,
            "cost": round(cost, 2),
            "purchases1d": bought // 2,
            "purchases7d": bought * 3 // 4,
            "purchases14d": bought,
            "purchases30d": bought,
            "sales1d": round(value / 2, 2),
            "sales7d": round(value * 3 / 4, 2),
            "sales14d": round(value, 2),
            "sales30d": round(value, 2),
            "campaignBudgetCurrencyCode": currency,
        }
    else:
        row = {
            "AD_ACCOUNT_ID": f"54975588{account}",
            "CAMPAIGN_ID": f"62673556{number}",
            "CAMPAIGN_NAME": name,
            "AD_GROUP_ID": f"26800595{group}",
            "AD_GROUP_NAME": f"Group {ad // 2 + 1}",
            "AD_ID": f"68721840{ad_id}",
            "DATE": day.isoformat(),
            "CURRENCY": currency,
            "SPEND_IN_MICRO_DOLLAR": round(cost * 100) * 10_000,
            "IMPRESSION_1": impressions,
            "CLICKTHROUGH_1": clicks,
            "TOTAL_CHECKOUT": bought,
            "TOTAL_CHECKOUT_VALUE_IN_MICRO_DOLLAR": round(value * 100) * 10_000,
        }
    return json.dumps(row)


def _write_fx(out: _Deliveries, first: date, last: date, seed: int) -> None:
    """Rates as the ECB has them: against the euro, none at weekends."""
    random = Random(f"{seed}:fx")  # noqa: S311
    rates = {"GBP": 0.866, "USD": 1.128, "SEK": 11.04}
    # The first days take a rate from before them.
    for day in _days(first - timedelta(days=7), last):
        for quote_currency in rates:
            rates[quote_currency] *= math.exp(random.gauss(0, 0.0032))
            if day.weekday() < 5:
                line = {
                    "date": day.isoformat(),
                    "base": "EUR",
                    "quote": quote_currency,
                    "rate": round(rates[quote_currency], 4),
                }
                out.put("fx_rates", "_", day, json.dumps(line))


def _days(first: date, last: date) -> Iterator[date]:
    for number in range((last - first).days + 1):
        yield first + timedelta(days=number)
