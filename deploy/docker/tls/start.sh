#!/bin/sh
# Writes where the proxy is into nginx's configuration, and becomes nginx.
set -eu
for file in fullchain.pem privkey.pem; do
  [ -r "/tls/$file" ] || { printf 'The file %s is missing in NOTEBOOKS_TLS_DIR, or root may not read it.\n' "$file" >&2; exit 1; }
done
sed "s|@PROXY@|$NOTEBOOKS_PROXY|" /opt/tls/nginx.conf >/tmp/nginx.conf
exec nginx -c /tmp/nginx.conf
