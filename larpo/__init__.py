"""What LARPO computes and checks, room by room (README, Folders); of the project's folder only `workspace` and `audit` know."""
