"""Parts of ``benchmarks/fleet_learning.py``: data and trials, the fleet, the cells, the report."""
