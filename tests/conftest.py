"""Its presence puts the repository on the import path, so that tests import helper modules as `tests.NAME`."""
