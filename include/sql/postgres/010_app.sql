-- The operational store: what the product itself keeps about its tenants and their people.
create table if not exists app.workspaces (
    workspace_id text primary key check (workspace_id ~ '^[a-z0-9][a-z0-9_-]{0,62}$'),
    timezone text not null check (timezone <> ''),
    currency char(3) not null check (currency ~ '^[A-Z]{3}$'),
    plan text not null check (
        plan in ('starter', 'growth', 'pro', 'scale', 'enterprise', 'platform')
    ),
    revenue_source text not null default 'orders' check (revenue_source in ('orders', 'payments')),
    created_at timestamptz not null default now(),
    cancelled_at timestamptz,
    deleted_at timestamptz
);

-- Days and money already loaded were computed with them: a change would rewrite history.
create or replace function app.keep_workspace_facts() returns trigger language plpgsql as $$
begin
    if new.timezone is distinct from old.timezone or new.currency is distinct from old.currency then
        raise exception 'the timezone and currency of a workspace never change';
    end if;
    return new;
end
$$;

create or replace trigger keep_workspace_facts
before update on app.workspaces
for each row execute function app.keep_workspace_facts();

create table if not exists app.user_accounts (
    user_id bigint generated always as identity primary key,
    email text not null,
    name text,
    password_hash text,
    password_salt text,
    created_at timestamptz not null,
    deleted_at timestamptz
);

create table if not exists app.workspace_members (
    workspace_id text not null references app.workspaces (workspace_id),
    user_id bigint not null references app.user_accounts (user_id),
    role text not null check (role in ('owner', 'admin', 'member', 'viewer')),
    created_at timestamptz not null,
    deleted_at timestamptz,
    primary key (workspace_id, user_id)
);

create table if not exists app.workspace_invites (
    invite_id bigint generated always as identity primary key,
    workspace_id text not null references app.workspaces (workspace_id),
    email text not null,
    role text not null check (role in ('owner', 'admin', 'member', 'viewer')),
    token_hash text not null,
    created_at timestamptz not null,
    accepted_at timestamptz,
    deleted_at timestamptz
);

create table if not exists app.api_keys (
    api_key_id bigint generated always as identity primary key,
    workspace_id text not null references app.workspaces (workspace_id),
    label text not null,
    key_hash text not null unique,
    last4 text not null,
    created_at timestamptz not null,
    last_used_at timestamptz,
    deleted_at timestamptz
);

create table if not exists app.chat_sessions (
    session_id bigint generated always as identity primary key,
    workspace_id text not null references app.workspaces (workspace_id),
    user_id bigint references app.user_accounts (user_id),
    title text,
    created_at timestamptz not null,
    last_message_at timestamptz not null
);

create table if not exists app.chat_messages (
    message_id bigint generated always as identity primary key,
    session_id bigint not null references app.chat_sessions (session_id),
    author text not null check (author in ('user', 'assistant', 'system')),
    body text not null,
    created_at timestamptz not null
);

create table if not exists app.ad_platform_tokens (
    token_id bigint generated always as identity primary key,
    workspace_id text not null references app.workspaces (workspace_id),
    platform text not null check (
        platform in ('meta', 'google', 'tiktok', 'amazon', 'pinterest', 'klaviyo', 'shopify')
    ),
    account_id text not null,
    wrapped_token bytea,
    created_at timestamptz not null,
    disconnected_at timestamptz,
    unique (workspace_id, platform, account_id)
);

-- Billing outlives its workspace by law, so nothing here refers to one.
create table if not exists app.billing_mirror (
    billing_id bigint generated always as identity primary key,
    workspace_id text not null,
    customer_id text not null,
    brand text,
    last4 text,
    currency char(3) not null,
    total numeric(38, 6) not null,
    period_start date not null,
    period_end date not null,
    created_at timestamptz not null,
    cancelled_at timestamptz
);

create table if not exists app.request_logs (
    request_id bigint generated always as identity primary key,
    workspace_id text,
    user_id bigint,
    ip inet,
    method text not null,
    path text not null,
    status integer not null,
    audit jsonb,
    created_at timestamptz not null
);

create index if not exists chat_sessions_workspace
on app.chat_sessions (workspace_id, last_message_at);
create index if not exists chat_messages_session on app.chat_messages (session_id, created_at);
create index if not exists request_logs_created_at on app.request_logs (created_at);
create index if not exists billing_mirror_workspace on app.billing_mirror (workspace_id);
