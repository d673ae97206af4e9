"""What long jobs and outside users need: whole data sets, command line, checks, submissions."""
