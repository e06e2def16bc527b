-- Each version of the policy file is kept, whatever version of its format it is.
alter table control.policy drop constraint if exists policy_pkey;

alter table control.holds drop column if exists subject_hash;
alter table control.holds add column if not exists subject_hashes text[] not null default '{}';
