"""Figures and their intervals: agreement, calibration, biases, win rates, alarms. Pure, no I/O."""
