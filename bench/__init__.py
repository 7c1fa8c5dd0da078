"""How fast the receiver is, measured beside what it could reach at best: `make bench BENCH="intake growth" SIZE=0.1`.

| file | what lives there |
|---|---|
| `intake.py`, `drain.py`, `growth.py`, `latency.py` | the four parts: each measures, and prints its tables |
| `servers.py` | the servers that are compared, and the webhook target beside them |
| `ceiling.py`, `guide.py`, `slow.py`, `target.py` | what runs inside those servers |
| `load.py`, `push.lua` | pushes signed beforehand, and wrk, which sends them |
| `backlog.py` | events put into a journal without a push |
| `tables.py` | tables as text |
"""
