"""How fast the receiver is, compared with the best that it could reach: `make bench BENCH="intake growth" SIZE=0.1`.

| file | what lives there |
|---|---|
| `intake.py`, `latency.py`, `stalls.py`, `idle.py`, `verify.py` | receiving: each prints its tables |
| `drain.py`, `growth.py`, `postgresql.py`, `sensors.py`, `backfill.py`, `console.py` | everything else |
| `servers.py` | the servers that are compared, and the webhook target |
| `ceiling.py`, `guide.py`, `node_red.py`, `slow.py`, `target.py` | what runs in these servers |
| `load.py`, `push.lua` | pushes signed in advance, and wrk, which sends them |
| `backlog.py` | events inserted into a journal without a push |
| `tables.py` | tables as text |
"""
