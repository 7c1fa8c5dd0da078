"""DT's REST API and what is built on it: `backfill` and `doctor`. Nothing else calls that API."""
