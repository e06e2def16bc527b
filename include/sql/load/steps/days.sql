-- What each file adds per day and currency, less what it replaces.
select
    load_id, workspace_id, local_date, currency,
    sum(sign * events) as event_count, sum(sign * ids) as distinct_ids, sum(sign * amount) as money
from (
    select load_id, workspace_id, local_date, currency,
        1 as sign, toInt64(count()) as events, toInt64(uniqExact(id)) as ids, sum(money) as amount
    from ({{ added }})
    group by load_id, workspace_id, local_date, currency
    union all
    select fates.load_id as load_id, workspace_id, local_date, currency,
        -1 as sign, toInt64(count()) as events, toInt64(uniqExact(id)) as ids, sum(money) as amount
    from ({{ replaced }}) as replaced
    inner join load.fates as fates
        on replaced.load_id = fates.previous_load_id
        and replaced.line_number = fates.previous_line_number
    where fates.previous_load_id > 0 and fates.seq > 0 and not fates.is_duplicate
    group by fates.load_id, workspace_id, local_date, currency
)
group by load_id, workspace_id, local_date, currency
