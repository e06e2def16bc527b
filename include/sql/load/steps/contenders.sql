-- The rows of a contested key: those of the batch, in the order of its files (seq from 1), and
-- the one that stands in raw (seq 0).
contenders as (
    select
        stage.row_key as row_key,
        stage.load_id as load_id,
        stage.line_number as line_number,
        files.seq as seq,
        (stage.version_at, stage.delivery_date, files.name_rank, stage.line_number) as version
    from load.stage as stage
    inner join load.files as files on stage.load_id = files.load_id
    where row_key in (select row_key from load.contested)
    union all
    select distinct
        {{ row_key }} as row_key,
        known.load_id as load_id,
        known.line_number as line_number,
        toUInt64(0) as seq,
        ({{ version }}, known.delivery_date, files.name_rank, known.line_number) as version
    from {{ table }} as known
    {{ broadcast }}left join load.files as files on known.load_id = files.load_id
    where {{ bounds }} and row_key {{ broadcast }}in (select row_key from load.contested)
)
