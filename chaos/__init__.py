"""Chaos with a conservation oracle: the promise, put to the test while everything around it fails.

`make chaos MINUTES=10 SEED=7 JOURNAL=postgresql`. A driver outside the receiver pushes signed events as DT does and
keeps the only ledger: an event is in it for good once its push was answered 200. The targets of all sinks write down
what they get. Meanwhile faults happen, in an order that is a function of the seed. Afterwards ledger and targets are
compared: nothing missing, nothing foreign, nothing altered, nothing twice in a CSV file.

| file | what lives there |
|---|---|
| `traffic.py` | what is pushed, and when; the ledger; who pushes |
| `system.py` | the receiver under test with its surroundings |
| `sink.py` | the plugin that runs inside the receiver: it writes down, and misbehaves when told to |
| `faults.py` | the faults, and the order in which they come |
| `oracle.py` | what the targets got, compared with the ledger |
| `trial.py` | one run from start to verdict |
| `report.py` | its figures as text |
"""
