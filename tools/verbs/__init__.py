"""One module per verb of the command line. A module holds options and printing; the work is done below."""
