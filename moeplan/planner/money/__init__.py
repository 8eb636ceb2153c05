"""Dollars and energy of a plan: bill, budget, alternatives, lifetime, advice."""
