"""Times kernels on the machine it runs on: plan of cases -> torch kernels -> journal -> tables for `calibrate`."""
