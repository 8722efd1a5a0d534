"""Evaluators: functions of the parameters that give named results. One file each."""
