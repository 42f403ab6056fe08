"""Sweeps as folders of jobs that any number of workers drain: the list of jobs, workers, and who starts them."""
