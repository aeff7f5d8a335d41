"""The chapters of the report: functions from a run folder to a section, or to None where there is nothing to tell."""
