#!/bin/bash
# The package's life on a real Debian 12: `cargo xtask vm --package` runs this in a machine whose interfaces are lan, inet
# and wan. Each line "ok: ..." or "FAILED: ..." is a test.

export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive PAGER=cat
cd /root || exit 1

failed=0
# check NAME COMMAND...: a test that is passed if the command succeeds.
check() {
    local name=$1 output
    shift
    if output=$("$@" 2>&1); then
        echo "ok: $name"
    else
        echo "FAILED: $name"
        echo "$output" | tail -25
        journalctl --unit breakout --unit breakout-datapath --no-pager --lines 15
        failed=$((failed + 1))
    fi
}

finish() {
    echo "the machine is done"
    poweroff
    exit
}

network() {
    sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0
    local number=1 pair near far
    for pair in lan:client wan:office inet:internet; do
        near=${pair%:*} far=${pair#*:}
        ip netns add "$far"
        ip link add "$near" type veth peer name eth0 netns "$far"
        ip addr add "10.$number.0.1/24" dev "$near"
        ip link set "$near" up
        ip -n "$far" addr add "10.$number.0.2/24" dev eth0
        ip -n "$far" link set eth0 up
        ip -n "$far" link set lo up
        number=$((number + 1))
    done
    ip route add default via 10.2.0.2
    ip route add default via 10.3.0.2 dev inet metric 500
    ip -n client route add default via 10.1.0.1
    ip -n office route add 10.1.0.0/24 via 10.2.0.1
    # What leaves by inet must have its address.
    for far in "office 10.1.0.2" "internet 10.3.0.1"; do
        ip netns exec "${far% *}" nft -f - <<END
table inet count {
    counter mail { }
    counter other { }
    chain in {
        type filter hook prerouting priority -300
        ip saddr ${far#* } ip daddr 52.98.1.1 udp dport 443 counter name mail drop
        ip daddr 198.51.100.1 udp dport 9 counter name other drop
    }
}
END
    done
}

# received WHERE WHAT: datagrams that have arrived.
received() {
    ip netns exec "$1" nft list counter inet count "$2" | sed -n 's/.*packets \([0-9]*\).*/\1/p'
}

# Sends to Exchange and to somebody else until /run/traffic is gone, and writes how many.
generate() {
    exec ip netns exec client bash -c '
        exec 3<>/dev/udp/52.98.1.1/443 4<>/dev/udp/198.51.100.1/9
        n=0
        # An emulated machine may be slow: there are enough in any case.
        while { [ -e /run/traffic ] || [ $n -le 300 ]; } && [ $n -lt 2000000 ]; do
            echo x >&3; echo x >&4; n=$((n + 1))
        done
        echo $n >/run/sent'
}

# under_traffic COMMAND...: runs it while datagrams flow; none may be lost, and none may go a wrong way.
under_traffic() {
    local mail other sent left
    mail=$(received internet mail) other=$(received office other) left=$(received office mail)
    touch /run/traffic
    generate &
    sleep 1
    "$@"
    local code=$?
    sleep 1
    rm /run/traffic
    wait $!
    sleep 0.5
    sent=$(cat /run/sent)
    echo "sent $sent; of Exchange's $(($(received internet mail) - mail)) left by inet and $(($(received office mail) - left)) by" \
        "wan, of the others $(($(received office other) - other)) by wan"
    [ $code -eq 0 ] && [ "$sent" -gt 300 ] && [ $(($(received internet mail) - mail)) -eq "$sent" ] &&
        [ $(($(received office other) - other)) -eq "$sent" ] && [ "$(received office mail)" -eq "$left" ]
}

# An egress gets its first traffic when a probe was answered, and after a time where none was before.
is_up() {
    local i
    for i in $(seq 60); do
        breakout status --json | tr -d ' \n' | grep -q '"v4":{[^{]*"standing":{"state":"up"' && return
        sleep 0.5
    done
    return 1
}

steers() {
    is_up && under_traffic true
}

# A link that fails is left, and taken again when it is back.
fails_over() {
    ip -n internet link set eth0 down
    local before i
    for i in $(seq 20); do
        before=$(received office mail)
        ip netns exec client bash -c 'for i in 1 2 3; do echo x >/dev/udp/52.98.1.1/443; done'
        sleep 0.5
        [ "$(received office mail)" -ge $((before + 3)) ] && break
    done
    [ "$i" -lt 20 ] || return 1
    ip -n internet link set eth0 up
    for i in $(seq 60); do
        breakout status --check && return 0
        sleep 1
    done
    return 1
}

# What the tests need beside the manual's configuration: nobody here answers to the probes of Microsoft's service.
other_probes() {
    sed -i -e 's/^# probes = .*/probes = ["icmp:10.3.0.2"]/' /etc/breakout/breakout.toml
    grep -q '^probes' /etc/breakout/breakout.toml || sed -i '/^masquerade/a probes = ["icmp:10.3.0.2"]' /etc/breakout/breakout.toml
}

kernel_state() {
    ip rule show
    ip -6 rule show
    ip route show table all proto 76
    nft list ruleset
    tc qdisc show dev lan
    tc filter show dev lan ingress
    ip -details link show lan | grep -o 'prog/xdp id [0-9]*'
    find /sys/fs/bpf -mindepth 2
}

# What is in the kernel is what was there before the package was.
kernel_is_clean() {
    local i
    for i in 1 2 3 4 5 6 7 8 9 10; do
        [ "$(kernel_state)" = "$before" ] && return 0
        sleep 1
    done
    diff <(echo "$before") <(kernel_state)
    return 1
}

files() {
    find / -xdev -iname '*breakout*' -not -path '/proc/*' -not -path '/root/*' -not -path '/var/log/*' \
        -not -path '/var/lib/apt/*' -not -path '/var/cache/man/*' -not -path '/var/lib/dpkg/*-old' | sort
    getent passwd breakout
    getent group breakout
    ls /sys/fs/bpf
}

files_are_as_before() {
    local now
    now=$(files)
    [ "$now" = "$files_before" ] && return 0
    echo "$now"
    return 1
}

# block PAGE LANGUAGE NUMBER: a block of a page of the manual.
block() {
    awk -v start="\`\`\`$2" -v wanted="$3" '
        { line = $0; sub(/^ +/, "", line) }
        line == "```" && on { on = 0 }
        on { print line }
        line == start { on = ++count == wanted }
    ' "$1"
}

# run_block PAGE LANGUAGE NUMBER: types it, so to speak.
run_block() {
    local text
    text=$(block "$@")
    [ -n "$text" ] && bash -e -x -c "$text" </dev/null
}

branch_office() {
    systemctl stop breakout
    run_block docs/branch-office.md sh 1 || return 1
    block docs/branch-office.md toml 1 >/etc/breakout/breakout.toml
    run_block docs/branch-office.md sh 2 || return 1
    other_probes
    rm /etc/sysctl.d/50-breakout.conf
    systemctl reload breakout && run_block docs/branch-office.md sh 3
}

is_unprivileged() {
    local pid
    pid=$(systemctl show --property MainPID --value breakout)
    grep -q "^Uid:.$(id -u breakout)" "/proc/$pid/status" && grep '^CapEff:.*000000c000003000$' "/proc/$pid/status"
}

exposure() {
    local line
    line=$(systemd-analyze security breakout.service | tail -1)
    echo "$line" | tee /dev/console
    [ "$(echo "$line" | sed -n 's/.*: \([0-9]*\)\.\([0-9]\).*/\1\2/p')" -le 20 ]
}

# In the service's own sandbox, what it was not given is refused: by the capabilities, by the file system, by the filter of system
# calls.
sandbox() {
    local unit=/run/systemd/system/sandboxed.service
    sed -e '/^\(Type\|ExecStartPre\|ExecReload\|Restart\|RestartSec\|WatchdogSec\|RuntimeDirectory\)=/d' -e '/^\[Install\]/,$d' \
        -e 's|^ExecStart=.*|Type=oneshot\nExecStart=/bin/bash /run/tries|' /lib/systemd/system/breakout.service >$unit
    cat >/run/tries <<'END'
granted() { "$@" || { echo "REFUSED: $*"; exit 1; }; }
refused() { ! "$@" 2>/dev/null || { echo "NOT REFUSED: $*"; exit 1; }; }
granted touch /var/lib/breakout/tried
granted rm /var/lib/breakout/tried
granted ip link show lan
granted ip rule add pref 31999 lookup main
granted ip rule del pref 31999
refused touch /etc/tried
refused touch /usr/tried
refused cat /etc/shadow
refused mount -t tmpfs tmpfs /mnt
refused unshare --net true
refused chroot / true
refused renice -n 5 -p $$
refused kill -0 1
refused date --set 2020-01-01
refused setpriv --reuid 0 true
refused ls /sys/fs/bpf/breakout/..
echo "what is not granted is refused"
END
    systemctl daemon-reload
    systemctl start sandboxed
    local code=$?
    journalctl --unit sandboxed --no-pager --lines 20 --output cat
    rm $unit /run/tries
    systemctl daemon-reload
    return $code
}

reload_of_nonsense_fails() {
    cp /etc/breakout/breakout.toml /root/saved.toml
    echo nonsense >>/etc/breakout/breakout.toml
    systemctl reload breakout
    local code=$?
    cp /root/saved.toml /etc/breakout/breakout.toml
    [ $code -ne 0 ] && systemctl is-active breakout
}

reload_takes_effect() {
    sed -i 's/^#shadow = false/shadow = true/' /etc/breakout/breakout.toml
    systemctl reload breakout && breakout status | grep SHADOW || return 1
    sed -i 's/^shadow = true/#shadow = false/' /etc/breakout/breakout.toml
    systemctl reload breakout && ! breakout status | grep SHADOW
}

wait_for_pid_other_than() {
    local i
    for i in $(seq 60); do
        sleep 1
        [ "$(systemctl show --property MainPID --value breakout)" != "$1" ] && systemctl is-active --quiet breakout &&
            breakout status >/dev/null && return 0
    done
    return 1
}

killed() {
    local pid
    pid=$(systemctl show --property MainPID --value breakout)
    kill -KILL "$pid"
    wait_for_pid_other_than "$pid"
}

hung() {
    mkdir -p /run/systemd/system/breakout.service.d
    printf '[Service]\nWatchdogSec=5\n' >/run/systemd/system/breakout.service.d/test.conf
    systemctl daemon-reload && systemctl restart breakout || return 1
    local pid
    pid=$(systemctl show --property MainPID --value breakout)
    kill -STOP "$pid"
    wait_for_pid_other_than "$pid"
    local code=$?
    rm -r /run/systemd/system/breakout.service.d
    systemctl daemon-reload
    return $code
}

upgrade() {
    apt-get install --yes ./next/breakout_*.deb && systemctl is-active breakout &&
        [ "$(dpkg-query --show --showformat '${Version}' breakout)" != "$version" ]
}

downgrade() {
    apt-get install --yes --allow-downgrades ./breakout_*.deb && systemctl is-active breakout &&
        [ "$(dpkg-query --show --showformat '${Version}' breakout)" = "$version" ]
}

completes() {
    source /usr/share/bash-completion/bash_completion
    _completion_loader breakout
    COMP_WORDS=(breakout sta) COMP_CWORD=1 COMP_LINE="breakout sta" COMP_POINT=12
    _breakout breakout sta breakout
    echo "${COMPREPLY[@]}" | grep -w status
}

# A page's configuration passes the check.
passes_check() {
    block "$@" >example.toml
    [ -s example.toml ] && breakout check --config example.toml
}

# The archive has what it should, and nothing that it should not.
support_archive() {
    breakout sysdump --output case.tar.gz &&
        [ "$(stat --format %a case.tar.gz)" = 600 ] &&
        tar --extract --gzip --to-stdout --file case.tar.gz | grep -q '"generation"' &&
        ! tar --extract --gzip --to-stdout --file case.tar.gz | grep '10\.1\.0\.2[^0-9]'
}

# The service goes and nothing stays, although nobody could tell what it was told.
purge_with_broken_configuration() {
    echo nonsense >>/etc/breakout/breakout.toml
    run_block docs/install.md sh 3
}

# Everything from the archive instead of the package.
by_archive() {
    run_block docs/install.md sh 2 || return 1
    sed -i 's/^#masquerade = false/masquerade = true/' /etc/breakout/breakout.toml
    other_probes
    systemctl enable --now breakout
}

echo 'APT::Get::Assume-Yes "true";' >/etc/apt/apt.conf.d/yes
network
before=$(kernel_state)
files_before=$(files)

check "docs/install.md brings it up from nothing" run_block docs/install.md sh 1
other_probes
check "it takes other probes" systemctl reload breakout
version=$(dpkg-query --show --showformat '${Version}' breakout)
check "the example passes the check" breakout check
# Nothing of the rest can be told without it.
[ $failed -eq 0 ] || finish
check "it steers" steers
check "README.md looks at it" run_block README.md sh 5
check "README.md makes a capture and tells of it" run_block README.md sh 6
check "README.md's configuration passes the check" passes_check README.md toml 1
check "docs/branch-office.md's second configuration passes the check" passes_check docs/branch-office.md toml 2
check "docs/configuration.md asks the socket" run_block docs/configuration.md sh 1
check "it has its own user and few capabilities" is_unprivileged
check "its exposure is 2.0 at most" exposure
check "what its sandbox does not grant is refused" sandbox
check "man breakout" sh -c 'man breakout | grep -i "local internet breakout" && man breakout-list-show >/dev/null'
check "completions" completes
check "a reload takes effect" reload_takes_effect
check "a reload of nonsense fails and changes nothing" reload_of_nonsense_fails
check "a restart loses nothing" under_traffic systemctl restart breakout
check "a controller that is killed is started again, and nothing is lost" under_traffic killed
check "a controller that hangs is started again, and nothing is lost" under_traffic hung
check "an upgrade loses nothing" under_traffic upgrade
check "a downgrade loses nothing" under_traffic downgrade
check "a stop" systemctl stop breakout
check "nothing is left in the kernel after a stop" kernel_is_clean
check "a start after a stop" systemctl start breakout
check "it is removed" apt-get remove breakout
check "nothing is left in the kernel after removal" kernel_is_clean
check "the configuration is left after removal" test -f /etc/breakout/breakout.toml
check "README.md installs it again, with the configuration as it was" run_block README.md sh 4
check "docs/branch-office.md brings it up" branch_office
check "it steers as docs/branch-office.md has it" steers
check "it fails over and back as docs/branch-office.md has it" fails_over
check "docs/metrics.md shows metrics" run_block docs/metrics.md sh 1
check "a support archive" support_archive
check "it is purged, with a broken configuration" purge_with_broken_configuration
check "nothing is left in the kernel after the purge" kernel_is_clean
check "no file and no user is left after the purge" files_are_as_before
check "docs/install.md brings it up from the archive" by_archive
check "it steers from the archive" steers
check "docs/install.md removes what came from the archive" run_block docs/install.md sh 4
check "nothing is left in the kernel after that" kernel_is_clean
check "no file and no user is left after that" files_are_as_before
finish
