"""Room of the web portal; nothing is here yet.

The built pages are static files that the HTTP application mounts at `/`; they use the public API
and nothing else. Beside `viewer`, below `api`; it imports no other room.
"""
