"""What intake could reach: its web server around a view that verifies a push and stores nothing."""

from __future__ import annotations

import os
import socket
from typing import Any

from dtintegrations import data_connector, provider
from flask import Flask, request

from receiver import settings
from receiver.intake import web_server
from receiver.lifeline import Lifeline
from receiver.listener import listen


def create_app() -> Flask:
    app = Flask(__name__)

    @app.post("/")
    def push() -> str:
        data_connector.HttpPush.from_provider(
            request=request, provider=provider.FLASK, secret=os.environ["DT_SIGNATURE_SECRET"]
        )
        return "accepted"

    return app


class Ceiling(web_server.WebServer):
    def load(self) -> Any:
        return create_app()


if __name__ == "__main__":
    loaded = settings.load()
    supervisor_end, child_end = socket.socketpair()
    web_server.WebServer = Ceiling  # type: ignore[misc]
    web_server.run(loaded, listen(loaded.receiver.host, loaded.port), Lifeline(child_end))
