"""Keyed hashes, and the parts of the privacy rules that run outside SQL."""

import hashlib
import hmac
import re
import secrets
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.padding import PKCS7

from tidemark import clickhouse, reference
from tidemark.config import Settings
from tidemark.errors import UsageError

_BLOCK_BYTES = 64
_VISITOR = "visitor:"
_AROUND_ADDRESS = re.compile(r"[\s<>\"']|^mailto:", re.IGNORECASE)
# Enough for a file of any honest site; a request stays at a few MB.
_USER_AGENTS_AT_ONCE = 20_000

# As tidemark_redact_text of include/sql/clickhouse/030_functions.sql, which judges what is loaded.
_IDENTIFIER = re.compile(
    r"""[^\s"<>(),;:=&?/@\\]+(?:@|%(?:25)*40)[^\s"'<>(),;:=&?/@\\]+\.[^\s"'<>(),;:=&?/@\\.]{2,}"""
    r"|(?:\+|\b00)\(?[0-9][0-9 ().\-]{5,}[0-9]"
    r"|\([0-9]{2,5}\) ?[0-9]{2,4}[ .\-]?[0-9]{3,4}"
    r"|\b[0-9]{2,5}[ .\-][0-9]{3,4}[ .\-][0-9]{3,4}(?:[ .\-][0-9]{2,4})*\b"
    r"|\b0[0-9](?:[ .\-][0-9]{2}){4}\b"
    r"|\b0[0-9]{2,5}[ .\-/][0-9]{5,8}\b"
    r"|\b0[0-9]{9,10}\b"
    r"|\b1?[2-9][0-9]{2}[2-9][0-9]{6}\b"
    r"|\b[0-9]{1,3}(?:\.[0-9]{1,3}){3}\b"
    r"|\b[0-9A-Fa-f]{1,4}(?::[0-9A-Fa-f]{1,4}){7}\b"
    r"|\b[0-9A-Fa-f]{1,4}(?::[0-9A-Fa-f]{1,4}){1,6}::(?:[0-9A-Fa-f]{1,4}(?::[0-9A-Fa-f]{1,4}){0,5}\b)?"
    r"|\b[0-9A-Fa-f]{1,4}::[0-9A-Fa-f]{1,4}(?::[0-9A-Fa-f]{1,4}){2,6}\b",
    re.ASCII,
)
# Of any width, as tidemark_plain.
_DASHES = str.maketrans(dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-"))
# Figures are no telephone numbers, though ten of their digits may look like one.
_FIGURE = re.compile(r"-?[0-9]+\.[0-9]+", re.ASCII)


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).translate(_DASHES)


def holds_identifier(text: str) -> bool:
    """Whether a text holds what looks like an e-mail address, phone number or IP address."""
    plain = _plain(text)
    return not _FIGURE.fullmatch(plain) and _IDENTIFIER.search(plain) is not None


def redacted(text: str) -> str:
    """The text without what looks like such an identifier; as it is where nothing does."""
    return _IDENTIFIER.sub("[redacted]", _plain(text)) if holds_identifier(text) else text


def keyed_hash(key: bytes, message: bytes) -> str:
    """HMAC-SHA-256 (RFC 2104), the first 128 bits as 32 hex digits."""
    return hmac.new(key, message, hashlib.sha256).hexdigest()[:32]


