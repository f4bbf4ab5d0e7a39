"""What `install` replaces in RoboOrchardLab, and how."""
