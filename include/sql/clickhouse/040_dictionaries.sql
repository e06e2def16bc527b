-- Look-ups for the load. Their tables are dbt seeds: they read them once somebody asks.
create dictionary if not exists reference.source_hosts_lookup (host String, kind String, name String)
primary key host
source(clickhouse(db 'reference' table 'source_hosts'))
lifetime(0)
layout(hashed());

create dictionary if not exists reference.paid_mediums_lookup (medium String, is_prefix Bool)
primary key medium
source(clickhouse(db 'reference' table 'paid_mediums'))
lifetime(0)
layout(hashed());

create dictionary if not exists reference.currencies_lookup (code String, exponent UInt8)
primary key code
source(clickhouse(db 'reference' table 'currencies'))
lifetime(0)
layout(hashed());
