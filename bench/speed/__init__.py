"""How fast an IndRNN is, beside what a user would pick instead."""
