"""Episodes that somebody else recorded: LeRobotDatasets of version 2.1 and 3."""
