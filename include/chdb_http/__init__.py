"""ClickHouse HTTP interface over the embedded chDB engine."""
