"""`larpo audit`: whether a finished run is what it says it is, without trusting the machine that made it."""
