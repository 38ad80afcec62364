#!/bin/sh
# A certificate authority and a certificate for the services of compose.tls.yaml: sh docker/certificates.sh
# The folder is for its owner alone; in it the key may be read, since services of other users get that file.
set -eu
folder=${1:-$(dirname "$0")/tls}
mkdir -p "$folder"
chmod 700 "$folder"
cd "$folder"
openssl req -x509 -newkey rsa:3072 -nodes -days 3650 -subj "/CN=jora authority" -keyout ca.key -out ca.pem \
  -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign,cRLSign"
openssl req -x509 -newkey rsa:3072 -nodes -days 825 -subj "/CN=jora" -keyout server.key -out server.pem \
  -CA ca.pem -CAkey ca.key -addext "basicConstraints=critical,CA:FALSE" \
  -addext "subjectAltName=DNS:api-server,DNS:redis,DNS:postgres,DNS:mlflow,DNS:localhost,IP:127.0.0.1"
chmod 644 server.key
