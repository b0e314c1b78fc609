#!/bin/bash
# Creates a certificate authority, a node certificate and one for root in the directory $1.
set -eu
here="$(cd "$(dirname "$0")" && pwd)"
certs="${1:?usage: setup_cert_file.sh DIRECTORY [HOST...]}"
shift
"$here/kwbase" cert create-ca --certs-dir="$certs" --ca-key="$certs/ca.key"
"$here/kwbase" cert create-node "${@:-127.0.0.1}" --certs-dir="$certs" --ca-key="$certs/ca.key"
"$here/kwbase" cert create-client root --certs-dir="$certs" --ca-key="$certs/ca.key"
