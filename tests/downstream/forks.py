"""Runs `python -m robo_orchard_fasthooks ARGS` once for each line of input.

RoboOrchardLab, which takes seconds to import, is imported once, and each line
gets a fork. As the interpreter does for `python -m`, it runs the module from
the top level, so that what leaves it meets there what it would meet.
"""

import gc
import json
import os
import runpy
import signal
import sys

import robo_orchard_lab.pipeline  # noqa: F401

import robo_orchard_fasthooks.lab  # noqa: F401

gc.freeze()  # Looked through by each fork as it ends, it would take a second.

# Not iterated over: that would read ahead.
while line := sys.stdin.readline():
    case = json.loads(line)
    pid = os.fork()
    if not pid:
        break
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(status, flush=True)
else:
    sys.exit()

signal.alarm(60)
for number, path in enumerate(case["streams"]):
    os.dup2(os.open(path, os.O_RDWR), number)
sys.stdin = open(0)
os.chdir(case["cwd"])
sys.path[0] = os.getcwd()
sys.argv = ["-m", *case["args"]]
runpy._run_module_as_main("robo_orchard_fasthooks")
