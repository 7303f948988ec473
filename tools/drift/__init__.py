"""Drift statistics, drift decisions and performance detectors."""
