"""The parts of ``experiments.faults``, one experiment a file."""
