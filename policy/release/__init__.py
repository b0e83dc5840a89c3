"""A policy as a folder that one host hands to another: written, read, and tried on its goldens."""
