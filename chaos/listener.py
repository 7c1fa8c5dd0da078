"""The destination of the sink `broker`: `python -m chaos.listener PORT FILE`, outside the receiver and the driver.

Its session at the broker outlives its connection, and the broker when that is killed: what is published before it is
back waits for it. So each message that the broker has accepted is recorded.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

CLIENT_ID = "listener"
TOPICS = "dt/+/+/event/+"
RECONNECT_SECONDS: Any = 0.05  # paho takes fractions as well, whatever its types say


def listen(port: int, path: Path) -> None:
    """Append the id and the SHA-256 of each event to a file, as the sink of `sink.py` does."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def record(client: Client, data: object, message: MQTTMessage) -> None:
        event_id = json.loads(message.payload)["event"]["eventId"]
        os.write(file, f"\n{event_id} 1 {hashlib.sha256(message.payload).hexdigest()}".encode())

    client = Client(CallbackAPIVersion.VERSION2, CLIENT_ID, clean_session=False, protocol=MQTTProtocolVersion.MQTTv311)
    client.reconnect_delay_set(RECONNECT_SECONDS, RECONNECT_SECONDS)
    client.on_connect = lambda client, *_: client.subscribe(TOPICS, 1)
    client.on_message = record
    client.connect("127.0.0.1", port)
    client.loop_forever()


if __name__ == "__main__":
    listen(int(sys.argv[1]), Path(sys.argv[2]))
