"""ClickHouse's HTTP interface over the in-process chDB engine."""

from chdb_http.config import Config, ConfigError, User, load_config

__all__ = ["Config", "ConfigError", "User", "load_config"]
