#!/bin/sh
# The first program of every server's container, whatever its image is: finds a Python for `serve.py`, which
# does the rest. Only what every /bin/sh has. Exit code 127: there is nothing that could start a Jupyter.
here=/opt/notebooks
ours=/opt/notebooks-jupyter

works() { # Python 3.8 or newer, and it starts
  "$1" -I -S -c 'import sys; sys.exit(sys.version_info < (3, 8))' >/dev/null 2>&1
}

for name in "$NOTEBOOKS_PYTHON" python3 python /opt/conda/bin/python3 /opt/venv/bin/python3 /srv/conda/envs/notebook/bin/python3 \
  /usr/local/bin/python3 /usr/bin/python3; do
  [ -n "$name" ] || continue
  found="$(command -v "$name" 2>/dev/null)" || continue
  if works "$found"; then
    NOTEBOOKS_IMAGE_PYTHON="$found"
    export NOTEBOOKS_IMAGE_PYTHON
    break
  fi
done

python="$NOTEBOOKS_IMAGE_PYTHON"
[ -n "$python" ] || [ ! -x "$ours/python" ] || python="$ours/python"
if [ -n "$NOTEBOOKS_SECRETS_DIR" ] && [ -n "$python" ]; then
  "$python" -I -S "$here/secret_files.py" || exit $?
fi
if [ -n "$NOTEBOOKS_IMAGE_PYTHON" ]; then
  exec "$NOTEBOOKS_IMAGE_PYTHON" -I "$here/serve.py"
fi
if [ -x "$ours/python" ]; then
  exec "$ours/python" -I "$here/serve.py"
fi
echo '{"notebooks": "serve", "way": "none", "message": "This image has no Python 3.8 or newer, so no Jupyter can be started in it."}'
exit 127
