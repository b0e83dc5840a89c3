"""Driving the arm by a policy that runs in another process, and keeping policies."""
