"""The journal in SQL, on SQLite and PostgreSQL alike."""
