"""The library of the AGIQA study: everything that the stages call."""
