#!/bin/sh
# Copies versions that are new in BUCKET/<model>/<version> to /models, each shown by a rename when it is whole.
# With "once" it ends after one round: the init container, before the model server looks.
set -eu

staging=/models/.staging

copy_new() {
    rclone lsf --dirs-only --max-depth 2 -R "store:$BUCKET" | grep -E '^[^/]+/[0-9]+/$' | while read -r version; do
        target=/models/${version%/}
        [ -e "$target" ] && continue
        rm -rf "$staging"
        rclone copy --checksum "store:$BUCKET/${version%/}" "$staging"
        mkdir -p "$(dirname "$target")"
        mv "$staging" "$target"
        echo "copied $version"
    done
}

copy_new
[ "${1:-}" = once ] && exit 0
while sleep 15; do
    copy_new || echo "a round failed; the next is in 15 s" >&2
done
