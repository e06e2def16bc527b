{#-
    An amount in another currency, rounded half away from zero to that currency's minor unit (its exponent).

    Exact in Decimal256: the product keeps every digit of both. An inverse or crossed rate is cut at its last
    digit, which would turn an exact half into a hair less than a half; rounding to 24 places first undoes that.
-#}
{% macro convert_money(amount, rate, exponent) -%}
    toDecimal128(round(round(toDecimal256({{ amount }}, 6) * {{ rate }}, 24), {{ exponent }}), 4)
{%- endmacro %}


{#-
    The rate to convert with, from a left join on int_fx_rates. A row that needs a rate which does not exist
    fails the build, and the engine's message names the day and the pair: the text below is no decimal.
-#}
{% macro fx_rate(rate, date_day, from_currency, to_currency) -%}
    cast(
        multiIf(
            {{ from_currency }} = {{ to_currency }}, '1',
            {{ rate }} = 0, concat(
                'no exchange rate on ', toString({{ date_day }}), ' or the 7 days before from ',
                {{ from_currency }}, ' to ', {{ to_currency }}
            ),
            toString({{ rate }})
        ) as Decimal(76, 38)
    )
{%- endmacro %}


{#- A Decimal ratio of two numbers, NULL over nothing. -#}
{% macro ratio(numerator, denominator) -%}
    cast(
        round(toDecimal256({{ numerator }}, 18) / nullIf(toDecimal256({{ denominator }}, 4), 0), 6)
        as Nullable(Decimal(18, 6))
    )
{%- endmacro %}
