"""`tailbound reproduce`: the paper's experiments run again, and the ones that it leaves out."""
