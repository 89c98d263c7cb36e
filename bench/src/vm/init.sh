#!/bin/busybox sh
# The first process of the virtual machine: makes of its disk what a command
# expects to find, runs the job, and turns the machine off.
#
# The disk holds the lab's cache, and over its root an overlay is laid: so a
# lab can stand in this machine as in any other.
B=/bin/busybox
$B mount -t proc proc /proc
$B mount -t sysfs sys /sys
$B mount -t devtmpfs dev /dev
ROOT=$($B echo /cache/*/rootfs)
for dir in proc sys dev; do $B mount --bind /$dir $ROOT/$dir; done
# What Docker would load one by one, and slowly.
$B chroot $ROOT /usr/sbin/modprobe -a virtio_pci virtio_console virtio_blk overlay loop veth bridge macvlan tun sch_tbf \
    nf_conntrack nf_tables nf_nat ip_tables iptable_nat iptable_filter xt_addrtype xt_conntrack \
    xt_MASQUERADE br_netfilter
$B mkdir -p /rw/upper /rw/work /rw/labs
$B mount -t overlay -o lowerdir=$ROOT,upperdir=/rw/upper,workdir=/rw/work none /new
cd /new || exit
$B mkdir -p var/cache/blip-lab var/lib/blip-lab mnt
$B mount --bind /cache var/cache/blip-lab
$B mount --bind /rw/labs var/lib/blip-lab
$B mount -t proc proc proc
$B mount -t sysfs sys sys
$B mount -t debugfs debug sys/kernel/debug
$B mount --rbind /dev dev
$B mkdir -p dev/pts dev/shm
$B mount -t devpts devpts dev/pts
$B mount -t tmpfs shm dev/shm
$B mount -t tmpfs -o mode=755 run run
$B mount -t tmpfs tmp tmp
$B mount -t cgroup2 cgroup2 sys/fs/cgroup
$B ip link set lo up
# The root of a lab is here already; what would build it is only looked for.
for tool in mmdebstrap gpgv; do
    [ -e usr/bin/$tool ] || { echo '#!/bin/false' >usr/bin/$tool; $B chmod 755 usr/bin/$tool; }
done
for _ in 1 2 3 4 5 6 7 8 9 10; do
    [ -b dev/vda ] && [ -c "$($B echo dev/vport*p2)" ] && break
    $B sleep 0.2
done
OUT=/$($B echo dev/vport*p1)
CODE=/$($B echo dev/vport*p2)
$B tar -x -f dev/vda -C /new
# The kernel looks for modprobe where its first process has its root.
$B pivot_root . mnt
exec /mnt/bin/busybox chroot . /bin/sh -c "
    /bin/sh /blip-job </dev/null >$OUT 2>&1
    echo \$? >$CODE
    /mnt/bin/busybox sync
    /mnt/bin/busybox poweroff -f"
