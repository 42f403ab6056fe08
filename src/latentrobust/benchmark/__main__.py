"""The command line of the benchmark."""

from latentrobust.benchmark import main

main()
