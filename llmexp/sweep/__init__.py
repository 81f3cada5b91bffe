"""Sweeps: a search over learning rate, batch size or anything else, as an Optuna study.

space      what is searched, in Hydra's own grammar
storage    where the study lives: a journal file, SQLite, PostgreSQL, MySQL, Optuna's gRPC proxy
study      ask, tell, take up again; any number of workers, any of which may die
runner     the loop of one worker
process    a fresh process per trial, with GPU slots
trial      the other side: what a training run sees of all this
report     the table, the best command, best.yaml, the picture, the warnings
"""
