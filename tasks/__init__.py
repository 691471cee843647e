"""One module per node of dvc.yaml, each a command: `python -m tasks.sample 1`."""

import os
import sys

# Read when the libraries are imported, so set before. Progress bars redraw lines, which logs cannot; nodes print
# lines of their own.
os.environ |= {"TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

# A node's command, no child of it, nor the server of warm nodes.
if sys.orig_argv[1:2] == ["-m"] and sys.orig_argv[2:3] != ["tasks.frame.warm"]:
    from larpo.workspace.processes import end_with_dvc
    from tasks.frame.warm import delegate

    delegate(end_with_dvc() if os.environ.get("DVC_STAGE") else 0)
