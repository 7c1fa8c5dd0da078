"""Power cuts: the states in which one can leave the disk, thousands of them built from one recorded run.

`make power-cut STATES=5000 SEED=7`. A preloaded library records every change that the receiver's processes make to
files, in one order. A model of the disk replays them up to a cut, and drops of what was not flushed what a file system
may lose. From each such state the receiver must recover with every event that got 200.

| file | what it does |
|---|---|
| `recorder.c` | the preloaded library |
| `recording.py` | compiles it, and reads what it has recorded |
| `disk.py` | the model of the disk, and what each file system may lose |
| `machine.py` | a receiver on a recorded disk, and its driver, which knows what got 200 |
| `scenarios.py` | what happens to a receiver while it is recorded |
| `oracle.py` | what must be true of a disk after a cut, and once the receiver has recovered from it |
| `trial.py` | one run from recording to verdict |
"""
