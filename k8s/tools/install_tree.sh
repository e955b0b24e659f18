#!/bin/sh
# Lays out what an image of Sluice holds. The Dockerfile and `make image-tree` both run this, from the
# folder with the sources, so that what is measured without an engine is what an engine builds.
#
#   install_tree.sh TARGET ROOT
#
# TARGET is gateway, model-server or training-gpu: the name of a file in requirements/.
# Fills ROOT/opt/sluice: lib (packages, on PYTHONPATH), bin/sluice, sbom.cdx.json.
# Needs binutils, and Python 3.11 as `python3` with the packages of requirements/image.txt.
set -eu

target=$1
requirements=requirements/$1.txt
prefix=$2/opt/sluice

mkdir -p "$prefix/bin"
# Wheels only: nothing is compiled here, so no compiler is needed and every byte is one that was hashed.
python3 -m pip install -qq --disable-pip-version-check --root-user-action=ignore --no-compile \
    --only-binary=:all: --require-hashes --target "$prefix/lib" --requirement "$requirements"
python3 -m pip install -qq --disable-pip-version-check --root-user-action=ignore --no-compile \
    --no-deps --no-build-isolation --no-index --target "$prefix/lib" --upgrade .

# What packages carry for their own developers: tests, headers, type stubs, symbols for debuggers. What
# `auditwheel` has patched (*.libs) is left as it is: strip breaks it.
find "$prefix/lib" -type d \( -name tests -o -name include \) -prune -print0 | xargs -0 -r rm -rf
find "$prefix/lib" -type f \( -name '*.py[ixd]' -o -name '*.pxi' -o -name '*.a' -o -name '*.h' \) -delete
rm -rf "$prefix/lib/bin"
if [ "$target" = gateway ]; then
    find "$prefix/lib" -name '*.so' ! -path '*.libs/*' -exec strip --strip-unneeded {} +
    # Rich colours program text with these; the gateway prints none.
    find "$prefix/lib/pygments/lexers" -type f ! -name '_*' ! -name python.py ! -name special.py -delete
    # Of SciPy the gateway imports scipy.special alone, which imports nothing of these.
    find "$prefix/lib/scipy" -mindepth 1 -maxdepth 1 -type d ! -name special ! -name _lib -print0 | xargs -0 -r rm -rf
    # For compiling against them.
    rm -rf "$prefix/lib/numpy/f2py" "$prefix/lib/numpy/distutils"
    rm -f "$prefix/lib/scipy/special/"cython_special.*
fi

# The root file system is read-only, so the byte code is written now; by hash, so that builds agree.
python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash "$prefix/lib" || true

cat >"$prefix/bin/sluice" <<'PYTHON'
#!/usr/bin/python3
from serving.cli import main

main()
PYTHON
chmod 755 "$prefix/bin/sluice"

python3 -W ignore -m cyclonedx_py requirements "$requirements" --pyproject pyproject.toml --mc-type application \
    --output-reproducible --output-format JSON --output-file "$prefix/sbom.cdx.json"
