"""The commands of `box-bridge`, one module for each."""
