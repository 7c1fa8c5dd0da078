"""The layers of the house, from top to bottom: a part imports from its own layer and from those below, never upward."""

from __future__ import annotations

LAYERS = {
    "entry": ("__main__",),
    "commands": ("commands", "testing"),
    "programs": ("server", "demo", "demo_fleet", "scaffold"),
    "components": ("intake", "console", "delivery", "supervisor", "simulator", "admin", "dt"),
    "health": ("health", "keys"),
    "registry": ("sensors",),
    "journal": ("journal",),
    "settings": ("settings", "logs", "signature", "lifeline"),
    "checks": ("validation", "redaction", "environment", "config_file", "variables", "urls", "listener", "http_client"),
    "vocabulary": ("event", "errors", "hookspecs", "folders", "incident", "postgresql_url"),
}
"""Layer → its parts: files and folders of the package."""

WALLS = (
    ("intake", "delivery"),
    ("delivery", "intake"),
    ("console", "delivery"),
    ("console", "intake"),
    ("delivery", "console"),
    ("admin", "console"),
    ("admin", "delivery"),
    ("admin", "intake"),
    ("supervisor", "intake"),
    ("supervisor", "delivery"),
    ("intake", "dt"),
    ("delivery", "dt"),
    ("dt", "intake"),
    ("dt", "delivery"),
)
"""Parts of one layer of which the first must not import the second, not even indirectly."""

LIBRARIES = {
    "sqlalchemy": ("receiver/journal/sql/", "receiver/sensors/", "receiver/testing/postgresql.py"),
    "sqlite3": ("receiver/journal/sql/",),
    "psycopg": ("receiver/journal/sql/", "receiver/postgresql_url.py", "receiver/testing/postgresql.py"),
    "jwt": ("receiver/signature.py", "receiver/dt/session.py", "receiver/testing/cloud.py"),
    "cryptography": ("receiver/testing/issuer.py",),
    "dtintegrations": ("receiver/signature.py",),
    "gunicorn": ("receiver/intake/web_server.py", "receiver/intake/connection.py"),
    "gevent": ("receiver/intake/",),
    "prometheus_client": ("receiver/intake/metrics.py",),
    "click": ("receiver/commands/",),
    "pluggy": ("receiver/hookspecs.py", "receiver/delivery/hooks.py", "receiver/delivery/source_lines.py"),
    "flask": ("receiver/intake/", "receiver/console/"),
    "werkzeug": ("receiver/intake/", "receiver/console/", "receiver/signature.py"),
    "jinja2": ("receiver/console/rendering.py",),
    "markupsafe": ("receiver/console/rendering.py", "receiver/console/charts.py"),
}
"""Third-party library → where it is imported; no exception of it leaves these places."""
