"""Node-RED as people use it for webhooks: it checks the HMAC of a push, appends a line to a CSV file, and responds.

It flushes nothing to the disk and does not look for repeated events. Needs `node-red` of npm, version 4.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

CHECK = """
const [head, claims, signature] = (msg.req.headers["x-dt-signature"] || "..").split(".");
const hmac = crypto.createHmac("sha256", env.get("DT_SIGNATURE_SECRET")).update(head + "." + claims);
if (hmac.digest("base64url") !== signature) {
    msg.statusCode = 400;
    msg.payload = "wrong secret";
    return [null, msg];
}
const event = msg.payload.event;
msg.line = [event.eventId, event.timestamp, event.targetName, event.eventType, JSON.stringify(event.data)]
    .map((value) => '"' + String(value).replaceAll('"', '""') + '"').join(",");
msg.payload = msg.line;
return [msg, null];
"""


def flow(archive: Path) -> list[dict[str, object]]:
    nodes: list[dict[str, object]] = [
        {"id": "in", "type": "http in", "url": "/", "method": "post", "wires": [["check"]]},
        {
            "id": "check",
            "type": "function",
            "func": CHECK,
            "outputs": 2,
            "libs": [{"var": "crypto", "module": "crypto"}],
            "wires": [["append"], ["respond"]],
        },
        {
            "id": "append",
            "type": "file",
            "filename": str(archive),
            "filenameType": "str",
            "appendNewline": True,
            "overwriteFile": "false",
            "wires": [["respond"]],
        },
        {"id": "respond", "type": "http response", "wires": []},
    ]
    return [{"id": "flow", "type": "tab", "label": "flow"}, *({"z": "flow", "x": 0, "y": 0, **node} for node in nodes)]


def main() -> None:
    folder = Path(os.environ["RECEIVER_CONFIG"]).parent
    (folder / "flows.json").write_text(json.dumps(flow(folder / "events.csv")))
    settings = "module.exports = {flowFile: 'flows.json', httpAdminRoot: false, functionExternalModules: true}"
    (folder / "settings.js").write_text(settings)
    command = ["node-red", "--userDir", str(folder), "--settings", str(folder / "settings.js")]
    os.execvp(command[0], [*command, "--port", os.environ["PORT"]])


def is_installed() -> bool:
    return shutil.which("node-red") is not None


if __name__ == "__main__":
    main()
