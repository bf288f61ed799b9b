#!/bin/sh
# The program of same.mjs and same.py, through the vendor's command line. All three print the same lines.
set -eu

scratch=$(mktemp -d "${TMPDIR:-/tmp}/hutch-same.XXXXXX")
name=$(sandbox create --non-persistent 2>/dev/null)
trap 'sandbox rm "$name" >/dev/null 2>&1 || true; rm -rf "$scratch"' EXIT

echo "created $(sandbox list --name-prefix "$name" --sort-by name 2>/dev/null | awk -v name="$name" '$1 == name { print $2 }')"
printf '%s\n' 'import sys' 'for n in range(1, 6):' '    print(n, n ** n, flush=True)' "print('done', file=sys.stderr)" 'sys.exit(3)' >"$scratch/powers.py"
sandbox cp "$scratch/powers.py" "$name:powers.py" 2>/dev/null
code=0
sandbox exec "$name" python3 powers.py 2>/dev/null || code=$?
echo "exit code $code"
sandbox exec "$name" wc -c powers.py 2>/dev/null
sandbox stop "$name" >/dev/null 2>&1
sandbox rm "$name" >/dev/null 2>&1
echo "deleted $(sandbox exec "$name" true 2>&1 | sed -n 's/.*status code: \([0-9]*\).*/\1/p')"
