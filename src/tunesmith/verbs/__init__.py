"""The verbs: one function each, called as `tunesmith.<verb>` and by the command line."""
