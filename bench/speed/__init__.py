"""How fast it is, against what a user would pick instead."""
