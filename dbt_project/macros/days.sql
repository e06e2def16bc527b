{#-
    Condition: the row lies on one of the days that `scope` lists, or up to `before` days before or `after` days
    after one. A set of pairs, because the engine prunes partitions and the sorted key by it.
-#}
{% macro on_days(scope, before=0, after=0, day='date_day') -%}
    (workspace_id, {{ day }}) in (
        select
            workspace_id,
            {% if before or after -%}
            date_day + arrayJoin(range(-{{ before }}, {{ after }} + 1)) as near_day
            {%- else -%}
            date_day
            {%- endif %}
        from {{ scope }}
    )
{%- endmacro %}
