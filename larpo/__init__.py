"""What LARPO computes and checks, room by room (README, Folders). Of the project's folder only `workspace` and `audit`
know."""
