"""Room of the audit trail; nothing is here yet.

Who did what to which case, and when: `record(session, principal, action, subject)` writes one row
in the unit of work of the action itself, so that no action is kept without its record. Rows are
added and never changed. Above `accounts` and `database`, below every room whose actions it records.
"""
