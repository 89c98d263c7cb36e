# Every check of the machine, one after the other. Arguments: a word, the tests
# of the bench's `vm` and of the engine's `tracker`, and the checks to be made.
# Ends with a code that nothing here ends with by itself.
word=$1 vm=$2 tracker=$3
shift 3
export BLIP_LAB_PATIENCE=240 RUST_BACKTRACE=0 BLIP_HOSTILE_RUNS=1
# What a check that ran out of time has started ends with it, so that the next
# has the processors for itself.
within() {
    limit=$1
    shift
    timeout "$limit" unshare --pid --fork --kill-child --mount-proc "$@"
}
begins() {
    read -r began _ </proc/uptime
    echo "@@ begins $1"
}
ends() {
    read -r ended _ </proc/uptime
    echo "@@ ends $1 after ${began%.*} to ${ended%.*} s"
}
for check in "$@"; do
    begins "$check"
    case $check in
    words) uname -r && cat /sys/kernel/mm/transparent_hugepage/enabled && echo "$word" ;;
    huge::*)
        echo always >/sys/kernel/mm/transparent_hugepage/enabled
        within 90 "$tracker" --ignored --exact "pre_dumps::${check#huge::}"
        code=$?
        echo never >/sys/kernel/mm/transparent_hugepage/enabled
        (exit $code)
        ;;
    tracker::*) within 900 "$tracker" --ignored --exact --nocapture "pre_dumps::${check#tracker::}" ;;
    *) within 900 "$vm" --ignored --exact --nocapture "$check" ;;
    esac 2>&1
    ends $?
done
exit 7
