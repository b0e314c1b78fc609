#!/bin/bash
# Prints the state of every node, as the operator sees it.
set -eu
here="$(cd "$(dirname "$0")" && pwd)"
exec "$here/kwbase" node status "$@"
