"""How a HookProfiler marks callbacks, and what it keeps and reports."""
