"""What the tests of HookProfiler share."""

import re


class Clock:
    """Goes on only when it is told to."""

    now = 0

    def __call__(self):
        return self.now

    def spend(self, time):
        self.now += time


def passing(args):
    pass


def step(hooks, body=None, channel="on_step"):
    with hooks.begin(channel, None):
        if body is not None:
            body()


def rows(profiler, channel="on_step"):
    """The times of a channel's callbacks, by hook and phase."""
    found = profiler.to_dict()[channel]["hooks"]
    result = {(row["hook"], row["phase"]): row for row in found}
    assert len(result) == len(found)
    return result


def counts(profiler):
    return {what: row["count"] for what, row in rows(profiler).items()}


def sums(profiler):
    return {what: row["sum"] for what, row in rows(profiler).items()}


def cells(table):
    return [re.split(r"  +", line.strip()) for line in table.splitlines()]
