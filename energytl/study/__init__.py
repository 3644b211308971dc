"""Pareto searches: what varies, how trials run on one machine or many, and the front that comes out."""
