"""A stand-in for the unreleased RoboOrchardLab 0.5.

It was written from the facts in issue 4 and is not RoboOrchardLab's code.
"""

__version__ = "0.5.0.standin"
