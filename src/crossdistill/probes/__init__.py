"""Probes of frozen networks on labelled recordings: features computed once, small heads, one report of tasks × models.

`probing.probe` runs them, `tasks.TASKS` has the tasks, `frozen.open_frozen` the networks.
"""
