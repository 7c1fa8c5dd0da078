"""What intake could reach: its server as it is, around a view that verifies a push and keeps nothing."""

from __future__ import annotations

import os
import socket
from typing import Any

from dtintegrations import data_connector, provider
from flask import Flask, request

from receiver import intake, server, settings
from receiver.lifeline import Lifeline


class Ceiling(intake.Intake):
    def load(self) -> Any:
        app = Flask(__name__)

        @app.post("/")
        def push() -> str:
            data_connector.HttpPush.from_provider(
                request=request, provider=provider.FLASK, secret=os.environ["DT_SIGNATURE_SECRET"]
            )
            return "accepted"

        return app


if __name__ == "__main__":
    asked = settings.load()
    ours, theirs = socket.socketpair()
    intake.Intake = Ceiling  # type: ignore[misc]
    intake.run(asked, server.listen(asked.receiver.host, asked.port), Lifeline(theirs))
