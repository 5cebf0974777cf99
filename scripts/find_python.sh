#!/bin/sh
# Run a script with MIXLOOP_PYTHON, or with the first Python from 3.11 on that is found.
new_enough='import sys; sys.exit(sys.version_info < (3, 11))'

if [ -n "$MIXLOOP_PYTHON" ]; then
    if "$MIXLOOP_PYTHON" -c "$new_enough" 2>/dev/null; then
        exec "$MIXLOOP_PYTHON" "$@"
    fi
    echo "mixloop: MIXLOOP_PYTHON=$MIXLOOP_PYTHON is not a Python 3.11 or newer that starts" >&2
    exit 2
fi
for candidate in python3.11 python3.12 python3.13 python3.14 python3 python; do
    # a name on the path may be a launcher without an interpreter behind it: try it
    if command -v "$candidate" >/dev/null 2>&1 && "$candidate" -c "$new_enough" 2>/dev/null; then
        exec "$candidate" "$@"
    fi
done
echo "mixloop: no Python 3.11 or newer found: install one, or name it: make ... MIXLOOP_PYTHON=/path/to/python3" >&2
exit 2
