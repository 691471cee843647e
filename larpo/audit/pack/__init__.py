"""A finished run as one file. The same run makes the same bytes.

    pack.json               what is in it, what was left out, what a reader has to bring
    README.md               how to open it
    ro-crate-metadata.json  the same for machines (RO-Crate)
    repository.bundle       the code with its history
    audit/                  the audit's page and JSON, where there is one
    run/                    dvc.yaml, dvc.lock, params.yaml, every output, data from outside, judges' replies
    checksums.sha256        of all of the above, as `sha256sum -c` reads it

Files stand under their own names and not as DVC's objects, so that a pack can be read without DVC.
"""

FORMAT = "larpo-pack 1"
PACK, README, METADATA = "pack.json", "README.md", "ro-crate-metadata.json"
BUNDLE, CHECKSUMS = "repository.bundle", "checksums.sha256"
