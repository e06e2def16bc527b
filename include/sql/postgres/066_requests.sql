-- A request is of a whole workspace, or of one person: then it has every keyed hash that may stand
-- for them, until it is done. The code is what its sender, the ledger and the logs know of it.
alter table control.requests add column if not exists is_of_subject boolean not null default false;
alter table control.requests add column if not exists subject_hashes text[] not null default '{}';
-- Why it waits or failed; counts of what was done. Neither names anybody.
alter table control.requests add column if not exists reason text;
alter table control.requests add column if not exists outcome jsonb;
