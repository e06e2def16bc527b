-- Versioned rows: a file stores its newest version of a key where that beats all before it.
-- What it beats is replaced. Versions are equal only where a file came again under its name: the
-- later one holds.
insert into load.fates
with {{ contenders }},
in_file as (
    select *, row_number() over (partition by row_key, seq order by version desc) as place
    from contenders
),
in_order as (
    select
        *,
        count() over before as known,
        max(version) over before as best_before
    from in_file
    where place = 1
    window before as (partition by row_key order by seq rows between unbounded preceding and 1 preceding)
),
winners as (
    select
        *,
        lagInFrame(load_id) over all_of_key as previous_load_id,
        lagInFrame(line_number) over all_of_key as previous_line_number,
        leadInFrame(toUInt8(1), 1, toUInt8(0)) over all_of_key as is_replaced
    from in_order
    where known = 0 or version >= best_before
    window all_of_key as (partition by row_key order by seq rows between unbounded preceding and unbounded following)
)
select load_id, line_number, seq, true as is_duplicate, false as is_replaced, 0 as previous_load_id, 0 as previous_line_number
from in_file
where place > 1
union all
select load_id, line_number, seq, true, false, 0, 0
from in_order
where known > 0 and version < best_before
union all
select load_id, line_number, seq, false, is_replaced = 1, previous_load_id, previous_line_number
from winners
