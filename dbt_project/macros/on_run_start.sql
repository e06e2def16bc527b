{#- A full refresh would rebuild the marts from raw rows that the retention ladder has destroyed. -#}
{% macro refuse_full_refresh() %}
    {% if execute and flags.FULL_REFRESH and flags.WHICH != 'seed' %}
        {{ exceptions.raise_compiler_error(
            "--full-refresh is refused: it would erase what raw no longer has."
            ~ " Rebuild a range of days with `tidemark build --from D --to D`."
        ) }}
    {% endif %}
{% endmacro %}


{#-
    A killed run leaves its work tables behind; they hold rows that no purge or erasure would look for, and a
    snapshot would add its rows to them a second time.
-#}
{% macro sweep_orphans() %}
    {% if execute and target.type == 'clickhouse' and flags.WHICH in ('run', 'build', 'snapshot') %}
        {% set schemas = ['staging', 'intermediate', 'marts', 'anonymised', 'retention'] %}
        {% set orphans = run_query(
            "select database, name from system.tables where database in ('" ~ schemas | join("', '") ~ "')"
            ~ " and match(name, '__(replace_days|snapshot_upsert|dbt_tmp|dbt_backup|dbt_new_data.*)$')"
        ) %}
        {% for orphan in orphans %}
            {% do run_query("drop table if exists `" ~ orphan[0] ~ "`.`" ~ orphan[1] ~ "`" ~ on_cluster() ~ " sync") %}
        {% endfor %}
    {% endif %}
{% endmacro %}
