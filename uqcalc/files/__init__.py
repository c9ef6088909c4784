"""Files that uqcalc writes and reads: whole, checked, without pickle."""
