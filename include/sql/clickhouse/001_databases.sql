create database if not exists raw comment 'One row per key, personal data already gone; the loader alone writes here';
create database if not exists load comment 'The loader''s work tables; empty between loads';
create database if not exists reference comment 'Workspaces, source lists, user agent classes, IP prefixes';
create database if not exists staging comment 'dbt: one view per raw table, renamed and cast';
create database if not exists intermediate comment 'dbt: facts that outlive raw rows';
create database if not exists marts comment 'dbt: what analysts read';
create database if not exists anonymised comment 'dbt snapshots without identifiers';
create database if not exists retention comment 'Coverage, plan evidence, permits';
create database if not exists recalled comment 'Cold data brought back, expiring';
