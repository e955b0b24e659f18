#!/bin/sh
# Copies versions that are new in BUCKET/<model>/<version> to /models, each shown by a rename when it is whole.
# In the bucket a version counts as whole once its saved_model.pb is there: upload that file last.
# With "once" it ends after one round: the init container, before the model server looks.
set -eu

staging=/models/.staging
there=/tmp/there

# Joined by hand: in a function whose end is asked for (`||`) `set -e` does not hold, and the rename would follow
# a copy that broke off.
copy() {
    rm -rf "$staging" &&
        rclone copy --checksum "store:$BUCKET/$1" "$staging" &&
        mkdir -p "$(dirname "/models/$1")" &&
        mv "$staging" "/models/$1" &&
        echo "copied $1"
}

# One version that cannot be copied keeps no other back.
copy_new() {
    rclone lsf --files-only --max-depth 3 -R "store:$BUCKET" >"$there" || return
    failed=0
    for version in $(sed -nE 's|^([^/ ]+/[0-9]+)/saved_model\.pb$|\1|p' "$there"); do
        [ -e "/models/$version" ] || copy "$version" || failed=1
    done
    return "$failed"
}

if [ "${1:-}" = once ]; then
    copy_new
    exit
fi
# The shell is its container's first process, which a signal without a handler does not end.
trap 'exit 0' TERM
while true; do
    copy_new || echo "a round failed; the next is in 15 s" >&2
    sleep 15 &
    wait $!
done
