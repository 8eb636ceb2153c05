"""Its presence puts this folder on the import path: helpers shared by tests of several folders live beside it."""
