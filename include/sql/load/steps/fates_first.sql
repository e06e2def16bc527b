-- Events: the first row of a key stays.
insert into load.fates
with {{ contenders }}
select
    load_id,
    line_number,
    seq,
    row_number() over (partition by row_key order by seq, line_number) > 1 as is_duplicate,
    false as is_replaced,
    0 as previous_load_id,
    0 as previous_line_number
from contenders
