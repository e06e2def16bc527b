{#-
    The only SQL that destroys. Each macro takes the name of a permit and nothing else that says what goes: table,
    partition and predicate come from the row that the purge's door wrote, and the rows must still be those that it
    was written for. By hand, `dbt run-operation` finds no permit and refuses.
-#}
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
            ~ ". Rows are destroyed by `tidemark purge` alone, which writes permits behind the gate."
        ) }}
    {% endif %}
    {% set permit = found.rows[0] %}
    {% set relation = retention_relation(table) %}
    {% set standing = run_query(
        "select count(), toString(sum(reinterpretAsUInt128(sipHash128(" ~ permit['hashed_columns'] ~ "))))"
        ~ " from " ~ relation ~ " where " ~ permit['predicate']
    ).rows[0] %}
    {% if standing[0] | string != permit['row_count'] | string or standing[1] != permit['fingerprint'] %}
        {{ exceptions.raise_compiler_error(
            "refused: the rows of " ~ table ~ " are not those that the permit was written for"
        ) }}
    {% endif %}
    {{ return(permit) }}
{% endmacro %}


{#- Takes a whole partition: in time that does not depend on its rows. -#}
{% macro retention_drop_partition(plan_id, step_id, table) %}
    {% set permit = retention_permit(plan_id, step_id, table) %}
    {% set relation = retention_relation(table) %}
    {% set partition = retention_literal(permit['partition_id']) %}
    {% set others = run_query(
        "select count() from " ~ relation ~ " where _partition_id = " ~ partition
        ~ " and not (" ~ permit['predicate'] ~ ")"
    ).rows[0][0] %}
    {% if not permit['is_whole_partition'] or others > 0 %}
        {{ exceptions.raise_compiler_error("refused: not all rows of the partition are to go from " ~ table) }}
    {% endif %}
    {% do run_query("alter table " ~ retention_own(table) ~ " drop partition id " ~ partition) %}
{% endmacro %}


{#- Takes some rows of a partition: by a mutation that rewrites its parts, so that no byte stays behind a mask. -#}
{% macro retention_delete_rows(plan_id, step_id, table) %}
    {% set permit = retention_permit(plan_id, step_id, table) %}
    {% set partition = retention_literal(permit['partition_id']) %}
    {% do run_query(
        "alter table " ~ retention_own(table) ~ " delete"
        ~ (" in partition id " ~ partition if permit['partition_id'] != 'all' else "")
        ~ " where " ~ permit['predicate']
        ~ " settings mutations_sync = 2, allow_nondeterministic_mutations = 1"
    ) %}
    {#- What the mutation replaced stays on the disk until something sweeps: dropping a month without rows does. -#}
    {% do run_query("alter table " ~ retention_own(table) ~ " drop partition id '190001'") %}
{% endmacro %}


{% macro retention_relation(table) %}
    {% set parts = table.split('.') %}
    {{ return("`" ~ parts[0] | replace('`', '') ~ "`.`" ~ parts[1] | replace('`', '') ~ "`") }}
{% endmacro %}


{#- The same as each shard has it, and where to change it. -#}
{% macro retention_own(table) %}
    {{ return(retention_relation(local_name(table)) ~ on_cluster()) }}
{% endmacro %}


{% macro retention_literal(text) %}
    {{ return("'" ~ text | string | replace('\\', '\\\\') | replace("'", "\\'") ~ "'") }}
{% endmacro %}
