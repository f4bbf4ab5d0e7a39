"""A stand-in for RoboOrchardLab 0.5, which is not published as a package.

It has the shape and the behaviour of what its public repository holds (commit
241bbc6, August 2026) of hooks, arguments, clipping and trainer: names, fields,
parameters, checks and their order, what is warned of and what is refused. Its
text is not RoboOrchardLab's. What no test or benchmark reaches is left out: of
the trainer, checkpoints, validation, logging, a DeepSpeed engine and max_step.
"""

__version__ = "0.5.0"
