"""Sweeps: a search over learning rate, batch size or anything else, as an Optuna study.

search     from its settings to its report: what the Hydra plugin in plugins/ calls
space      what is searched, in Hydra's own grammar
compose    the config of a trial, to check it and to compare it; program: its command line
methods    samplers and pruners
storage    where the study lives: a journal file, SQLite, PostgreSQL, MySQL, Optuna's gRPC proxy
study      ask, tell, take up again; any number of workers, any of which may die; locks: who lives
runner     the loop of one worker
launch     how trials are run: process, a fresh process each with GPU slots, or a launcher of Hydra
trial      the other side: what a training run sees of all this; live: the same within a sweep
outcome    what a trial came to, and what a winner is worth; confirm: was it the seed?
report     the table, the best command, best.yaml, the picture
"""
