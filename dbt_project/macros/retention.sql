{#-
    The only SQL that destroys. It takes the names of permits and nothing else that says what goes: partition and
    predicate come from the rows that the purge's door wrote, and what stands must still be what they were written
    for. By hand, `dbt run-operation` finds no permit and refuses.
-#}
{% macro retention_destroy(plan_id, step_id, tables) %}
    {% for table in tables %}
        {% set permit = retention_permit(plan_id, step_id, table) %}
        {% set own = retention_own(table) %}
        {% set partition = retention_literal(permit['partition_id']) %}
        {% if permit['is_whole_partition'] %}
            {% set others = run_query(
                "select count() from " ~ retention_relation(table) ~ " where _partition_id = " ~ partition
                ~ " and not (" ~ permit['predicate'] ~ ")"
            ).rows[0][0] %}
            {% if others > 0 %}
                {{ exceptions.raise_compiler_error("refused: not all rows of the partition are to go from " ~ table) }}
            {% endif %}
            {#- In time that does not depend on its rows. -#}
            {% do run_query("alter table " ~ own ~ " drop partition id " ~ partition) %}
        {% else %}
            {#- A mutation rewrites the parts, so that no byte stays behind a mask. -#}
            {% do run_query(
                "alter table " ~ own ~ " delete"
                ~ (" in partition id " ~ partition if permit['partition_id'] != 'all' else "")
                ~ " where " ~ permit['predicate']
                ~ " settings mutations_sync = 2, allow_nondeterministic_mutations = 1"
            ) %}
            {#- What it replaced stays on the disk until something sweeps: dropping a month without rows does. -#}
            {% do run_query("alter table " ~ own ~ " drop partition id '190001'") %}
        {% endif %}
    {% endfor %}
{% endmacro %}


{% macro retention_permit(plan_id, step_id, table) %}
    {% set found = run_query(
        "select partition_id, predicate, is_whole_partition, row_count, hashed_columns, fingerprint"
        ~ " from retention.permits where plan_id = " ~ retention_literal(plan_id)
        ~ " and step_id = " ~ retention_literal(step_id)
        ~ " and table_name = " ~ retention_literal(table) ~ " and expires_at > now()"
    ) %}
    {% if found | length != 1 %}
        {{ exceptions.raise_compiler_error(
            "refused: no valid permit for " ~ table ~ ", step " ~ step_id ~ " of plan " ~ plan_id
            ~ ". Rows are destroyed by `tidemark purge` and `tidemark erase` alone, whose door writes permits."
        ) }}
    {% endif %}
    {% set permit = found.rows[0] %}
    {% set standing = run_query(
        "select count(), toString(sum(reinterpretAsUInt128(sipHash128(" ~ permit['hashed_columns'] ~ "))))"
        ~ " from " ~ retention_relation(table) ~ " where " ~ permit['predicate']
    ).rows[0] %}
    {% if standing[0] | string != permit['row_count'] | string or standing[1] != permit['fingerprint'] %}
        {{ exceptions.raise_compiler_error(
            "refused: the rows of " ~ table ~ " are not those that the permit was written for"
        ) }}
    {% endif %}
    {{ return(permit) }}
{% endmacro %}


{% macro retention_relation(table) %}
    {% set parts = table.split('.') %}
    {{ return("`" ~ parts[0] | replace('`', '') ~ "`.`" ~ parts[1] | replace('`', '') ~ "`") }}
{% endmacro %}


{#- The same as each shard has it, and where to change it; a whole table's replicas follow each other. -#}
{% macro retention_own(table) %}
    {% if env_var('TIDEMARK_DBT_CLUSTER', '') and table not in fromjson(env_var('TIDEMARK_DBT_SHARDING', '{}')) %}
        {{ return(retention_relation(table)) }}
    {% endif %}
    {{ return(retention_relation(local_name(table)) ~ on_cluster()) }}
{% endmacro %}


{% macro retention_literal(text) %}
    {{ return("'" ~ text | string | replace('\\', '\\\\') | replace("'", "\\'") ~ "'") }}
{% endmacro %}
