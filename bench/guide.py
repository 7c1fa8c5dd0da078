"""A minimal receiver, as in DT's guide for Heroku: it prints each push and stores nothing."""

from __future__ import annotations

import os

from dtintegrations import data_connector, provider
from flask import Flask, request

app = Flask(__name__)


@app.post("/")
def endpoint() -> str:
    payload = data_connector.HttpPush.from_provider(
        request=request, provider=provider.FLASK, secret=os.environ["DT_SIGNATURE_SECRET"]
    )
    print(payload)
    return "Success"
