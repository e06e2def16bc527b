"""Write one gzip file of pixel lines to measure a load with.

    python bench/generate.py OUT --lines 1000000 --day 2026-11-19

One workspace's local day: visitors with about five events each, some 2,000 distinct user agents
and an address each, campaign parameters and click ids on a third of the sessions, 1 % of the lines
sent twice, and one in a thousand bad in each of five ways.
"""

import argparse
import gzip
from datetime import date, datetime
from pathlib import Path
from random import Random
from zoneinfo import ZoneInfo

from tidemark.demo import (
    BOTS,
    Visitor,
    countries,
    event_uuid,
    pixel_line,
    random_device,
    random_ip,
    random_uuid,
    timestamp,
)

_USER_AGENTS = 2_000
_HOST = "https://shop.example"
_PATHS = ("/", "/collections/new", *(f"/p/item-{number:03d}" for number in range(300)))
_ARRIVALS = (
    ("?utm_source=facebook&utm_medium=paid_social&utm_campaign=Autumn%20Drop&fbclid=IwAR0", 40,
     "https://l.facebook.com/"),
    ("?utm_source=google&utm_medium=cpc&utm_campaign=Brand&gclid=Cj0KCQ", 50,
     "https://www.google.com/"),
    ("?utm_source=tiktok&utm_medium=cpc&utm_campaign=TT%20Launch&ttclid=E.C.P.", 40,
     "https://www.tiktok.com/"),
    ("?utm_source=klaviyo&utm_medium=email&utm_campaign=November%20letter&_kx=", 30, ""),
    ("", 0, "https://www.google.com/"),
    ("", 0, "https://duckduckgo.com/"),
    ("", 0, "https://chatgpt.com/"),
    ("", 0, "https://www.instagram.com/"),
    ("", 0, "https://blog.example/kettles/"),
    ("", 0, ""),
    ("", 0, ""),
    ("", 0, ""),
)  # fmt: skip
_CHUNK_LINES = 20_000


def generate_pixel(
    path: Path,
    lines: int = 1_000_000,
    seed: int = 1,
    day: date = date(2026, 11, 19),
    timezone: str = "Europe/London",
) -> int:
    """Write exactly `lines` lines of one local day to a gzip file; the same arguments, same bytes.

    Args:
        path: the file to write, named as in the landing layout.
        day: the local day in `timezone` that every good line falls on.

    Returns:
        The size of the lines before compression, in bytes.
    """
    random = Random(seed)  # noqa: S311
    midnight = datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(timezone)).timestamp()
    devices: dict[str, str] = {}
    while len(devices) < _USER_AGENTS:
        user_agent, viewport = random_device(random)
        # A distinct build number is what makes real user agents many.
        devices[f"{user_agent} Build/{random.randrange(900):03d}"] = viewport
    pool = list(devices.items())
    places = countries()
    total = written = 0
    pending: list[str] = []
    with path.open("wb") as raw, gzip.GzipFile("", "wb", 1, raw, mtime=0) as packed:
        while written < lines:
            pending += _visitor(random, midnight, pool, places)
            if len(pending) >= _CHUNK_LINES or written + len(pending) >= lines:
                del pending[lines - written :]
                block = ("\n".join(pending) + "\n").encode()
                packed.write(block)
                total += len(block)
                written += len(pending)
                pending.clear()
    return total


def _visitor(
    random: Random, midnight: float, pool: list[tuple[str, str]], places: tuple[str, ...]
) -> list[str]:
    country = random.choice(places)
    if random.random() < 0.02:
        user_agent, prefix = random.choice(BOTS)
        ip = f"{prefix}{random.randrange(1, 255)}"
        visitor = Visitor.make(ip, user_agent, None, None, random_uuid(random))
    else:
        user_agent, viewport = random.choice(pool)
        ip = random_ip(random, country)
        visitor = Visitor.make(ip, user_agent, viewport, country, random_uuid(random))
    query, token, referrer = random.choice(_ARRIVALS)
    if token:
        query += f"{random.getrandbits(4 * token):0{token}x}"
    session = f"s-{random.getrandbits(40):010x}" if random.random() < 0.6 else None
    at = midnight + random.random() * 82_000
    url = _HOST + random.choice(_PATHS)
    consent = random.random() >= 0.02
    out = []
    for step in range(1 + min(20, int(random.expovariate(0.19)))):
        name, properties, user_id, email = "$pageview", '{"title": "Kettles"}', None, None
        if step > 2:
            chance = random.random()
            if chance < 0.08:
                name, properties = "add_to_cart", '{"sku": "MUG-BLU", "quantity": 1}'
            elif chance < 0.11:
                number = random.getrandbits(30)
                name, user_id = "purchase", f"cust_{number}"
                email = f"buyer.{number}@example.org"
                properties = (
                    f'{{"order_id": "{number}", "value": "{number % 200}.50", "currency": "GBP"}}'
                )
        line = pixel_line(
            visitor,
            event_uuid(random, at),
            name,
            at,
            url + query if step == 0 else url,
            referrer,
            user_id=user_id,
            session_id=session,
            email=email,
            consent=consent,
            properties=properties,
        )
        out.append(line)
        chance = random.random()
        if chance < 0.01:
            out.append(line)
        elif chance < 0.015:
            out[-1] = _broken(line, timestamp(at), int(chance * 1000) - 10)
        referrer, url = url, _HOST + random.choice(_PATHS)
        at += 5 + random.random() * 80
    return out


def _broken(line: str, stamp: str, kind: int) -> str:
    """A bad line: its id alone, no object, without its id, of 1970, or with a truth for a time.

    None is cut off in the middle: the bare insert, which the load is measured against, gives up a
    whole file at an unclosed string.
    """
    if kind == 0:
        return line[: line.index(",")] + "}"
    if kind == 1:
        return f"[{line}]"
    if kind == 2:
        return line.replace('"event_id"', '"evt"', 1)
    if kind == 3:
        return line.replace(stamp, "1970-01-01T00:00:00.000Z", 1)
    return line.replace(f'"{stamp}"', "true", 1)


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--day", type=date.fromisoformat, default=date(2026, 11, 19))
    parser.add_argument("--timezone", default="Europe/London")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    size = generate_pixel(options.out, options.lines, options.seed, options.day, options.timezone)
    print(f"{options.lines} lines, {size} bytes in {options.out}")


if __name__ == "__main__":
    main()
