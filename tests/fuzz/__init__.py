"""What is fuzzed: functions that take any bytes, and raise only if something is wrong with the package."""
