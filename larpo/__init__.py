"""What LARPO computes and checks, room by room (README, Folders); only `workspace` and `audit` know the project's
folder."""
