-- Keys that stand more than once, in the batch or in raw; by far the most do not.
insert into load.contested
select row_key
from load.stage
group by row_key
having count() > 1
union distinct
select {{ row_key }} as row_key
from {{ table }}
where {{ bounds }} and row_key {{ broadcast }}in (select row_key from load.stage)
