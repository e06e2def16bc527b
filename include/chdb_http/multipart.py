"""Forms with external data: each file part is a temporary table of one statement."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from email.parser import BytesParser
from email.policy import HTTP
from pathlib import Path

from chdb_http.codec import Decoder, decoded
from chdb_http.engine import Connection
from chdb_http.errors import ClickHouseError
from chdb_http.sql import quote, split, tokens

MAX_FORM = 64 << 20
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


@dataclass
class External:
    """One external table, spooled to a file of the endpoint's own."""

    name: str
    path: Path
    format: str = "TabSeparated"
    structure: str = ""

    @property
    def definition(self) -> str:
        """The statement that makes its table."""
        return f"CREATE TEMPORARY TABLE {self.name} ({self.structure}) ENGINE = Memory"

    def load(self, connection: Connection) -> None:
        """Make it a temporary table of the connection. Raises EngineError."""
        connection.run(self.definition)
        connection.run(
            f"INSERT INTO {self.name} FROM INFILE {quote(str(self.path))} COMPRESSION 'none'"
            f" FORMAT {self.format}"
        )

    def drop(self, connection: Connection) -> None:
        """Remove its table: it was the statement's alone. Raises EngineError."""
        connection.run(f"DROP TEMPORARY TABLE IF EXISTS {self.name}")

    def remove(self) -> None:
        """Delete the spooled file."""
        self.path.unlink(missing_ok=True)


@dataclass
class Form:
    """A form's plain fields and its files."""

    fields: dict[str, str] = field(default_factory=dict)
    externals: list[External] = field(default_factory=list)

    def describe(self, params: MutableMapping[str, str]) -> None:
        """Take formats and structures out of the parameters. Raises ClickHouseError."""
        for external in self.externals:
            name = external.name
            external.format = params.pop(f"{name}_format", external.format)
            structure = params.pop(f"{name}_structure", "")
            types = params.pop(f"{name}_types", "")
            if not structure and types:
                parts = (" ".join(item.text for item in part) for part in split(tokens(types)))
                structure = ", ".join(f"_{number} {kind}" for number, kind in enumerate(parts, 1))
            if not structure:
                raise ClickHouseError(
                    36, "BAD_ARGUMENTS", f"Neither structure nor types given for table {name}"
                )
            if not _NAME.match(name) or not _NAME.match(external.format) or ";" in structure:
                raise ClickHouseError(36, "BAD_ARGUMENTS", f"Bad external table {name}")
            external.structure = structure
        # As on the server, what else is called so is no setting.
        for name in [*params]:
            if name.endswith(("_format", "_structure", "_types")) and name != "default_format":
                del params[name]


async def read_form(
    piece: Callable[[], Awaitable[bytes]], content_type: str, decode: Decoder, folder: Path
) -> Form:
    """Read a multipart form. Raises ClickHouseError for one too large (bytes) or malformed."""
    body = bytearray(b"Content-Type: " + content_type.encode("latin-1") + b"\r\n\r\n")
    while data := await piece():
        for out in decoded(decode, data):
            body += out
            if len(body) > MAX_FORM:
                raise ClickHouseError(
                    161, "QUERY_IS_TOO_LARGE", f"The form is larger than {MAX_FORM} bytes"
                )
    decode.finish()
    message = BytesParser(policy=HTTP).parsebytes(bytes(body))
    if not message.is_multipart():
        raise ClickHouseError(36, "BAD_ARGUMENTS", "The multipart form cannot be read")
    form = Form()
    for part in message.iter_parts():
        name = part.get_param("name", header="content-disposition")
        content = part.get_payload(decode=True) or b""
        if not isinstance(name, str) or not isinstance(content, bytes):
            continue
        if part.get_filename() is None:
            form.fields[name] = content.decode()
            continue
        handle, path = tempfile.mkstemp(prefix="chdb_http-", dir=folder)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        form.externals.append(External(name, Path(path)))
    return form
