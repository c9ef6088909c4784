"""Read and write files of uqcalc: complete, with a checksum, without pickle."""
