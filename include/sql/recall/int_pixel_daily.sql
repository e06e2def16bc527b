-- intermediate.int_pixel_daily of one workspace's purged days, from the month that was recalled.
-- Ids were hashed again with the month: they tell its sessions apart, and join no other month's visitors. So the
-- sketch of visitors is the one that stands, and a session that crosses the month's end may come out otherwise
-- than it was: what the ledger has decides.
with
    session_days as (
        select
            local_date as date_day,
            anonymous_id,
            if(
                session_id = '',
                concat('b:', toString(intDiv(toUnixTimestamp(event_at), 1800))),
                concat('s:', session_id)
            ) as session_key,
            is_bot,
            minIf(event_at, rules.platform not in ('', 'direct')) as origin_at,
            argMinIf(
                (rules.platform, source.campaign), (event_at, event_id), rules.platform not in ('', 'direct')
            ) as origin,
            countIf(event_name = '$pageview') as pageviews,
            countIf(event_name = 'purchase') as conversions,
            count() as row_count,
            uniqExact(event_id) as distinct_ids
        from recalled.pixel_events as source
        left join reference.source_rules as rules on source.source_rule_id = rules.rule_id
        where
            workspace_id = {workspace:String}
            and toStartOfMonth(local_date) = toStartOfMonth({first:Date})
        group by date_day, anonymous_id, session_key, is_bot
    ),

    sessions as (
        select
            date_day,
            anonymous_id,
            is_bot,
            pageviews,
            conversions,
            row_count,
            distinct_ids,
            date_day = min(date_day) over nearby as is_start,
            argMinIf(origin, origin_at, origin.1 != '') over nearby as session_origin
        from session_days
        window nearby as (
            partition by anonymous_id, session_key, is_bot
            order by date_day
            range between 31 preceding and 31 following
        )
    ),

    counted as (
        select
            date_day,
            if(session_origin.1 = '', 'direct', session_origin.1) as platform,
            session_origin.2 as campaign,
            countIf(is_start and not is_bot) as sessions,
            sumIf(sessions.pageviews, not is_bot) as pageviews,
            sumIf(sessions.pageviews, is_bot) as bot_pageviews,
            sumIf(sessions.conversions, not is_bot) as conversions,
            sum(sessions.row_count) as row_count,
            sum(sessions.distinct_ids) as distinct_ids
        from sessions
        where date_day between {first:Date} and {last:Date}
        group by date_day, platform, campaign
    )

select
    {workspace:String} as workspace_id,
    counted.date_day as date_day,
    counted.platform as platform,
    counted.campaign as campaign,
    counted.sessions as sessions,
    counted.pageviews as pageviews,
    counted.bot_pageviews as bot_pageviews,
    counted.conversions as conversions,
    standing.visitors_state as visitors_state,
    counted.row_count as row_count,
    counted.distinct_ids as distinct_ids
from counted
left join (
    select
        date_day,
        platform,
        campaign,
        visitors_state
    from intermediate.int_pixel_daily
    where
        workspace_id = {workspace:String}
        and date_day between {first:Date} and {last:Date}
) as standing
    on
        counted.date_day = standing.date_day
        and counted.platform = standing.platform
        and counted.campaign = standing.campaign
