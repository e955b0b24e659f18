#!/bin/sh
# Installs Debian's prometheus (with promtool) and chromium, which tests/observability drives. As root.
# Debian starts a service as it is installed unless policy-rc.d forbids it; nobody here wants one.
set -eu
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    trap 'rm -f "$policy"' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends prometheus chromium
