"""Export of motion and results to the file formats of other tools. Reading and writing files needs no torch."""
