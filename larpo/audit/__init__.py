"""Whether a finished run can be believed; one folder per question.

    bytes     is every file what dvc.lock says?              lineage   where did every input come from?
    science   do the numbers follow from the tables?         rerun     does a node executed again make the same?
    compare   when are two values, tables, files the same?   diff      why do two runs differ?
    pack      a run as one file, and back

`run` asks the first four of one run; `open` opens it; `results` is what a check found, `card` the seven variables.
"""
