"""The console: pages on which operators see and change what the commands show and change.

Mounted under /console of intake's app if there is a password. It reads through `admin` and the registry of sensors,
imports nothing of intake or delivery, and runs every view in a native thread that intake gives it: a page that hangs
delays no push.

A part is a module with views and their templates: add its views to ROUTES and its title to PARTS.
"""

from receiver.console.blueprint import Threads, mount

__all__ = ["Threads", "mount"]
