-- Of an export: what its files are, and the first day on which they are due to go. They lie in a
-- folder of the request's code, half written until the request is done.
alter table control.requests add column if not exists file_format text;
alter table control.requests add column if not exists expires_on date;
alter table control.requests add column if not exists deleted_at timestamptz;
