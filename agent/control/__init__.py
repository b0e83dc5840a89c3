"""The control process: the one owner of the serial ports, the cameras, the loop and the journal."""
