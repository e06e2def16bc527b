"""A new source of a class that is there: a policy entry and an SQL file, no Python."""

import shutil
from dataclasses import replace
from pathlib import Path

from homes import Warehouse
from landings import tenant
from tidemark.config import Settings

# Snapshots of an invented ad platform; the shared part of the load brings everything else.
SQL = """
with parsed as (
    select
        line,
        load_id,
        line_number,
        JSONExtract(
            line,
            'Tuple(account Nullable(String), day Nullable(String), ad Nullable(String),
            cost Nullable(String))'
        ) as r
    from {{ lines }}
),

fields as (
    select
        *,
        tidemark_text(r.account) as account_id,
        tidemark_time(r.day) as happened_at,
        tidemark_fine_amount(tidemark_text(r.cost)) as spend_or_null
    from parsed
)

select
    line,
    load_id,
    line_number,
    happened_at,
    'snap' as platform,
    account_id,
    toDate(ifNull(happened_at, toDateTime64(0, 6, 'UTC'))) as report_date,
    '' as campaign_id,
    '' as campaign,
    '' as adset_id,
    '' as adset_name,
    tidemark_text(r.ad) as ad_id,
    '' as ad_name,
    'GBP' as currency,
    ifNull(spend_or_null, 0) as spend,
    0 as impressions,
    0 as clicks,
    0 as conversions,
    0 as conversion_value,
    multiIf(
        account_id = '', tidemark_unreadable(line, 'account'),
        happened_at is null, 'bad_value:day',
        spend_or_null is null, 'bad_value:cost',
        ''
    ) as reason
from fields
"""


def test_a_source_is_a_policy_entry_and_an_sql_file(warehouse: Warehouse, tmp_path: Path) -> None:
    # The policy and the SQL lie in a copy of the repository's folders; the stores are the same.
    root = tmp_path / "repository"
    own = warehouse.settings
    for folder in ("include", "dbt_project"):
        shutil.copytree(own.root / folder, root / folder)
    settings: Settings = replace(own, root=root)
    policy = root / "include" / "policy.yml"
    text = policy.read_text(encoding="utf-8")
    policy.write_text(
        text.replace("\nclasses:\n", "\n  snap_ads: {class: ad_spend}\n\nclasses:\n", 1).replace(
            "\n\n  snap_ads", "\n  snap_ads", 1
        ),
        encoding="utf-8",
    )
    (root / "include" / "sql" / "load" / "snap_ads.sql").write_text(SQL, encoding="utf-8")
    shop = tenant(Warehouse(settings, warehouse.env), tmp_path / "landing")
    counts = shop.load_lines(
        "snap_ads",
        [
            {"account": 1, "day": "2026-11-19", "ad": "a", "cost": "1.25"},
            {"account": 1, "day": "2026-11-19", "ad": "a", "cost": "1.50"},
            {"account": 1, "day": "2026-11-19", "ad": "b", "cost": "much"},
            {"day": "2026-11-19"},
        ],
    )
    assert (counts.stored, counts.duplicate, counts.quarantined) == (1, 1, 2)
    (row,) = shop.table("raw.ad_spend")
    assert (row["source"], row["platform"], row["spend"]) == ("snap_ads", "snap", "1.5")
    assert shop.quarantine() == {3: "bad_value:cost", 4: "missing_field:account"}
    shop.assert_ties_out()
