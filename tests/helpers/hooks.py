"""Hooks that several tests use."""

from robo_orchard_core.utils.hook import HookContext


class Logging(HookContext):
    """A hook that logs its callbacks, as a subclass of HookContext."""

    def __init__(self, log, name):
        super().__init__(name)
        self.log = log

    def before(self, arg):
        self.log.append(f"before {self.name}")

    def after(self, arg):
        self.log.append(f"after {self.name}")
