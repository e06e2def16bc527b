-- Versioned rows: a file stores its newest version of a key where that beats all before it.
-- What it beats is replaced. Versions are equal only where a file came again under its name: the
-- later one holds. In raw a key may stand in parts of two versions, where the row itself was past its
-- window when a newer one brought what it carries: both are replaced.
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
),
older_parts as (
    select row_key, load_id, line_number from in_file where seq = 0 and place > 1
),
successors as (
    select
        row_key,
        argMin((load_id, line_number, seq, is_replaced), seq) as first_new
    from winners
    where seq > 0 and row_key in (select row_key from older_parts)
    group by row_key
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
union all
select load_id, line_number, 0, false, true, 0, 0
from older_parts
where row_key in (select row_key from successors)
union all
select
    successors.first_new.1, successors.first_new.2, successors.first_new.3, false,
    successors.first_new.4 = 1, older_parts.load_id, older_parts.line_number
from older_parts
inner join successors on older_parts.row_key = successors.row_key
