"""What can be wrong with the data of a source, one file per part of it."""
