"""Tests of whole programs and of several rooms together."""
