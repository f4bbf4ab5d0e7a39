"""What a HookProfiler reports, and how it marks callbacks."""
