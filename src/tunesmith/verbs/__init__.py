"""The verbs: one function each, which composes the rooms. `tunesmith.<verb>` and the command line call
these.
"""
