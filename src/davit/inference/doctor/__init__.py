"""Whether davit works on this machine: a file for each group of checks, none of which needs the others."""
