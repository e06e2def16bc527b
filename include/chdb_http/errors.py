"""ClickHouse errors: their codes, and the HTTP status the server gives each."""

from __future__ import annotations

import re

_STATUS_NAMES = {
    400: """BAD_ARGUMENTS CANNOT_COMPILE_REGEXP CANNOT_PARSE_TEXT CANNOT_PARSE_ESCAPE_SEQUENCE
        CANNOT_PARSE_QUOTED_STRING CANNOT_PARSE_DATE CANNOT_PARSE_DATETIME CANNOT_PARSE_NUMBER
        CANNOT_PARSE_DOMAIN_VALUE_FROM_STRING CANNOT_PARSE_IPV4 CANNOT_PARSE_IPV6
        CANNOT_PARSE_INPUT_ASSERTION_FAILED CANNOT_PARSE_UUID DUPLICATE_COLUMN ILLEGAL_COLUMN
        UNKNOWN_ELEMENT_IN_AST UNKNOWN_TYPE_OF_AST_NODE THERE_IS_NO_COLUMN TOO_DEEP_AST TOO_BIG_AST
        UNEXPECTED_AST_STRUCTURE SYNTAX_ERROR INCORRECT_DATA TYPE_MISMATCH
        VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE""",
    401: "REQUIRED_PASSWORD",
    403: "UNKNOWN_USER WRONG_PASSWORD AUTHENTICATION_FAILED SET_NON_GRANTED_ROLE ACCESS_DENIED",
    404: """UNKNOWN_TABLE UNKNOWN_FUNCTION UNKNOWN_IDENTIFIER UNKNOWN_TYPE UNKNOWN_STORAGE
        UNKNOWN_DATABASE UNKNOWN_SETTING UNKNOWN_DIRECTION_OF_SORTING UNKNOWN_AGGREGATE_FUNCTION
        UNKNOWN_FORMAT UNKNOWN_DATABASE_ENGINE UNKNOWN_TYPE_OF_QUERY UNKNOWN_ROLE""",
    408: "TIMEOUT_EXCEEDED",
    411: "HTTP_LENGTH_REQUIRED",
    413: "QUERY_IS_TOO_LARGE",
    415: "UNSUPPORTED_MEDIA_TYPE",
    501: "NOT_IMPLEMENTED",
    503: "SOCKET_TIMEOUT CANNOT_OPEN_FILE CANNOT_SCHEDULE_TASK",
}
_STATUS = {name: status for status, names in _STATUS_NAMES.items() for name in names.split()}

_CODE = re.compile(r"\s*Code: (\d+)\. DB::")
_NAME = re.compile(r"\(([A-Z][A-Z0-9_]+)\)\s*(?:\(version [^)]*\))?\s*$")
_NESTED = re.compile(r"\s*\(version [0-9.]+\)(?=\. \([A-Z_0-9]+\)\s*$)")


class ClickHouseError(Exception):
    """An error with ClickHouse's number, as clients of the server know it."""

    def __init__(self, code: int, name: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.name = name
        self.message = message

    @property
    def text(self) -> str:
        """The body of the answer."""
        return f"Code: {self.code}. DB::Exception: {self.message} ({self.name})"

    @property
    def status(self) -> int:
        """The HTTP status the server would answer with."""
        return http_status(self.name)


class EngineError(ClickHouseError):
    """An error the engine raised; its text is already complete."""

    def __init__(self, text: str) -> None:
        text = tidy(text)
        code = _CODE.match(text)
        name = _NAME.search(text)
        super().__init__(
            int(code[1]) if code else 1002, name[1] if name else "UNKNOWN_EXCEPTION", text
        )

    @property
    def text(self) -> str:
        return self.message


def tidy(text: str) -> str:
    """Drop what running in process adds to a message: repeated codes, paths, words before it."""
    text = text.strip().removeprefix("Failed to create connection: ")
    while match := re.match(r"Code: (\d+)\. DB::\w+: (Code: \1\. DB::)", text):
        text = _NESTED.sub("", text[match.start(2) :])
        text = re.sub(r"\(([A-Z_0-9]+)\)\. \(\1\)$", r"(\1)", text)
    text = re.sub(r":? ?\(in file/uri (?:/proc/self/fd/\d+|\S*/chdb_http-\w+)\)", "", text)
    return re.sub(r"/proc/self/fd/\d+", "the request's body", text)


def http_status(name: str) -> int:
    """The HTTP status of an exception's name, as the server answers."""
    return _STATUS.get(name, 500)
