"""Chaos tests: the promise, checked while everything around the receiver fails.

`make chaos MINUTES=10 SEED=7 JOURNAL=postgresql`. A driver outside the receiver pushes signed events as DT does and has
the only ledger: an event is in it for good once it got 200. The destinations of all sinks record what they receive.
Meanwhile faults are injected, in an order that is a function of the seed. Afterwards ledger and destinations are
compared: nothing missing, nothing foreign, nothing altered, nothing twice in a CSV file.

| file | what lives there |
|---|---|
| `traffic.py` | what is pushed, and when; the ledger; the driver that pushes |
| `cloud.py` | pushes that are retried until they get 200, as DT does it |
| `history.py` | sensors of a fake DT cloud, whose history the receiver must not have missed |
| `pair.py` | two PostgreSQL servers, a primary and its synchronous standby |
| `system.py` | the receiver under test with its surroundings |
| `visitor.py` | somebody who has the console open all the time |
| `recorder.py` | a target of the webhook sink that records what it receives |
| `disk.py` | a disk that can be full |
| `clock.py`, `clock.c` | a clock that jumps, of a program in C |
| `power.py` | what the disk of the receiver may have lost in a power cut |
| `broker.py` | a real MQTT broker |
| `listener.py` | a client of it that records what it receives |
| `sink.py` | the plugin that runs inside the receiver: it records events, and misbehaves when instructed |
| `faults.py` | the faults, and the order in which they are injected |
| `oracle.py` | what the destinations received, compared with the ledger |
| `trial.py` | one run from start to verdict |
| `report.py` | its figures as text |
"""