def subject_hashes(key: bytes, subject: str, sources: Iterable[str]) -> set[str]:
    """Every value by which rows may name a person, as the load writes it.

    An e-mail address is one; any other text may be a customer's, user's or e-mail profile's id.
    `visitor:` before it says that it is the pixel's anonymous id, which the load stores as it
    came unless somebody made it of an e-mail address.

    Args:
        key: behind the workspace's pseudonyms.
        sources: whose customers are known by the vendor's id.

    Raises:
        UsageError: it is empty, or no identifier that a source could have sent: several lines, or
            an e-mail address with something around it.
    """

    def pseudonym(kind: str, value: str) -> str:
        return keyed_hash(key, f"{kind}\0{value}".encode())

    # Some editors begin a file with a mark.
    text = subject.removeprefix("\ufeff").strip()
    is_visitor = text.lower().startswith(_VISITOR)
    if is_visitor:
        text = text[len(_VISITOR) :].strip()
    if not text:
        raise UsageError("the subject is empty")
    if not text.isprintable():
        raise UsageError("the subject is one identifier alone, on one line")
    if not is_visitor and "@" in text and _AROUND_ADDRESS.search(text):
        raise UsageError("give the e-mail address alone, without a name, quotes or mailto:")
    if is_visitor:
        return (
            {pseudonym("anonymous_id", text)}
            if _is_email(text)
            else {pseudonym("anonymous_id", text), text}
        )
    if _is_email(text):
        # The load hashes ids made of an e-mail address too, each by its kind and as it came.
        return {pseudonym("email", text.lower())} | {
            pseudonym(kind, form)
            for kind in ("user_id", "anonymous_id")
            for form in (text, text.lower())
        }
    return {
        pseudonym("user_id", text),
        pseudonym("profile", text),
        *(pseudonym("customer", f"{source}\0{text}") for source in sources),
    }


def _is_email(text: str) -> bool:
    return "@" in text or "%40" in text


def hmac_pads(key: bytes) -> dict[str, str]:
    """The two padded keys of HMAC-SHA-256 in hex, as the load SQL takes them (RFC 2104).

    Args:
        key: at most 64 bytes.
    """
    block = key.ljust(_BLOCK_BYTES, b"\0")
    return {
        "inner_key": bytes(byte ^ 0x36 for byte in block).hex(),
        "outer_key": bytes(byte ^ 0x5C for byte in block).hex(),
    }


def siphash_key(key: bytes) -> dict[str, str]:
    """A 128-bit SipHash key in two halves in hex, derived from a key of any length."""
    derived = hmac.new(key, b"user_agent", hashlib.sha256).digest()
    return {"inner_key": derived[:8].hex(), "outer_key": derived[8:16].hex()}


@dataclass(frozen=True, slots=True)
class Seal:
    """Hides texts that lie in ClickHouse from all but this process, with which its key ends.

    The other half is tidemark_sealed of include/sql/clickhouse/030_functions.sql: AES-256-CBC (NIST
    SP 800-38A), padded by PKCS #7, from a vector of zeros: it shows which texts begin alike.
    """

    key: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    def opened(self, sealed: bytes) -> str:
        """The text behind what `tidemark_sealed` made of it with this key."""
        decryptor = Cipher(algorithms.AES256(self.key), modes.CBC(bytes(16))).decryptor()
        unpadder = PKCS7(128).unpadder()
        padded = decryptor.update(sealed) + decryptor.finalize()
        return (unpadder.update(padded) + unpadder.finalize()).decode("utf-8", "surrogateescape")


def classify_user_agents(settings: Settings, seal: Seal) -> None:
    """Class the user agents of `load.user_agents_seen` that `reference.user_agents` lacks."""
    while True:
        unknown = clickhouse.rows(
            settings,
            "select toString(ua_hash) as ua_hash, hex(any(sealed_user_agent)) as sealed"
            " from load.user_agents_seen"
            " where ua_hash not in (select ua_hash from reference.user_agents)"
            f" group by ua_hash limit {_USER_AGENTS_AT_ONCE}",
        )
        if not unknown:
            return
        hash_of = {seal.opened(bytes.fromhex(row["sealed"])): row["ua_hash"] for row in unknown}
        clickhouse.insert_rows(
            settings,
            "reference.user_agents",
            [
                {
                    "ua_hash": hash_of[known.user_agent],
                    "device_type": known.device_type,
                    "browser": known.browser,
                    "os": known.os,
                    "is_bot": known.is_bot,
                    "is_ai_agent": known.is_ai_agent,
                }
                for known in reference.user_agent_classes(hash_of)
            ],
        )
