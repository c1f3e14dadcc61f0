#!/bin/sh
# Copies the Jupyter of this image, with the Python and the libraries that it needs, to where it runs in any
# other image: beside everything that is there, by a loader of its own. The hub runs it once, as root, in a
# container of the default image with an empty volume. https://man7.org/linux/man-pages/man8/ld.so.8.html
set -eu
to="${1:-/opt/notebooks-jupyter}"
python="$(readlink -f "$(command -v python3)")"
minor="$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
prefix="$(python3 -c 'import sys; print(sys.prefix)')"
base="$(python3 -c 'import sys; print(sys.base_prefix)')"
[ "$prefix" != "$base" ] || { echo "JupyterLab has to be in a virtual environment of its own" >&2; exit 2; }
mkdir -p "$to/base/bin" "$to/base/lib" "$to/libraries"
cp -a "$base/lib/python$minor" "$to/base/lib/"
rm -rf "$to/base/lib/python$minor/test"
cp "$python" "$to/base/bin/python"
cp -a "$prefix" "$to/jupyter"
rm -f "$to/jupyter/bin/"python*
cp "$python" "$to/jupyter/bin/python"
printf 'home = %s\ninclude-system-site-packages = false\n' "$to/base/bin" >"$to/jupyter/pyvenv.cfg"
[ ! -d /opt/jupyter-kernels ] || cp -a /opt/jupyter-kernels "$to/kernels"
{
  find "$to" -name '*.so*' -type f
  echo "$to/jupyter/bin/python"
} | xargs ldd 2>/dev/null | sed -n 's/.*=> \(\/[^ ]*\).*/\1/p' | sort -u | while read -r file; do
  case "$file" in "$to"/*) ;; *) cp -L "$file" "$to/libraries/" ;; esac
done
loader="$(ldd "$python" | sed -n 's/^[[:space:]]*\(\/[^ ]*ld-[^ ]*\).*/\1/p')"
cp -L "$loader" "$to/loader"
cat >"$to/python" <<EOF
#!/bin/sh
exec $to/loader --library-path $to/libraries --argv0 $to/jupyter/bin/python $to/jupyter/bin/python "\$@"
EOF
chmod 755 "$to/python"
"$to/python" -c 'import jupyterlab, jupyterhub.singleuser'
: >"$to/.whole"
