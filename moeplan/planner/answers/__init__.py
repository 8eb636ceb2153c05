"""About a plan: the chain behind a number, what to try next, surfaces and exhibits for reports."""
