# A Redis that is written to moves between two hosts of a lab in this machine.
# Arguments: blip-bench, blip, the tracker to ask for. Prints blip's report last.
set -eu
bench=$1 blip=$2 tracker=$3
on() {
    host=$1
    shift
    "$bench" lab exec --name vm "$host" -- "$@"
}
redis() {
    on client redis-cli -h 10.90.0.140 "$@"
}
export BLIP_LAB_PATIENCE=240
"$bench" lab up --name vm >&2
for host in a b; do
    pid=$("$bench" lab status --name vm --json | python3 -c "
import json, sys
found = json.load(sys.stdin)
found = found[0] if isinstance(found, list) else found
print(next(h['pid'] for h in found['hosts'] if h['name'] == '$host'))")
    cp "$blip" "/proc/$pid/root/usr/local/bin/blip"
done
on a blip pair add "$(on b blip pair show)" b >&2
on b blip pair add "$(on a blip pair show)" a >&2
on b blip agent >/tmp/agent 2>&1 &
on a docker run --detach --name redis --network blipnet --ip 10.90.0.140 \
    blip/redis:latest redis-server --save '' --appendonly no --protected-mode no \
    --enable-debug-command yes >&2
until redis ping 2>/dev/null | grep -q PONG; do sleep 0.5; done
redis debug populate 20000 key 1000 >&2
until grep -q listening /tmp/agent; do sleep 0.5; done
before=$(redis debug digest)
# Other keys are written all the while, acknowledged one by one.
(
    count=0
    while ! [ -e /tmp/stop ]; do
        count=$((count + 1))
        redis set counter "$count" | grep -q OK && echo "$count" >/tmp/acknowledged
    done
) &
writer=$!
# An emulated machine that gets no processor for a second looks dead to its
# peer; blip then keeps the container where it is, and may be asked again.
moved=no
for _ in 1 2 3; do
    if on a blip migrate redis --to 10.90.0.12 --tracker "$tracker" --json >/tmp/report; then
        moved=yes
        break
    fi
    cat /tmp/report >&2
    sleep 5
done
[ $moved = yes ] || { cat /tmp/agent >&2; exit 20; }
sleep 2
touch /tmp/stop
wait $writer
[ "$(redis get counter)" = "$(cat /tmp/acknowledged)" ] || { echo "writes lost" >&2; exit 21; }
redis del counter >&2
[ "$(redis debug digest)" = "$before" ] || { echo "data differ" >&2; exit 22; }
[ "$(on b docker inspect --format '{{.State.Running}}' redis)" = true ] || exit 23
tail -n 1 /tmp/report
