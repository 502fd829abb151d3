"""Inside an allocation: decide what to run (`plan`), and run it (`run`)."""
