"""One toy of each kind that the house can be extended by. Each is one file here and one row in a table."""
