"""This project and its peers side by side in one run, and the simulated shop's truth."""
