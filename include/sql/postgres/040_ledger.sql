-- The chain of what was destroyed, decided and written by hand. The triggers keep honest programs
-- from changing it; signatures and the copies of its head outside show what an owner did.
create table if not exists control.ledger (
    entry_id bigint primary key check (entry_id > 0),
    kind text not null check (kind ~ '^[a-z][a-z_]*$'),
    document jsonb not null check (jsonb_typeof(document) = 'object'),
    at timestamptz not null,
    -- Hexadecimal: SHA-256 of the entry before, SHA-256 of this one, Ed25519 over that.
    previous_hash text not null unique check (previous_hash ~ '^[0-9a-f]{64}$'),
    hash text not null unique check (hash ~ '^[0-9a-f]{64}$'),
    signature text not null check (signature ~ '^[0-9a-f]{128}$')
);

create index if not exists ledger_kind on control.ledger (kind, entry_id);

create or replace function control.refuse_ledger_change() returns trigger language plpgsql as $$
begin
    raise exception 'control.ledger is append-only';
end
$$;

create or replace function control.chain_ledger_entry() returns trigger language plpgsql as $$
declare
    head control.ledger;
begin
    select * into head from control.ledger order by entry_id desc limit 1;
    if new.entry_id is distinct from coalesce(head.entry_id, 0) + 1
    or new.previous_hash is distinct from coalesce(head.hash, repeat('0', 64)) then
        raise exception 'entry % does not follow the head of control.ledger', new.entry_id;
    end if;
    return new;
end
$$;

create or replace trigger refuse_ledger_change
before update or delete or truncate on control.ledger
for each statement execute function control.refuse_ledger_change();

create or replace trigger chain_ledger_entry
before insert on control.ledger
for each row execute function control.chain_ledger_entry();

-- Always: also in a session that plays a replica and so skips ordinary triggers.
alter table control.ledger enable always trigger refuse_ledger_change;
alter table control.ledger enable always trigger chain_ledger_entry;

alter table control.keys drop constraint if exists keys_purpose_check;
alter table control.keys add constraint keys_purpose_check
check (purpose in ('pseudonym', 'erasure', 'ledger', 'signature'));

do $$
begin
    if exists (select from pg_catalog.pg_roles where rolname = 'analyst') then
        grant select on control.ledger to analyst;
    end if;
end
$$;
